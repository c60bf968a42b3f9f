"""One setting for all: recipes on people whose labels are right and on those whose labels err or whose taste varies.

One learning rate and one number of steps for everybody, as in practice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from fronts import Track, tracks_of
from recipes import OURS, RECIPES, SFT

NAMED = {
    "no errors": (0, 1, 5, 7),
    "10% wrong": (40, 41),
    "20% wrong": (80, 81),
    "some topics": (10, 21),
}
"""Kind -> numbers of the world's people."""
_KIND_OF = {number: kind for kind, numbers in NAMED.items() for number in numbers}


@dataclass(frozen=True)
class Setting:
    """A recipe at a learning rate, after the number of steps that is best for all.

    Attributes:
        mark: those steps.
        least: mean over people of style or kept, whichever is less, at that mark.
        well: share of people who are served without loss.
        kinds: the same two by kind of person.
    """

    recipe: str
    learning_rate: float
    mark: int
    least: float
    well: float
    kinds: Mapping[str, tuple[float, float]]


def settings(screen: Iterable[dict[str, Any]], harder: Iterable[dict[str, Any]]) -> list[Setting]:
    """Recipes that both kinds of people were tried with, each at its best learning rate and mark, best first."""
    easier, tried = [*screen], [*harder]
    marks = tuple(tried[0]["marks"])
    wanted = set.intersection(*({(cell["recipe"], cell["learning_rate"]) for cell in some} for some in (easier, tried)))
    people: dict[tuple[str, float], list[tuple[str, Track]]] = {}
    for cell in [*easier, *tried]:
        key = (cell["recipe"], cell["learning_rate"])
        if key in wanted:
            people.setdefault(key, []).extend((_kind(user), track) for user, track in tracks_of(cell).items())
    best: dict[str, Setting] = {}
    for (recipe, rate), some in people.items():
        for mark in marks:
            found = _setting(recipe, rate, mark, some)
            if recipe not in best or found.least > best[recipe].least:
                best[recipe] = found
    return sorted(best.values(), key=lambda one: -one.least)


def preset(found: Sequence[Setting]) -> str:
    """What becomes the preset: the best of ours that compares pairs and needs no general prompts."""
    return next(one for one in _ours(found) if RECIPES[one].loss != SFT and not RECIPES[one].general)


def best_beside(found: Sequence[Setting], names: Sequence[str]) -> str:
    """The best of ours beside some."""
    return next(one for one in _ours(found) if one not in names)


def _ours(found: Sequence[Setting]) -> list[str]:
    return [one.recipe for one in found if RECIPES[one.recipe].family == OURS]


def markdown(found: Sequence[Setting]) -> str:
    """A table of settings: style or kept, whichever is less; in brackets the share of people served without loss."""
    head = ["recipe", "learning rate", "steps", "all", *NAMED]
    lines = [head, ["---"] * len(head)]
    for one in found:
        kinds = [f"{least:.2f} ({well:.0%})" for least, well in (one.kinds[kind] for kind in NAMED)]
        lines.append([one.recipe, f"{one.learning_rate:g}", str(one.mark), f"{one.least:.3f} ({one.well:.0%})", *kinds])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _setting(recipe: str, rate: float, mark: int, people: Sequence[tuple[str, Track]]) -> Setting:
    at = [(kind, _at(track, mark)) for kind, track in people]
    kinds = {kind: _means([value for own, value in at if own == kind]) for kind in NAMED}
    least, well = _means([value for _, value in at])
    return Setting(recipe, rate, mark, least, well, kinds)


def _at(track: Track, mark: int) -> tuple[float, float]:
    number = track.marks.index(mark)
    return min(track.style[number], track.kept[number]), float(track.well(number))


def _means(values: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return mean(least for least, _ in values), mean(well for _, well in values)


def _kind(user: str) -> str:
    return _KIND_OF[int(user.rsplit("-", 1)[1])]
