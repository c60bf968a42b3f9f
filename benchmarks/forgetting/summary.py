"""From cells to tables: every recipe at every learning rate, and each recipe at its best."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from fronts import Track, one_setting, tracks_of
from recipes import RECIPES

PLAIN_DPO = "dpo b0.1"
BASELINES = ("dpo", "ipo", "dpop", "dpo nll", "kl", "sft")
"""Families of baselines of which the best one is a finalist, beside plain DPO."""
MOVES = ("keeps", "replaces", "declines")
"""Kinds of people who must be moved. Who likes the base is served by whatever does nothing, and decides nothing."""
KIND_OF = {
    "plain": "likes the base",
    "cheerful": "keeps",
    "polite": "keeps",
    "verbose": "keeps",
    "declining": "declines",
}
"""Style -> kind of person; the others replace the base's form."""


CHANGES: dict[str, tuple[tuple[str, ...], ...]] = {
    "beta": (("dpo b0.1", "dpo b0.3", "dpo b1", "dpo b3", "dpo b10"),),
    "the chosen response's likelihood": (
        ("dpo b0.1", "dpo b0.1 nll1"),
        ("dpo b1", "dpo b1 nll1"),
        ("dpo b3", "dpo b3 nll1"),
        ("hinge0.3", "hinge0.3 nll1"),
        ("hinge0.3 sampled", "hinge0.3 nll1 sampled", "hinge0.3 nll3 sampled"),
        ("hinge0.3 general", "hinge0.3 nll1 general"),
    ),
    "weight of the anchor": (
        ("dpo b0.1", "hinge0.1", "hinge0.3"),
        ("dpo b0.1", "dpo b0.1 kl0.3", "dpo b0.1 kl1"),
        ("sft", "sft hinge0.01 sampled", "sft hinge0.03 sampled"),
        ("sft hinge0.01 sampled general", "sft hinge0.03 sampled general"),
        ("b0.3 hinge0.1 nll1 sampled general", "b0.3 hinge0.3 nll1 sampled general"),
        ("b1 hinge0.03 nll1 general", "b1 hinge0.1 nll1 general"),
    ),
    "form of the anchor": (
        ("hinge0.3", "absolute0.3", "squared0.03", "nll0.3", "token-hinge3"),
        ("b0.3 hinge0.1 nll1 sampled general", "b0.3 kl0.1 nll1 general"),
    ),
    "greedy or sampled base responses": (
        ("hinge0.3", "hinge0.3 sampled"),
        ("hinge0.3 nll1", "hinge0.3 nll1 sampled"),
        ("b1 hinge0.03 nll1", "b1 hinge0.03 nll1 sampled"),
        ("hinge0.3 nll1 general", "hinge0.3 nll1 sampled general"),
        ("b0.3 hinge0.3 nll1 general", "b0.3 hinge0.3 nll1 sampled general"),
        ("b1 hinge0.03 nll1 general", "b1 hinge0.03 nll1 sampled general"),
    ),
    "general prompts": (
        ("hinge0.3", "hinge0.3 general"),
        ("hinge0.3 nll1", "hinge0.3 nll1 general"),
        ("hinge0.3 nll1 sampled", "hinge0.3 nll1 sampled general"),
        ("b0.3 hinge0.1 nll1 sampled", "b0.3 hinge0.1 nll1 sampled general"),
        ("b1 hinge0.03 nll1", "b1 hinge0.03 nll1 general"),
        ("b1 hinge0.03 nll1 sampled", "b1 hinge0.03 nll1 sampled general"),
        ("hinge0.3 nll3 sampled", "hinge0.3 nll3 sampled general"),
        ("b1 hinge0.1 nll10 sampled", "b1 hinge0.1 nll10 sampled general"),
        ("sft hinge0.01 sampled", "sft hinge0.01 sampled general"),
        ("sft hinge0.03 sampled", "sft hinge0.03 sampled general"),
    ),
}
"""What changes -> recipes that differ in nothing else, in turn."""


@dataclass(frozen=True)
class Row:
    """A recipe at a learning rate, over seeds and people.

    Attributes:
        window: mean natural log of a window's last over its first step, of those who must move.
        open: share of their windows that reach the last mark.
        area: mean area under the front, of those who must move.
        together: share of people who are served without loss at the best mark for all, a mean over seeds.
        marks: that mark, of each seed.
        stopped_style, stopped_kept: where the loss on held-out pairs is lowest, means.
        last_style, last_kept: at the last mark.
        windows: by kind of person.
    """

    recipe: str
    learning_rate: float
    window: float
    open: float
    area: float
    together: float
    marks: tuple[int, ...]
    stopped_style: float
    stopped_kept: float
    last_style: float
    last_kept: float
    windows: dict[str, float]


def rows(cells: Iterable[dict[str, Any]]) -> list[Row]:
    """One row a recipe and learning rate."""
    grouped: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for cell in cells:
        grouped.setdefault((cell["recipe"], cell["learning_rate"]), []).append(cell)
    return [_row(*key, [tracks_of(cell) for cell in some]) for key, some in grouped.items()]


def _row(recipe: str, rate: float, by_seed: Sequence[dict[str, Track]]) -> Row:
    people = [(user, track) for tracks in by_seed for user, track in tracks.items()]
    settings = [one_setting(list(tracks.values())) for tracks in by_seed]

    def over(value: Callable[[Track], float], kinds: Sequence[str] | None = None) -> float:
        return mean(value(track) for user, track in people if kinds is None or kind_of(user) in kinds)

    return Row(
        recipe=recipe,
        learning_rate=rate,
        window=over(lambda track: track.window, MOVES),
        open=over(lambda track: float(track.open), MOVES),
        area=over(lambda track: track.area, MOVES),
        together=mean(share for share, _ in settings),
        marks=tuple(mark for _, mark in settings),
        stopped_style=over(lambda track: track.style[track.stopped]),
        stopped_kept=over(lambda track: track.kept[track.stopped]),
        last_style=over(lambda track: track.style[-1]),
        last_kept=over(lambda track: track.kept[-1]),
        windows={kind: over(lambda track: track.window, (kind,)) for kind in dict.fromkeys(map(kind_of, dict(people)))},
    )


def kind_of(user: str) -> str:
    """The kind of person that an id tells of."""
    return KIND_OF.get(user.rsplit("-", 1)[0], "replaces")


def best(found: Sequence[Row]) -> list[Row]:
    """Each recipe at the learning rate with the widest mean window (of equal ones, the largest area), best first."""
    chosen: dict[str, Row] = {}
    for row in sorted(found, key=_worth):
        chosen[row.recipe] = row
    return sorted(chosen.values(), key=_worth, reverse=True)


def finalists(found: Sequence[Row], ours: Sequence[str]) -> list[Row]:
    """Who goes on from the screen: plain DPO, the best of each family of baselines beside it, and some of ours.

    Args:
        found: the screen.
        ours: names of ours that go on.
    """
    ranked = best(found)
    others = [row for row in ranked if row.recipe != PLAIN_DPO]
    firsts = [next(row for row in others if RECIPES[row.recipe].family == family) for family in BASELINES]
    named = [next(row for row in ranked if row.recipe == name) for name in (PLAIN_DPO, *ours)]
    return [named[0], *firsts, *named[1:]]


def changes(found: Sequence[Row]) -> str:
    """What one change does to the window, each recipe at its best learning rate."""
    windows = {row.recipe: math.exp(row.window) for row in best(found)}
    lines = ["| what changes | recipes in turn | window |", "| --- | --- | --- |"]
    for title, chains in CHANGES.items():
        for number, names in enumerate(chains):
            shown = ", ".join(f"{windows[name]:.2f}x" for name in names)
            lines.append(f"| {'' if number else title} | {', '.join(names)} | {shown} |")
    return "\n".join(lines) + "\n"


def _worth(row: Row) -> tuple[float, float]:
    return round(row.window, 3), row.area


def markdown(found: Sequence[Row]) -> str:
    """A table of rows."""
    kinds = list(found[0].windows)
    measures = ["open", "area", "together", "stopped: style", "kept", "end: style", "kept"]
    head = ["recipe", "learning rate", "window", *kinds, *measures]
    lines = [head, ["---"] * len(head)]
    for row in found:
        factors = [f"{math.exp(value):.2f}x" for value in (row.window, *row.windows.values())]
        shares = (row.stopped_style, row.stopped_kept, row.last_style, row.last_kept)
        ends = [f"{value:.2f}" for value in shares]
        values = [f"{row.open:.0%}", f"{row.area:.3f}", f"{row.together:.0%}"]
        lines.append([row.recipe, f"{row.learning_rate:g}", *factors, *values, *ends])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
