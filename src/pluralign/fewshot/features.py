"""Answer options as vectors: one for each option of each question, in the question's light."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pluralign.errors import InputError
from pluralign.fewshot.answers import Question
from pluralign.preferences.schema import excerpt


@dataclass(frozen=True)
class Points:
    """All options of some questions, one below the other.

    Attributes:
        vectors: float64 `[points, d]`.
        starts: int64 `[questions + 1]`; question n has the points from `starts[n]` to `starts[n + 1]`.
        even: whether the vectors of every question have the mean 0 already.
    """

    vectors: np.ndarray
    starts: np.ndarray
    even: bool = False

    @cached_property
    def centred(self) -> np.ndarray:
        """Vectors less the mean of their question, float64 `[points, d]`.

        What tells a question's options apart, and nothing of the question alone.
        """
        if self.even:
            return self.vectors
        means = np.add.reduceat(self.vectors, self.starts[:-1], axis=0) / np.diff(self.starts)[:, None]
        return np.asarray(self.vectors - means[self.questions])

    @property
    def questions(self) -> np.ndarray:
        """Int64 `[points]`, the question of each point."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))

    def slice(self, number: int) -> slice:
        """Where the points of a question are."""
        return slice(int(self.starts[number]), int(self.starts[number + 1]))

    def of(self, numbers: Sequence[int]) -> np.ndarray:
        """Int64, the points of some questions, in their order."""
        if not len(numbers):
            return np.zeros(0, int)
        return np.concatenate([np.arange(self.starts[n], self.starts[n + 1]) for n in numbers])

    def only(self, numbers: Sequence[int]) -> Points:
        """The same for some questions, in their order."""
        sizes = np.diff(self.starts)[np.asarray(numbers, int)]
        return Points(self.vectors[self.of(numbers)], np.concatenate([[0], np.cumsum(sizes)]).astype(int), self.even)


def points(questions: Sequence[Question], vectors: np.ndarray) -> Points:
    """Vectors of all options with the questions they belong to.

    Args:
        questions: in their order.
        vectors: float `[options of all questions, d]`.

    Raises:
        InputError: a vector that is not all numbers.
    """
    starts = np.concatenate([[0], np.cumsum([len(question.options) for question in questions])]).astype(int)
    found = Points(np.asarray(vectors, float), starts)
    if len(bad := np.flatnonzero(~np.isfinite(found.vectors).all(axis=1))):
        number = int(found.questions[bad[0]])
        option = questions[number].options[bad[0] - starts[number]]
        text = f"the vector of option {excerpt(option)} of {excerpt(questions[number].text)} is not all numbers"
        raise InputError(text, fix="Leave the question out, or make its vectors anew.")
    return found
