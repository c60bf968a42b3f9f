"""Means and intervals of finite numbers; what is undefined is None, never NaN."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

Interval = tuple[float, float]

Z = 1.959963984540054
"""Two-sided 95% quantile of the normal distribution."""
RESAMPLES = 1000


def finite(values: Iterable[float | None]) -> list[float]:
    """The values that are numbers, in order."""
    return [value for value in values if value is not None and math.isfinite(value)]


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are numbers; None without any."""
    numbers = finite(values)
    return math.fsum(numbers) / len(numbers) if numbers else None


def share(flags: Iterable[bool]) -> float | None:
    """Share of true values, in [0, 1]; None without any value."""
    return mean(float(flag) for flag in flags)


def wilson_interval(successes: int, trials: int) -> Interval | None:
    """95% interval of a share by Wilson's score (1927), inside [0, 1]; None without trials."""
    if trials == 0:
        return None
    rate, spread = successes / trials, Z * Z / trials
    centre = (rate + spread / 2) / (1 + spread)
    half = Z * math.sqrt(rate * (1 - rate) / trials + spread / (4 * trials)) / (1 + spread)
    # At 0 and 1 the bound is exact in theory and off by a rounding error in floating point.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == trials else min(1.0, centre + half)
    return low, high


def bootstrap_interval(values: Sequence[float | None], *, seed: int = 0) -> Interval | None:
    """95% percentile interval of the mean from 1000 resamples (Efron 1979), the same for the same values and seed.

    None below two finite values.
    """
    numbers = np.asarray(finite(values))
    if len(numbers) < 2:
        return None
    generator = np.random.default_rng(seed)
    # One resample at a time: 1000 x n indices at once would be gigabytes for a long table.
    means = [numbers[generator.integers(0, len(numbers), len(numbers))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
