"""Few-shot predictors of people's tastes as an annotator: each person's from a few answers of theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pluralign.annotators.protocol import Request, Verdict
from pluralign.fewshot.choosing import Annotator as Taste
from pluralign.fewshot.predictor_file import load_predictor
from pluralign.fewshot.tables import load_answers


@dataclass(frozen=True)
class TasteAnnotator:
    """Scores are the probabilities that the person takes a response, of those to one prompt.

    Attributes:
        tastes: person -> theirs.
    """

    tastes: Mapping[str, Taste]

    @classmethod
    def of_files(cls, predictor: str, answers: str | Sequence[str], cache_dir: str | None = None) -> TasteAnnotator:
        """From what `pluralign fewshot fit` wrote, and people's answers.

        Raises:
            InputError: a file cannot be used.
        """
        found, loaded = load_answers(answers, key="annotator.answers"), load_predictor(predictor)
        return cls({user: Taste(loaded, found.of([user]), cache_dir) for user in found.groups})

    @property
    def name(self) -> str:
        """What errors call it."""
        return "taste"

    def annotate(self, requests: Sequence[Request]) -> list[Verdict]:
        """Scores; it abstains for people without answers."""
        found: dict[int, Verdict] = {}
        by_user: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            if request.user in self.tastes:
                by_user.setdefault(str(request.user), []).append(number)
            else:
                found[number] = Verdict(abstained=True, reason=f"there are no answers of {request.user!r}")
        for user, numbers in by_user.items():
            own = [requests[number] for number in numbers]
            shares = self.tastes[user].shares([one.prompt for one in own], [one.responses for one in own])
            for number, values in zip(numbers, shares, strict=True):
                found[number] = Verdict(scores=tuple(values), tie=len(set(values)) == 1)
        return [found[number] for number in range(len(requests))]
