"""The difference of two runs over the people that both have, with intervals from a paired bootstrap."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from pluralign.evaluation.over_people import Array, describe_samples, of_the_worst_in, resamples
from pluralign.evaluation.statistics import Interval

OF_A = "worst_decile_of_a"
"""The statistic of the people who are the worst tenth in the first run, in both runs."""
_DIGITS = 12
"""Decimals of differences."""


@dataclass(frozen=True)
class Difference:
    """A figure of two runs, over the people that both have.

    Attributes:
        a: in the first run; None where nobody has it.
        b: in the second.
        difference: the second's less the first's.
        interval: 95%, [low, high]; None below two people, and for what is no statistic of people.
        people: who have it in both.
    """

    a: float | None
    b: float | None
    difference: float | None
    interval: Interval | None
    people: int


def paired_differences(
    a: Sequence[float],
    b: Sequence[float],
    *,
    higher: bool = True,
    gini: bool = True,
    mean_only: bool = False,
    draws: int | None = None,
    seed: int = 0,
) -> dict[str, Difference]:
    """Every statistic of `describe` in two runs, and what changed.

    Intervals are percentiles 2.5 and 97.5 of the differences in resamples of the people: whoever is drawn brings both
    values along, so that what makes a person easy or hard in both runs cancels.

    Args:
        a: values in the first run, finite.
        b: values of the same people in the second run, in their order.
        higher: whether higher is better.
        gini: whether the Gini coefficient is wanted; values are then at least 0.
        mean_only: whether nothing but the mean is.
        draws: resamples; by default `draws_of` the people.
        seed: of the resamples; the same for all measures, so that they speak of the same people.

    Returns:
        Name -> difference: the statistics of `describe`, and `worst_decile_of_a`, the mean over the people who are the
        worst tenth in the first run; empty without people.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"{len(first)} people in one run, and {len(second)} in the other")
    people = len(first)
    if not people:
        return {}
    sampled = _means if mean_only else partial(_sampled, higher=higher, gini=gini)
    (found,) = sampled(first, second, iter([np.ones((1, people))]))
    intervals: dict[str, Interval] = {}
    if people > 1:
        blocks = list(sampled(first, second, resamples(people, draws=draws, seed=seed)))
        for name in found:
            changes = np.concatenate([block[name][1] - block[name][0] for block in blocks])
            low, high = np.quantile(changes, [0.025, 0.975])
            intervals[name] = _rounded(low), _rounded(high)
    return {
        name: Difference(float(one[0]), float(other[0]), _rounded(other[0] - one[0]), intervals.get(name), people)
        for name, (one, other) in found.items()
    }


def _rounded(value: float) -> float:
    """Without the last bits, which differ where equal values are added up in another order: equal runs differ by 0."""
    return round(float(value), _DIGITS) + 0.0


def _means(first: Array, second: Array, samples: Iterator[Array]) -> Iterator[dict[str, tuple[Array, Array]]]:
    """As `_sampled`, of the mean alone."""
    for counts in samples:
        yield {"mean": (counts @ first / len(first), counts @ second / len(second))}


def _sampled(
    first: Array, second: Array, samples: Iterator[Array], *, higher: bool, gini: bool
) -> Iterator[dict[str, tuple[Array, Array]]]:
    """Of each block of samples, every statistic in both runs: [D] each."""
    for counts in samples:
        one, other = (describe_samples(values, counts, higher=higher, gini=gini) for values in (first, second))
        found = {name: (one[name], other[name]) for name in one}
        in_a, in_b = (of_the_worst_in(first, values, counts, higher=higher) for values in (first, second))
        yield found | {OF_A: (in_a, in_b)}
