"""Intervals over worlds and people: worlds are drawn again, and in each of them people."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import TypeVar

DRAWS = 2000
DETECTED = 1.96 + 0.84
"""Standard errors that a difference must have to be found at 5% in four of five experiments."""
Value = TypeVar("Value")
BySeed = Mapping[int, Mapping[str, Value]]
"""Seed -> person -> value."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95% interval, and the smallest true difference that would have been found."""

    mean: float
    low: float
    high: float
    detectable: float

    def as_dict(self) -> dict[str, float]:
        """For a JSON file."""
        return {name: round(value, 4) for name, value in vars(self).items()}

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def estimate(values: BySeed[float], seed: int = 0) -> Estimate:
    """Mean over people, every world counting alike."""
    drawn = resampled(values, lambda people: mean(people), seed)
    ordered = sorted(drawn)
    at = mean(mean(people.values()) for people in values.values())
    return Estimate(at, ordered[len(drawn) // 40], ordered[-1 - len(drawn) // 40], DETECTED * stdev(drawn))


def difference(one: BySeed[float], other: BySeed[float], seed: int = 0) -> Estimate:
    """Mean difference, each person of each world with themselves."""
    paired = {
        world: {user: value - other[world][user] for user, value in people.items()} for world, people in one.items()
    }
    return estimate(paired, seed)


def resampled(
    values: BySeed[Value], of_world: Callable[[Sequence[Value]], float], seed: int = 0, draws: int = DRAWS
) -> list[float]:
    """What a mean over worlds comes to when worlds, and within them people, are drawn with replacement."""
    draw = random.Random(seed)
    worlds = [list(people.values()) for people in values.values()]
    return [
        mean(of_world(draw.choices(people, k=len(people))) for people in draw.choices(worlds, k=len(worlds)))
        for _ in range(draws)
    ]
