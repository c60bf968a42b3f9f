"""What a training along its marks is worth: fronts, windows, and the one setting for all. Numbers in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

SERVED, KEPT = 0.95, 0.97
"""From where on a person is served, and nothing is lost."""
_KNOWLEDGE = ("told", "base_prefix", "own_prefix")


@dataclass(frozen=True)
class Track:
    """One person's training.

    Attributes:
        marks: optimiser steps.
        style: share of answers in the wanted style, a value a mark.
        kept: share of what the base knew that is still known, by the worst of the three ways of asking.
        loss: on held-out pairs.
        covered, uncovered: kept outside the topics of the preferences, where general prompts reach, and where not.
        degenerate: share of degenerate answers.
        style_covered, style_uncovered: as `style`, there; empty in results that were made before it was asked.
    """

    marks: tuple[int, ...]
    style: tuple[float, ...]
    kept: tuple[float, ...]
    loss: tuple[float, ...]
    covered: tuple[float, ...] = ()
    uncovered: tuple[float, ...] = ()
    degenerate: tuple[float, ...] = ()
    style_covered: tuple[float, ...] = ()
    style_uncovered: tuple[float, ...] = ()

    @classmethod
    def of(cls, marks: Sequence[int], measures: dict[str, list[float | None]]) -> Track:
        """From the measures of a cell."""
        asked = [measures[name] for name in _KNOWLEDGE]
        kept = [min(value for value in values if value is not None) for values in zip(*asked, strict=True)]
        names = ("covered", "uncovered", "degenerate", "style_covered", "style_uncovered")
        rest = {name: _numbers(measures.get(name, [])) for name in names}
        # A training that broke off has no loss from there on.
        loss = tuple(math.inf if value is None else value for value in measures["loss"])
        return cls(tuple(marks), _numbers(measures["style"]), tuple(kept), loss, **rest)

    @cached_property
    def _dense(self) -> list[tuple[float, float, float]]:
        """(log-steps of a short stretch, style, kept): linear between marks, over log-steps."""
        found: list[tuple[float, float, float]] = []
        for number in range(len(self.marks) - 1):
            width = math.log(self.marks[number + 1] / self.marks[number]) / _FINE
            for part in range(_FINE):
                share = (part + 0.5) / _FINE
                between = [
                    values[number] * (1 - share) + values[number + 1] * share for values in (self.style, self.kept)
                ]
                found.append((width, between[0], between[1]))
        return found

    @property
    def window(self) -> float:
        """For how long the person is served and nothing is lost: natural log of last over first step; 0 for never.

        Of a window that is interrupted, its parts together; between marks it is interpolated. One that reaches the last
        mark (or the first) is longer than measured: see `open`.
        """
        return sum(width for width, style, kept in self._dense if style >= SERVED and kept >= KEPT)

    @property
    def open(self) -> bool:
        """Whether the window reaches the last mark."""
        return self.well(len(self.marks) - 1)

    @property
    def area(self) -> float:
        """Under the front, in [0, 1]: the most that is kept where the style is at least s, a mean over s.

        The base itself is no point of it: for who likes it the area says nothing.
        """
        points = sorted([(style, kept) for _, style, kept in self._dense], reverse=True)
        area, best, last = 0.0, 0.0, None
        for style, kept in points:
            if last is not None:
                area += best * (last - style)
            best, last = max(best, kept), style
        return area + best * (last or 0.0)

    def front(self, least: float) -> float:
        """The most that is kept where the style is at least so much; 0 where it never is."""
        return max((kept for _, style, kept in self._dense if style >= least), default=0.0)

    @property
    def stopped(self) -> int:
        """Number of the mark with the lowest loss on held-out pairs: where early stopping ends."""
        return min(range(len(self.marks)), key=lambda number: self.loss[number])

    def well(self, number: int) -> bool:
        """Whether the person is served and nothing is lost at a mark."""
        return self.style[number] >= SERVED and self.kept[number] >= KEPT


_FINE = 20


def one_setting(tracks: Sequence[Track]) -> tuple[float, int]:
    """The largest share of people who are served without loss at one and the same mark, and that mark."""
    shares = [sum(track.well(number) for track in tracks) / len(tracks) for number in range(len(tracks[0].marks))]
    best = max(range(len(shares)), key=lambda number: shares[number])
    return shares[best], tracks[0].marks[best]


def tracks_of(cell: dict[str, Any]) -> dict[str, Track]:
    """Person -> track."""
    return {user: Track.of(cell["marks"], measures) for user, measures in cell["people"].items()}


def _numbers(values: Sequence[float | None]) -> tuple[float, ...]:
    return tuple(float("nan") if value is None else value for value in values)
