"""Tables and figures of the stages that are reported: finalists on unseen worlds, and a population at one setting."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, Protocol, TypeVar

import intervals
from fronts import Track, tracks_of
from intervals import Estimate
from recipes import OURS, RECIPES
from summary import MOVES, kind_of

Tracks = Mapping[int, Mapping[str, Track]]
"""Seed -> person -> track."""
_Values = TypeVar("_Values")


class Person(Protocol):
    """What a population's tables ask of people.

    Attributes:
        distance: how far what they want is from the base's manner, in [0, 1].
        noise: share of their labels that are wrong.
        share: of the topics in which they want their style.
    """

    @property
    def distance(self) -> float: ...

    @property
    def noise(self) -> float: ...

    @property
    def share(self) -> float: ...


AT_MANNER = (0.3, 0.5, 0.7)
WANTS: dict[str, Callable[[Person], bool]] = {
    "like the base": lambda one: one.distance == 0,
    "style in all topics": lambda one: one.distance > 0 and one.share == 1,
    "in some": lambda one: one.share < 1,
}


def by_recipe(cells: Sequence[dict[str, Any]]) -> dict[str, Tracks]:
    """Recipe -> everybody's tracks, recipes in the order of the cells."""
    found: dict[str, dict[int, dict[str, Track]]] = {}
    for cell in cells:
        found.setdefault(cell["recipe"], {})[cell["seed"]] = tracks_of(cell)
    return dict(found)


def windows(found: Mapping[str, Tracks]) -> str:
    """Windows and areas of the finalists, of those who must move and by kind of person."""
    kinds = list(dict.fromkeys(kind_of(user) for user in next(iter(next(iter(found.values())).values()))))
    lines = [["recipe", "window", *kinds, "area under the front"]]
    for recipe, tracks in sorted(found.items(), key=lambda pair: -_windows(pair[1]).mean):
        own = [_factor(_windows(tracks, (kind,))) for kind in kinds]
        area = intervals.over_people(_each(_only(tracks, MOVES), lambda track: track.area))
        lines.append([recipe, _factor(_windows(tracks)), *own, str(area)])
    return _table(lines)


def against_others(found: Mapping[str, Tracks]) -> str:
    """Each of ours less every other recipe, person by person, of those who must move; in brackets the detectable."""

    def window(value: Estimate) -> str:
        return f"{_factor(value)} ({math.exp(value.detectable):.2f}x)"

    moved = {name: _only(tracks, MOVES) for name, tracks in found.items()}
    windows, areas = (
        {name: _each(tracks, value) for name, tracks in moved.items()}
        for value in (lambda track: track.window, lambda track: track.area)
    )
    first = _against("window, as a factor: against", windows, intervals.difference, window)
    return f"{first}\n{_against('area under the front, difference: against', areas, intervals.difference)}"


def ends(found: Mapping[str, Tracks]) -> str:
    """Where early stopping on held-out pairs ends, and the last mark, with what is kept where no pair is."""
    lines = [["recipe", "stopped: style", "kept", "end: style", "kept", "covered", "uncovered", "degenerate"]]
    asked = all(track.style_covered for tracks in found.values() for own in tracks.values() for track in own.values())
    values: list[Callable[[Track], float]] = [
        lambda track: track.style[track.stopped],
        lambda track: track.kept[track.stopped],
        lambda track: track.style[-1],
        lambda track: track.kept[-1],
        lambda track: track.covered[-1],
        lambda track: track.uncovered[-1],
        lambda track: track.degenerate[-1],
    ]
    if asked:
        lines[0] += ["style there: covered", "uncovered"]
        values += [lambda track: track.style_covered[-1], lambda track: track.style_uncovered[-1]]
    for recipe, tracks in found.items():
        lines.append([recipe, *(str(intervals.over_people(_each(tracks, value))) for value in values)])
    return _table(lines)


def population(found: Mapping[str, Tracks], people: Mapping[str, Person]) -> str:
    """At each mark, for all: people served without loss, the worst tenth, and how loss goes with distance."""
    parts: dict[str, Callable[[Person], bool]] = {
        f"{share:.0%} wrong" if share else "no errors": lambda one, share=share: one.noise == share  # type: ignore[misc]
        for share in sorted({one.noise for one in people.values()})
    }
    parts |= {name: which for name, which in WANTS.items() if any(map(which, people.values()))}
    tenth = "worst tenth: served and kept"
    lines = [["recipe", "step", "served without loss", *parts, tenth, "lost for 1 of distance"]]
    for recipe, tracks in found.items():
        for mark, at in _marks(tracks):
            shown = [intervals.over_people(_wells(tracks, at))]
            shown += [intervals.over_people(_wells(_of(tracks, people, which), at)) for which in parts.values()]
            shown.append(intervals.estimate([_worst_tenth(list(own.values()), at) for own in tracks.values()]))
            shown.append(intervals.estimate([_slope(own, people, at) for own in tracks.values()]))
            lines.append([recipe, str(mark), *map(str, shown)])
    return _table(lines)


def population_against_others(found: Mapping[str, Tracks]) -> str:
    """Each of ours less every other recipe at the last marks, world by world; in brackets the detectable."""

    def less(one: Sequence[float], other: Sequence[float]) -> Estimate:
        return intervals.estimate([mine - theirs for mine, theirs in zip(one, other, strict=True)])

    measures: dict[str, Callable[[Sequence[Track]], float]] = {
        "served without loss": lambda own: mean(float(track.well(-1)) for track in own),
        "worst tenth": lambda own: _worst_tenth(own, -1),
    }
    tables = []
    for title, value in measures.items():
        worlds = {name: [value(list(own.values())) for own in tracks.values()] for name, tracks in found.items()}
        tables.append(_against(f"{title}, difference: against", worlds, less))
    return "\n".join(tables)


def on_text(cells: Sequence[dict[str, Any]]) -> str:
    """Manner and told facts of the finalists on real text: fronts, and the ends of the training."""
    rates = {cell["recipe"]: cell["learning_rate"] for cell in cells}
    head = ["recipe", "learning rate", "area under the front", *(f"told at manner {least}" for least in AT_MANNER)]
    lines = [[*head, "end: manner", "told", "covered", "uncovered", "degenerate"]]
    for recipe, tracks in by_recipe(cells).items():
        values: list[Callable[[Track], float]] = [lambda track: track.area]
        values += [lambda track, least=least: track.front(least) for least in AT_MANNER]  # type: ignore[misc]
        values += [lambda track: track.style[-1], lambda track: track.kept[-1], lambda track: track.covered[-1]]
        values += [lambda track: track.uncovered[-1], lambda track: track.degenerate[-1]]
        shown = [str(intervals.over_people(_each(tracks, value))) for value in values]
        lines.append([recipe, f"{rates[recipe]:g}", *shown])
    return _table(lines)


def on_text_against_others(cells: Sequence[dict[str, Any]]) -> str:
    """Each of ours less every other recipe, person by person; in brackets the detectable."""
    found = by_recipe(cells)
    measures: dict[str, Callable[[Track], float]] = {
        "area under the front": lambda track: track.area,
        f"told at manner {AT_MANNER[1]}": lambda track: track.front(AT_MANNER[1]),
    }
    tables = []
    for title, value in measures.items():
        values = {name: _each(tracks, value) for name, tracks in found.items()}
        tables.append(_against(f"{title}, difference: against", values, intervals.difference))
    return "\n".join(tables)


def figures(found: Mapping[str, Tracks], folder: Path) -> None:
    """The fronts and the trainings of the finalists, of those who must move."""
    import plot

    moved = {recipe: _only(tracks, MOVES) for recipe, tracks in found.items()}
    fronts = {recipe: [_front(tracks, least) for least in plot.AT] for recipe, tracks in moved.items()}
    plot.fronts(fronts, folder / "forgetting-fronts.svg")
    people = {recipe: [track for own in tracks.values() for track in own.values()] for recipe, tracks in moved.items()}
    plot.trainings(people, folder / "forgetting-trainings.svg")


def dose(found: Mapping[str, Tracks], people: Mapping[str, Person], folder: Path) -> None:
    """What is kept and how many answers are in the wanted style at the last mark, by distance."""
    import plot

    panels = {
        "kept of what the base knew": {
            recipe: _by_distance(tracks, people, lambda track: track.kept[-1]) for recipe, tracks in found.items()
        },
        "answers in the wanted style": {
            recipe: _by_distance(tracks, people, lambda track: track.style[-1]) for recipe, tracks in found.items()
        },
    }
    plot.dose(panels, folder / "forgetting-dose.svg")


def _by_distance(
    tracks: Tracks, of: Mapping[str, Person], value: Callable[[Track], float]
) -> list[tuple[float, Estimate]]:
    """Means of people in bands of distance: the base's own manner, and quarters above it."""
    bands: dict[float, list[str]] = {}
    for user in next(iter(tracks.values())):
        bands.setdefault(math.ceil(of[user].distance * 4) / 4, []).append(user)
    return [
        (
            band,
            intervals.over_people(
                {seed: {user: value(people[user]) for user in users} for seed, people in tracks.items()}
            ),
        )
        for band, users in sorted(bands.items())
    ]


def _wells(tracks: Tracks, at: int) -> dict[int, dict[str, float]]:
    return _each(tracks, lambda track: float(track.well(at)))


def _of(tracks: Tracks, of: Mapping[str, Person], which: Callable[[Person], bool]) -> Tracks:
    return {seed: {user: track for user, track in people.items() if which(of[user])} for seed, people in tracks.items()}


def _front(tracks: Tracks, least: float) -> Estimate:
    return intervals.over_people(_each(tracks, lambda track: track.front(least)))


def _each(tracks: Tracks, value: Callable[[Track], float]) -> dict[int, dict[str, float]]:
    return {seed: {user: value(track) for user, track in people.items()} for seed, people in tracks.items()}


def _only(tracks: Tracks, kinds: Sequence[str]) -> Tracks:
    return {
        seed: {user: track for user, track in people.items() if kind_of(user) in kinds}
        for seed, people in tracks.items()
    }


def _windows(tracks: Tracks, kinds: Sequence[str] = MOVES) -> Estimate:
    return intervals.over_people(_each(_only(tracks, kinds), lambda track: track.window))


def _against(
    title: str,
    values: Mapping[str, _Values],
    less: Callable[[_Values, _Values], Estimate],
    shown: Callable[[Estimate], str] = lambda value: f"{value} ({value.detectable:.3f})",
) -> str:
    """A column for each of ours, a row for every recipe: what the former has more than the latter."""
    ours = [name for name in values if RECIPES[name].family == OURS]
    lines = [[title, *ours]]
    for name in values:
        lines.append([name, *("" if one == name else shown(less(values[one], values[name])) for one in ours)])
    return _table(lines)


def _marks(tracks: Tracks) -> Iterator[tuple[int, int]]:
    """Every mark with its number."""
    track = next(iter(next(iter(tracks.values())).values()))
    return ((mark, number) for number, mark in enumerate(track.marks))


def _worst_tenth(people: Sequence[Track], at: int) -> float:
    """Mean over the tenth of the people who have least of style or knowledge, whichever they have less of."""
    least = sorted(min(track.style[at], track.kept[at]) for track in people)
    return mean(least[: max(1, len(least) // 10)])


def _slope(people: Mapping[str, Track], of: Mapping[str, Person], at: int) -> float:
    """What is lost more for every 1 of distance: the straight line with the least squares."""
    points = [(of[user].distance, 1 - track.kept[at]) for user, track in people.items()]
    middle = mean(x for x, _ in points), mean(y for _, y in points)
    spread = sum((x - middle[0]) ** 2 for x, _ in points)
    return sum((x - middle[0]) * (y - middle[1]) for x, y in points) / spread


def _factor(value: Estimate) -> str:
    low, high = value.ends
    return f"{math.exp(value.mean):.2f}x [{math.exp(low):.2f}, {math.exp(high):.2f}]"


def _table(lines: Sequence[Sequence[str]]) -> str:
    head, *rest = lines
    return "".join(f"| {' | '.join(line)} |\n" for line in [head, ["---"] * len(head), *rest])
