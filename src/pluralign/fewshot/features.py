"""Answer options as vectors: one for each option of each question, in the question's light."""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pluralign.errors import InputError
from pluralign.fewshot.answers import Question
from pluralign.preferences.schema import excerpt

HASHED = 512
"""Dimensions of hashed n-grams."""


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


def hashed(questions: Sequence[Question], dimensions: int = HASHED) -> Points:
    """Options without any model: hashed words and pairs of words, alone and together with the question's words.

    Two options are alike that say alike things, the more so where their questions are alike.

    Args:
        questions: any number.
        dimensions: of a vector, at least 2.

    Returns:
        Vectors of length 1, before centring.
    """
    rows = []
    for question in questions:
        asked = sorted(set(_grams(question.text)))
        for place, option in enumerate(question.options):
            said = [*_grams(option), *_places(place, len(question.options))]
            row = np.zeros(dimensions)
            _add(row, said, 1.0)
            _add(row, (f"{word} | {part}" for word in asked for part in said), 1 / max(len(asked), 1) ** 0.5)
            rows.append(row / max(float(np.linalg.norm(row)), 1e-12))
    return points(questions, np.array(rows).reshape(-1, dimensions))


def _grams(text: str) -> list[str]:
    words = re.findall(r"\w+", text.lower())
    return [*words, *(f"{first} {second}" for first, second in itertools.pairwise(words))]


def _places(place: int, options: int) -> list[str]:
    """Options of a scale are alike by where they stand."""
    return [f"<{place} of {options}>", f"<{round(4 * place / (options - 1))} of 4>"]


def _add(row: np.ndarray, grams: Iterator[str] | Sequence[str], weight: float) -> None:
    for gram in grams:
        number = zlib.crc32(gram.encode())
        row[number % len(row)] += weight if number >> 31 else -weight
