"""How near the shares that a policy gives to the options of survey questions are to those of a group, or of a person.

The policy's share of an option is the probability that it gives exactly this answer, end of the turn included, divided
by that of giving any of the options: a softmax over their summed log-probs. Per character it would not be a probability
of anything, and `Yes` would stand for every answer that begins with it if answers had no end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pluralign.errors import InputError
from pluralign.evaluation.people import Person
from pluralign.evaluation.probes import as_messages
from pluralign.evaluation.statistics import mean
from pluralign.fewshot.answers import Answers, Question
from pluralign.fewshot.metrics import alignment, jensen_shannon_alignment, wasserstein_alignment
from pluralign.fewshot.tables import load_answers
from pluralign.models.encoding import Encoder
from pluralign.models.scoring import Ids, Request
from pluralign.preferences.schema import Place, Preference, Text
from pluralign.seats import DistributionConfig

KEY = "evaluation.distribution.answers"


@dataclass
class Opinions:
    """Survey answers, and their questions in tokens.

    Attributes:
        answers: who answered what.
        requests: number of a question -> its prompt with each option; those that the model has no room for are not
            there.
    """

    answers: Answers
    requests: dict[int, list[Request]]

    @classmethod
    def of(cls, answers: Answers, encoder: Encoder, *, messages: bool, room: int | None) -> Opinions:
        """Put every question into tokens, as training prompts are.

        Args:
            answers: who answered what.
            encoder: without limits of its own.
            messages: whether a question becomes a user's turn; else `Question: ...` and `Answer:` stand around it.
            room: tokens that question and option may have together; None is no limit.
        """
        found = {number: _requests(question, encoder, messages) for number, question in enumerate(answers.questions)}
        kept = {
            number: requests
            for number, requests in found.items()
            if room is None or all(len(prompt) + len(option) <= room for prompt, option in requests)
        }
        return cls(answers, kept)

    def of_person(self, person: Person) -> str | None:
        """Whose answers a person is compared with: their own, or those of their group; None where there are none."""
        return next((name for name in (person.id, person.group) if name in self.answers.groups), None)

    def asked(self, person: Person) -> list[Request]:
        """What a person's policy has to score."""
        own = self.answers.groups.get(self.of_person(person) or "", {})
        return [request for number in own for request in self.requests.get(number, ())]

    def check(self, people: Mapping[str, Person]) -> None:
        """Raise an `InputError` where the answers are nobody's."""
        if people and not any(self.of_person(person) for person in people.values()):
            groups = ", ".join(repr(name) for name in list(self.answers.groups)[:5])
            fix = "Name the column that holds people's ids or groups (evaluation.distribution.group)."
            raise InputError(f"they are of {groups}, and nobody has such an id or group", where=KEY, fix=fix)

    def results(self, person: Person, scores: Mapping[Request, float], base: Mapping[Request, float]) -> dict[str, Any]:
        """The `distribution` of one person, as in `evaluation.json`.

        Args:
            person: who.
            scores: log-prob of everything of `asked` under the person's policy.
            base: the same under the base.
        """
        whose = self.of_person(person)
        compared = [
            _Compared.of(self.answers.questions[number], self.requests[number], shares, scores, base)
            for number, shares in self.answers.groups.get(whose or "", {}).items()
            if number in self.requests
        ]
        headline = _means([one.headline for one in compared])
        return {
            "of": whose,
            "n": len(compared),
            **headline,
            "wasserstein": _means([one.wasserstein for one in compared if one.wasserstein is not None]),
            "jensen_shannon": _means([one.jensen_shannon for one in compared]),
        }

    def facts(self) -> dict[str, Any]:
        """`base.distribution` of `evaluation.json`: what policies are compared with."""
        return {
            "answers": self.answers.name,
            "groups": len(self.answers.groups),
            "questions": len(self.answers.questions),
            "too_long": len(self.answers.questions) - len(self.requests),
            "rescaled": self.answers.rescaled,
        }


Pair = tuple[float, float]
"""Alignment of the person's policy, and of the base; NaN where it is undefined."""


@dataclass(frozen=True)
class _Compared:
    """One question: how near policy and base are to the answers; `wasserstein` only where options stand on a line."""

    headline: Pair
    wasserstein: Pair | None
    jensen_shannon: Pair

    @classmethod
    def of(
        cls,
        question: Question,
        requests: Sequence[Request],
        shares: np.ndarray,
        person: Mapping[Request, float],
        base: Mapping[Request, float],
    ) -> _Compared:
        own, bare = (option_shares([scores[request] for request in requests]) for scores in (person, base))
        places = question.ordinals
        return cls(
            headline=(alignment(question, own, shares), alignment(question, bare, shares)),
            wasserstein=None
            if places is None
            else (wasserstein_alignment(own, shares, places), wasserstein_alignment(bare, shares, places)),
            jensen_shannon=(jensen_shannon_alignment(own, shares), jensen_shannon_alignment(bare, shares)),
        )


def load_opinions(settings: DistributionConfig) -> Answers | None:
    """The survey answers of a configuration; None where it names none.

    Raises:
        InputError: a table that cannot be used, with the place.
    """
    if not settings.tables:
        return None
    return load_answers(settings.tables, group=settings.group, key=KEY)


def option_shares(logps: Sequence[float]) -> np.ndarray:
    """Softmax of the summed log-probs of a question's options: [options], sum 1; NaN where one is no number."""
    values = np.asarray(logps, float)
    # A likeliest option of probability 0 would leave 0/0: NaN, as it should be.
    with np.errstate(invalid="ignore"):
        found = np.exp(values - values.max())
    return found / found.sum()


def _means(pairs: Sequence[Pair]) -> dict[str, float | int | None]:
    """Of questions where both are defined: a distance that is undefined is no agreement."""
    known = [pair for pair in pairs if all(map(math.isfinite, pair))]
    own, base = mean(pair[0] for pair in known), mean(pair[1] for pair in known)
    return {
        "alignment": own,
        "base_alignment": base,
        "difference": None if own is None or base is None else own - base,
        "undefined": len(pairs) - len(known),
    }


def _requests(question: Question, encoder: Encoder, messages: bool) -> list[Request]:
    prompt: Text = as_messages(question.text) if messages else f"Question: {question.text}\nAnswer:"
    rows = [
        Preference(prompt, option if messages else f" {option}", None, place=Place(f"question {question.text!r}", 0))
        for option in question.options
    ]
    return [(_ids(row.prompt_ids), _ids(row.response_ids["chosen"])) for row in encoder.encode_many(rows, ("chosen",))]


def _ids(tokens: Sequence[int]) -> Ids:
    return tuple(tokens)
