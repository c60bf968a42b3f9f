"""Tables and figures of the stages that are reported: finalists on unseen worlds, and a population at one setting."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import bootstrap
from bootstrap import Estimate
from fronts import Track, tracks_of
from recipes import OURS, RECIPES
from summary import kind_of

Tracks = Mapping[int, Mapping[str, Track]]
"""Seed -> person -> track."""


def by_recipe(cells: Sequence[dict[str, Any]]) -> dict[str, Tracks]:
    """Recipe -> everybody's tracks."""
    found: dict[str, dict[int, dict[str, Track]]] = {}
    for cell in cells:
        found.setdefault(cell["recipe"], {})[cell["seed"]] = tracks_of(cell)
    return dict(found)


def measured(tracks: Tracks, value: Callable[[Track], float]) -> dict[int, dict[str, float]]:
    """A value of every track."""
    return {seed: {user: value(track) for user, track in people.items()} for seed, people in tracks.items()}


def windows(found: Mapping[str, Tracks]) -> str:
    """Windows and areas of the finalists, with intervals, and by kind of person."""
    kinds = list(dict.fromkeys(kind_of(user) for people in next(iter(found.values())).values() for user in people))
    lines = [["recipe", "window", *kinds, "area under the front"]]
    for recipe, tracks in sorted(found.items(), key=lambda pair: -_window(pair[1]).mean):
        cells = [_factor(_window(tracks))]
        cells += [_factor(_window(_only(tracks, kind))) for kind in kinds]
        lines.append([recipe, *cells, str(bootstrap.estimate(measured(tracks, lambda track: track.area)))])
    return _table(lines)


def against_baselines(found: Mapping[str, Tracks]) -> str:
    """The best of ours less each baseline, person by person; `detectable` is the smallest difference to be found."""
    best = max((name for name in found if RECIPES[name].family == OURS), key=lambda name: _window(found[name]).mean)
    lines = [[f"{best} less", "window", "detectable", "area", "detectable"]]
    for recipe, tracks in found.items():
        if RECIPES[recipe].family == OURS:
            continue
        width = _difference(found[best], tracks, lambda track: track.window)
        area = _difference(found[best], tracks, lambda track: track.area)
        smallest = f"{math.exp(width.detectable):.2f}x", f"{area.detectable:.3f}"
        lines.append([recipe, _factor(width), smallest[0], str(area), smallest[1]])
    return _table(lines)


def stopped(found: Mapping[str, Tracks]) -> str:
    """Where early stopping on held-out pairs ends: served and kept there."""
    lines = [["recipe", "style", "kept"]]
    for recipe, tracks in found.items():
        style = bootstrap.estimate(measured(tracks, lambda track: track.style[track.stopped]))
        kept = bootstrap.estimate(measured(tracks, lambda track: track.kept[track.stopped]))
        lines.append([recipe, str(style), str(kept)])
    return _table(lines)


def population(found: Mapping[str, Tracks], distances: Mapping[str, float]) -> str:
    """At each mark, for all: people served without loss, the worst tenth, and how loss goes with distance.

    Args:
        found: recipe -> tracks.
        distances: person -> how far what they want is from the base's manner, in [0, 1].
    """
    lines = [["recipe", "step", "served without loss", "worst tenth: served and kept", "lost for 1 of distance"]]
    for recipe, tracks in found.items():
        marks = next(iter(next(iter(tracks.values())).values())).marks
        for number, mark in enumerate(marks):
            well = bootstrap.estimate(measured(tracks, lambda track, at=number: float(track.well(at))))  # type: ignore[misc]
            both = measured(tracks, lambda track, at=number: min(track.style[at], track.kept[at]))  # type: ignore[misc]
            tenth = mean(_worst_tenth(list(people.values())) for people in both.values())
            low, high = _interval(bootstrap.resampled(both, _worst_tenth))
            lost = {
                seed: {user: (distances[user], 1 - track.kept[number]) for user, track in people.items()}
                for seed, people in tracks.items()
            }
            slope = mean(_slope(list(people.values())) for people in lost.values())
            slopes = _interval(bootstrap.resampled(lost, _slope))
            dose = f"{slope:.3f} [{slopes[0]:.3f}, {slopes[1]:.3f}]"
            lines.append([recipe, str(mark), str(well), f"{tenth:.3f} [{low:.3f}, {high:.3f}]", dose])
    return _table(lines)


def figures(found: Mapping[str, Tracks], folder: Path) -> None:
    """The fronts and the trainings of the finalists."""
    import plot

    bands = {}
    for recipe, tracks in found.items():
        lines = {seed: {user: track.front(plot.AT) for user, track in own.items()} for seed, own in tracks.items()}
        ends = [
            _interval(bootstrap.resampled(lines, lambda some, at=number: mean(line[at] for line in some), draws=500))  # type: ignore[misc]
            for number in range(len(plot.AT))
        ]
        bands[recipe] = [low for low, _ in ends], [high for _, high in ends]
    everybody = {
        recipe: [track for own in tracks.values() for track in own.values()] for recipe, tracks in found.items()
    }
    plot.fronts(everybody, bands, folder / "forgetting-fronts.svg")
    plot.trainings(everybody, folder / "forgetting-trainings.svg")


def _window(tracks: Tracks) -> Estimate:
    return bootstrap.estimate(measured(tracks, lambda track: track.window))


def _difference(one: Tracks, other: Tracks, value: Callable[[Track], float]) -> Estimate:
    return bootstrap.difference(measured(one, value), measured(other, value))


def _only(tracks: Tracks, kind: str) -> Tracks:
    return {
        seed: {user: track for user, track in people.items() if kind_of(user) == kind}
        for seed, people in tracks.items()
    }


def _worst_tenth(values: Sequence[float]) -> float:
    return mean(sorted(values)[: max(1, len(values) // 10)])


def _slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the straight line with the least squares; 0 where nobody differs."""
    middle = mean(x for x, _ in points), mean(y for _, y in points)
    spread = sum((x - middle[0]) ** 2 for x, _ in points)
    return sum((x - middle[0]) * (y - middle[1]) for x, y in points) / spread if spread else 0.0


def _interval(drawn: Sequence[float]) -> tuple[float, float]:
    ordered = sorted(drawn)
    return ordered[len(drawn) // 40], ordered[-1 - len(drawn) // 40]


def _factor(value: Estimate) -> str:
    return f"{math.exp(value.mean):.2f}x [{math.exp(value.low):.2f}, {math.exp(value.high):.2f}]"


def _table(lines: Sequence[Sequence[str]]) -> str:
    head, *rest = lines
    return "".join(f"| {' | '.join(line)} |\n" for line in [head, ["---"] * len(head), *rest])
