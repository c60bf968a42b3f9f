"""Figures of the page: fronts with bands, and what is served and kept along the training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from fronts import KEPT, SERVED, Track
from intervals import Estimate

mpl.use("svg")
import matplotlib.pyplot as plt

mpl.rcParams.update({"svg.hashsalt": "forgetting", "svg.fonttype": "none", "font.size": 9})
AT = [number / 50 for number in range(51)]


def fronts(recipes: Mapping[str, Sequence[Estimate]], path: Path) -> None:
    """The most that is kept for people served at least so well, a mean over worlds, with 95% bands.

    Args:
        recipes: name -> an estimate for each of `AT`.
        path: the SVG to write.
    """
    figure, axes = plt.subplots(figsize=(6.4, 4.2))
    for name, values in recipes.items():
        (line,) = axes.plot(AT, [value.mean for value in values], label=name, linewidth=1.5)
        low, high = zip(*(value.ends for value in values), strict=True)
        axes.fill_between(AT, low, high, color=line.get_color(), alpha=0.12, linewidth=0)
    axes.set(xlabel="served: answers in the wanted style, at least", ylabel="kept of what the base knew")
    axes.set_ylim(0, 1.02)
    axes.legend(frameon=False, loc="lower left")
    _save(figure, path)


def trainings(recipes: Mapping[str, Sequence[Track]], path: Path) -> None:
    """Style and knowledge at every mark, means over people."""
    figure, both = plt.subplots(1, 2, figsize=(8.4, 3.4), sharex=True, sharey=True)
    for name, tracks in recipes.items():
        for axes, attribute in zip(both, ("style", "kept"), strict=True):
            by_mark = zip(*(getattr(track, attribute) for track in tracks), strict=True)
            axes.plot(tracks[0].marks, [sum(values) / len(values) for values in by_mark], label=name, linewidth=1.5)
    for axes, title, level in zip(both, ("served", "kept"), (SERVED, KEPT), strict=True):
        axes.axhline(level, color="grey", linewidth=0.6, linestyle=":")
        axes.set(title=title, xscale="log", xlabel="steps", ylim=(0, 1.02))
    ticks = both[0].get_xlim()
    both[0].set_xticks([mark for mark in (10, 20, 40, 80, 160) if ticks[0] <= mark <= ticks[1]])
    both[0].get_xaxis().set_major_formatter(mpl.ticker.ScalarFormatter())
    both[0].minorticks_off()
    both[1].legend(frameon=False, loc="lower left")
    _save(figure, path)


def dose(panels: Mapping[str, Mapping[str, Sequence[tuple[float, Estimate]]]], path: Path) -> None:
    """A measure of people at a distance from the base's manner, means over worlds, with 95% intervals.

    Args:
        panels: title -> recipe -> (distance, measure).
        path: the SVG to write.
    """
    figure, all_axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.4), sharey=True)
    for axes, (title, recipes) in zip(all_axes, panels.items(), strict=True):
        for number, (name, points) in enumerate(recipes.items()):
            # Beside each other, so that intervals do not hide one another.
            places = [distance + 0.012 * (number - 1) for distance, _ in points]
            means, halves = [value.mean for _, value in points], [value.half for _, value in points]
            axes.errorbar(places, means, yerr=halves, label=name, linewidth=1.5, elinewidth=0.8, capsize=2)
        axes.set(title=title, xlabel="distance from the base's manner", ylim=(0, 1.02))
    all_axes[0].legend(frameon=False, loc="lower left")
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
