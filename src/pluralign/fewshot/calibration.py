"""How wide intervals are: as many standard deviations as held a share of the answers of training groups kept apart.

A posterior of a closed form is too sure or not sure enough, and not alike after few answers and after many: the factors
go by kind of question and by the number of answers that were read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pluralign.fewshot.answers import Shares
from pluralign.fewshot.taste import Predicted

LEVELS = (0.5, 0.8, 0.9, 0.95)
ENOUGH = 100
"""Answers that a factor is told from, at least, where there are as many."""
_LEAST_DEVIATION = 1e-3

Factors = Mapping[int, Mapping[float, float]]
"""Answers read -> level -> how many standard deviations hold that share."""


@dataclass(frozen=True)
class Calibration:
    """How many standard deviations hold a share of what was answered.

    Attributes:
        factors: kind of question (`known` to the training groups, or `new`) -> factors.
    """

    factors: Mapping[str, Factors]

    def interval(self, predicted: Predicted, kind: str, level: float, read: int) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper ends, `[options]` each, within [0, 1].

        Between the numbers of answers that factors were told for they are interpolated over their logarithm; below the
        least and above the largest they stay. Where training groups had no question in common, none of theirs told how
        sure one is of a known question; what holds for new ones stands in, and the other way round.

        Args:
            predicted: an answer.
            kind: `known` or `new`.
            level: one of `LEVELS`.
            read: answers that it was predicted from.
        """
        factors = self.factors.get(kind) or next(iter(self.factors.values()))
        sizes = [math.log(size) for size in factors]
        factor = np.interp(math.log(max(read, 1)), sizes, [by_level[level] for by_level in factors.values()])
        width = factor * np.maximum(predicted.deviations, _LEAST_DEVIATION)
        return np.clip(predicted.shares - width, 0, 1), np.clip(predicted.shares + width, 0, 1)


@dataclass(frozen=True)
class Sample:
    """An answer of a training group that was predicted without it.

    Attributes:
        kind: of question.
        read: answers that it was predicted from, at least 1.
        ratios: float `[options]`, errors in standard deviations.
    """

    kind: str
    read: int
    ratios: np.ndarray

    @classmethod
    def of(cls, kind: str, read: int, predicted: Predicted, said: Shares) -> Sample:
        """From what was predicted and what was said."""
        return cls(kind, read, np.abs(predicted.shares - said) / np.maximum(predicted.deviations, _LEAST_DEVIATION))


def calibrated(samples: Sequence[Sample]) -> Calibration:
    """The factors that hold for training groups kept apart.

    Args:
        samples: any number, at least one. A kind with fewer than `ENOUGH` is told from all samples.
    """
    kinds = {kind: [one for one in samples if one.kind == kind] for kind in dict.fromkeys(s.kind for s in samples)}
    return Calibration({kind: _factors(own if len(own) >= ENOUGH else list(samples)) for kind, own in kinds.items()})


def _factors(samples: Sequence[Sample]) -> Factors:
    found = {}
    for part in _by_size(samples):
        # Sizes of a part differ: a factor stands at their geometric mean.
        size = round(math.exp(np.mean([math.log(one.read) for one in part])))
        values = np.quantile(np.concatenate([one.ratios for one in part]), LEVELS)
        found[size] = dict(zip(LEVELS, map(float, values), strict=True))
    return found


def _by_size(samples: Sequence[Sample]) -> Iterable[list[Sample]]:
    """Parts of neighbouring sizes, each about twice as large as the one before and with samples enough."""
    bins: dict[int, list[Sample]] = {}
    for one in samples:
        bins.setdefault(round(math.log2(one.read)), []).append(one)
    parts: list[list[Sample]] = []
    for _, some in sorted(bins.items()):
        if parts and (len(parts[-1]) < ENOUGH or len(some) < ENOUGH):
            parts[-1] += some
        else:
            parts.append(some)
    return parts
