"""How near predicted answers are to those of a group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pluralign.fewshot.answers import Question

LEAST_SHARE = 1e-3
"""What a predicted share counts as at least in the likelihood: nobody is certain."""
Values = Sequence[float] | np.ndarray


def wasserstein_alignment(predicted: Values, shares: Values, ordinals: Sequence[float]) -> float:
    """1 - W / W_max of two distributions on a line (Santurkar et al. 2023, OpinionQA).

    Args:
        predicted: `[options]`, at least 0; scaled to sum to 1.
        shares: of the group, likewise.
        ordinals: `[options]`, where each option stands on the line.

    Returns:
        In [0, 1]; NaN where it is undefined: all options stand at one place, or a distribution has no mass.
    """
    places, span = np.asarray(ordinals, float), np.ptp(ordinals)
    one, other = _scaled(predicted), _scaled(shares)
    if not span or one is None or other is None:
        return float("nan")
    order = np.argsort(places, kind="stable")
    gaps = np.diff(places[order])
    distance = float(np.abs(np.cumsum((one - other)[order])[:-1]) @ gaps)
    return 1 - distance / float(span)


def jensen_shannon_alignment(predicted: Values, shares: Values) -> float:
    """1 - the Jensen-Shannon distance (Durmus et al. 2023, GlobalOpinionQA): the root of the divergence in nats.

    Args:
        predicted: `[options]`, at least 0; scaled to sum to 1.
        shares: of the group, likewise.

    Returns:
        In [1 - sqrt(ln 2), 1], 0.167 for distributions that have nothing in common; NaN where one has no mass. (The
        official evaluation takes an undefined distance for a perfect match.)
    """
    one, other = _scaled(predicted), _scaled(shares)
    if one is None or other is None:
        return float("nan")
    middle = (one + other) / 2
    divergence = (_relative_entropy(one, middle) + _relative_entropy(other, middle)) / 2
    return 1 - float(np.sqrt(max(divergence, 0.0)))


def alignment(question: Question, predicted: Values, shares: Values) -> float:
    """Of a question whose options stand on a line Wasserstein alignment, of any other one Jensen-Shannon alignment.

    Args:
        question: what was asked.
        predicted: `[options]`, at least 0.
        shares: of the group, likewise.

    Returns:
        In [0, 1]; NaN where it is undefined.
    """
    if question.ordinals is not None:
        return wasserstein_alignment(predicted, shares, question.ordinals)
    return jensen_shannon_alignment(predicted, shares)


def _scaled(values: Values) -> np.ndarray | None:
    array = np.asarray(values, float)
    total = array.sum()
    return array / total if total > 0 and (array >= 0).all() else None


def _relative_entropy(one: np.ndarray, other: np.ndarray) -> float:
    there = one > 0
    return float((one[there] * np.log(one[there] / other[there])).sum())


@dataclass(frozen=True)
class Targets:
    """Many questions and the shares of those who answered, one below the other, to score predictions of all at once.

    Attributes:
        said: float `[points]`, shares.
        starts: int64 `[questions]`, where each question's points begin.
        numbers: int64 `[points]`, question of each point.
        order: int64 `[points]`, points of each question along its line; their own order where it has none.
        gaps: float `[points]`, in `order`, way to the next point as a share of the line; NaN where all stand at one
            place, and 0 where there is no line.
        lines: bool `[questions]`, whether its options stand on a line.
    """

    said: np.ndarray
    starts: np.ndarray
    numbers: np.ndarray
    order: np.ndarray
    gaps: np.ndarray
    lines: np.ndarray

    @classmethod
    def of(cls, questions: Sequence[Question], said: Sequence[np.ndarray]) -> Targets:
        """Lay out questions with their answers, at least one."""
        sizes = [len(question.options) for question in questions]
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(int)
        order, gaps = np.arange(sum(sizes)), np.zeros(sum(sizes))
        for start, question in zip(starts, questions, strict=True):
            if question.ordinals is not None:
                places, span = np.asarray(question.ordinals, float), float(np.ptp(question.ordinals))
                along, part = np.argsort(places, kind="stable"), slice(start, start + len(places))
                order[part] = start + along
                gaps[part] = np.append(np.diff(places[along]), 0.0) / span if span else np.nan
        lines = np.array([question.ordinals is not None for question in questions])
        return cls(np.concatenate(said), starts, np.repeat(np.arange(len(sizes)), sizes), order, gaps, lines)

    def softmax(self, logs: np.ndarray) -> np.ndarray:
        """Shares of each question's options, `[points]`."""
        powers = np.exp(logs - np.maximum.reduceat(logs, self.starts)[self.numbers])
        return np.asarray(powers / np.add.reduceat(powers, self.starts)[self.numbers])

    def alignment(self, predicted: np.ndarray) -> np.ndarray:
        """As the function of that name, `[questions]`; both sides have shares that sum to 1."""
        # Within a question the differences sum to 0, so that one running sum serves all.
        along = np.abs(np.cumsum((predicted - self.said)[self.order])) * self.gaps
        wasserstein = 1 - np.add.reduceat(along, self.starts)
        middle = (predicted + self.said) / 2
        divergence = (self._entropy(predicted, middle) + self._entropy(self.said, middle)) / 2
        return np.where(self.lines, wasserstein, 1 - np.sqrt(np.maximum(divergence, 0.0)))

    def nll(self, predicted: np.ndarray) -> np.ndarray:
        """Cross-entropy in nats, `[questions]`; predicted shares count as `LEAST_SHARE` at least."""
        floored = np.maximum(predicted, LEAST_SHARE)
        floored = floored / np.add.reduceat(floored, self.starts)[self.numbers]
        return np.asarray(-np.add.reduceat(self.said * np.log(floored), self.starts))

    def _entropy(self, one: np.ndarray, middle: np.ndarray) -> np.ndarray:
        logs = np.log(one, where=one > 0, out=np.zeros_like(one))
        others = np.log(middle, where=one > 0, out=np.zeros_like(one))
        return np.asarray(np.add.reduceat(one * (logs - others), self.starts))
