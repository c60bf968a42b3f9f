"""Intervals over worlds: each gives one value, and a few of them say how much another world would differ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

_STUDENT = {
    1: (12.706, 1.376),
    2: (4.303, 1.061),
    3: (3.182, 0.978),
    4: (2.776, 0.941),
    5: (2.571, 0.920),
    6: (2.447, 0.906),
    7: (2.365, 0.896),
    8: (2.306, 0.889),
    9: (2.262, 0.883),
}
"""Degrees of freedom -> quantiles of Student's t at 97.5% and at 80%."""
_NORMAL = (1.960, 0.842)


@dataclass(frozen=True)
class Estimate:
    """A mean over worlds with its 95% interval.

    Attributes:
        mean: of the worlds' values.
        half: of the interval's width; NaN for one world.
        detectable: the smallest true mean that would be told from 0 at 5% in four of five experiments like this one.
    """

    mean: float
    half: float
    detectable: float

    @property
    def ends(self) -> tuple[float, float]:
        """Of the interval."""
        return self.mean - self.half, self.mean + self.half

    def __str__(self) -> str:
        low, high = self.ends
        return f"{self.mean:.3f} [{low:.3f}, {high:.3f}]"


def estimate(worlds: Sequence[float]) -> Estimate:
    """From one value a world."""
    if len(worlds) < 2:
        return Estimate(mean(worlds), math.nan, math.nan)
    found, seldom = _STUDENT.get(len(worlds) - 1, _NORMAL)
    error = stdev(worlds) / math.sqrt(len(worlds))
    return Estimate(mean(worlds), found * error, (found + seldom) * error)


def over_people(values: Mapping[int, Mapping[str, float]]) -> Estimate:
    """From seed -> person -> value: people of a world are averaged first."""
    return estimate([mean(people.values()) for people in values.values()])


def difference(one: Mapping[int, Mapping[str, float]], other: Mapping[int, Mapping[str, float]]) -> Estimate:
    """One less the other, each person of each world with themselves."""
    return over_people(
        {seed: {user: value - other[seed][user] for user, value in people.items()} for seed, people in one.items()}
    )
