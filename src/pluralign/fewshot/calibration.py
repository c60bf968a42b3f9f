"""How wide intervals are: as wide as held a share of the answers of training groups kept apart.

A posterior of a closed form is too sure or not sure enough, and not alike after few answers and after many: the factors
go by kind of question and by the number of answers that were read. It is also too unsure of shares near a half, beside
those near 0 and 1, so that how intervals are shaped is chosen, too. All questions count alike, whatever their options.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from pluralign.fewshot.answers import Shares
from pluralign.fewshot.taste import Predicted

LEVELS = (0.5, 0.8, 0.9, 0.95)
ENOUGH = 50
"""Answers that a factor is told from, at least, where there are as many. With twice as many, few answers and many came
to have one factor where questions are seldom shared: it held too little after 5 answers and too much after 20."""
SHAPES = (1.0, 0.75, 0.5, 0.25)
"""What an interval's shape may be: how much of it is the posterior's, and not the share's own. Without any of the
former intervals are no narrower, and hold less of the answers to questions with two options."""
SHAPED_AT = 0.8
"""The level whose intervals the shape makes as narrow as can be."""
_LEAST_DEVIATION, _LEAST_OWN = 1e-3, 0.02

Factors = Mapping[int, Mapping[float, float]]
"""Answers read -> level -> how many scales hold that share."""


@dataclass(frozen=True)
class Calibration:
    """How wide an interval is.

    Attributes:
        factors: kind of question (`known` to the training groups, or `new`) -> factors.
        shapes: kind of question -> its shape, in [0, 1].
    """

    factors: Mapping[str, Factors]
    shapes: Mapping[str, float]

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
        told = kind if kind in self.factors else next(iter(self.factors))
        factors = self.factors[told]
        sizes = [math.log(size) for size in factors]
        factor = np.interp(math.log(max(read, 1)), sizes, [by_level[level] for by_level in factors.values()])
        return _ends(predicted.shares, factor * scale(predicted.shares, predicted.deviations, self.shapes[told]))


def scale(shares: Shares, deviations: np.ndarray, shape: float) -> np.ndarray:
    """How wide intervals of shares are beside each other, `[options]`.

    The posterior's standard deviations to the power of the shape, times those of a binary answer, the root of
    p (1 - p), to the power of the rest.

    Args:
        shares: predicted, `[options]`.
        deviations: of the posterior, `[options]`.
        shape: in [0, 1].
    """
    own = np.sqrt(np.maximum(shares * (1 - shares), 0.0)) + _LEAST_OWN
    return np.asarray(np.maximum(deviations, _LEAST_DEVIATION) ** shape * own ** (1 - shape))


def _ends(shares: np.ndarray, width: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.clip(shares - width, 0, 1), np.clip(shares + width, 0, 1)


@dataclass(frozen=True)
class Sample:
    """An answer of a training group that was predicted without it.

    Attributes:
        kind: of question.
        read: answers that it was predicted from, at least 1.
        predicted: what was predicted.
        said: float `[options]`, what was answered.
    """

    kind: str
    read: int
    predicted: Predicted
    said: Shares


def calibrated(samples: Sequence[Sample]) -> Calibration:
    """The factors that hold for training groups kept apart, and the shape with which intervals are narrowest.

    Args:
        samples: any number, at least one. A kind with fewer than `ENOUGH` is told from all samples.
    """
    kinds = {kind: [one for one in samples if one.kind == kind] for kind in dict.fromkeys(s.kind for s in samples)}
    told = {kind: own if len(own) >= ENOUGH else list(samples) for kind, own in kinds.items()}
    parts = {kind: [_Part.of(some) for some in _by_size(own)] for kind, own in told.items()}
    shapes = {kind: min(SHAPES, key=partial(_width, own)) for kind, own in parts.items()}
    return Calibration({kind: _factors(own, shapes[kind]) for kind, own in parts.items()}, shapes)


@dataclass(frozen=True)
class _Part:
    """Samples after about the same number of answers, float `[options of all]` each.

    Attributes:
        read: the geometric mean of these numbers.
        shares: predicted.
        deviations: of the posterior.
        errors: how far off the shares are.
        weights: one question's sum to 1.
    """

    read: int
    shares: np.ndarray
    deviations: np.ndarray
    errors: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> _Part:
        shares = np.concatenate([one.predicted.shares for one in samples])
        errors = np.abs(shares - np.concatenate([one.said for one in samples]))
        read = round(math.exp(np.mean([math.log(one.read) for one in samples])))
        deviations = np.concatenate([one.predicted.deviations for one in samples])
        sizes = [len(one.said) for one in samples]
        return cls(read, shares, deviations, errors, np.repeat([1 / size for size in sizes], sizes))

    def factors(self, shape: float, levels: Sequence[float]) -> np.ndarray:
        """How many scales hold each share."""
        ratios = self.errors / scale(self.shares, self.deviations, shape)
        return np.quantile(ratios, levels, weights=self.weights, method="inverted_cdf")


def _factors(parts: Sequence[_Part], shape: float) -> Factors:
    return {part.read: dict(zip(LEVELS, map(float, part.factors(shape, LEVELS)), strict=True)) for part in parts}


def _width(parts: Sequence[_Part], shape: float) -> float:
    """Mean width of the intervals that just hold their share."""
    widths = []
    for part in parts:
        (factor,) = part.factors(shape, [SHAPED_AT])
        low, high = _ends(part.shares, factor * scale(part.shares, part.deviations, shape))
        widths.append(high - low)
    return float(np.average(np.concatenate(widths), weights=np.concatenate([part.weights for part in parts])))


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
