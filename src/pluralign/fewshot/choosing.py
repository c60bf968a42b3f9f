"""A fitted predictor as an annotator: which of some responses a person would take, from a few answers of theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pluralign.errors import InputError
from pluralign.fewshot.answers import Answers, Question, plain_text
from pluralign.fewshot.predictor import Predictor
from pluralign.fewshot.predictor_file import load_predictor
from pluralign.fewshot.tables import load_answers
from pluralign.preferences.schema import Text


@dataclass(frozen=True)
class Annotator:
    """One person's taste.

    Attributes:
        predictor: fitted to others.
        answers: of the person, and of nobody else.
        cache_dir: of vectors that a model made.
    """

    predictor: Predictor
    answers: Answers
    cache_dir: str | Path | None = None

    @classmethod
    def of_files(cls, predictor: str, answers: str | Sequence[str], cache_dir: str | None = None) -> Annotator:
        """From what `pluralign fewshot fit` wrote and the person's answers.

        Raises:
            InputError: a file that cannot be used, or answers of more than one person.
        """
        found = load_answers(answers, key="answers")
        if len(found.groups) > 1:
            several = f"there are answers of {len(found.groups)}: {', '.join(map(repr, list(found.groups)[:5]))}"
            raise InputError(several, where=found.name, fix="Keep those of the one whose taste is asked for.")
        return cls(load_predictor(predictor), found, cache_dir)

    def shares(self, prompts: Sequence[Text], responses: Sequence[Sequence[str]]) -> list[list[float]]:
        """How likely the person takes each response, of those to one prompt.

        Where they answered just that question, it is what they said; else it is predicted.

        Args:
            prompts: any.
            responses: to each prompt at least one; equal ones share what is theirs.

        Returns:
            Probabilities that sum to 1, in the order of the responses.
        """
        # By the alphabet, as pairs of the training people are: what is said of responses depends on no order.
        distinct = [tuple(sorted(set(some))) for some in responses]
        questions = [Question(plain_text(prompt), some) for prompt, some in zip(prompts, distinct, strict=True)]
        known = self._said() | {one.asked: {one.options[0]: 1.0} for one in questions if len(one.options) == 1}
        open_ones = [question for question in dict.fromkeys(questions) if question.asked not in known]
        predicted = self.predictor.predict(self.answers, open_ones, cache_dir=self.cache_dir) if open_ones else []
        known |= {one.question.asked: dict(zip(one.question.options, one.shares, strict=True)) for one in predicted}
        return [
            [float(known[question.asked][text]) / some.count(text) for text in some]
            for question, some in zip(questions, responses, strict=True)
        ]

    def _said(self) -> dict[tuple[str, frozenset[str]], Mapping[str, float]]:
        """What the person answered: share of each option."""
        answered = [(self.answers.questions[number], shares) for _, number, shares in self.answers]
        return {one.asked: dict(zip(one.options, shares, strict=True)) for one, shares in answered}

    def best(self, prompts: Sequence[Text], responses: Sequence[Sequence[str]]) -> list[int]:
        """Number of the response that the person would take, for every prompt; of equal ones the first."""
        return [max(range(len(some)), key=some.__getitem__) for some in self.shares(prompts, responses)]
