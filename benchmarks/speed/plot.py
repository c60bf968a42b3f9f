"""The figure of docs/speed.md: ratios beside what was aimed at, and curves of cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

COLOURS = {
    "ours": "#1b6ca8",
    "ours_flex": "#3fa796",
    "trl": "#c1666b",
    "ours_one_by_one": "#8fb8de",
    "peft": "#d9a441",
}
NAMES = {
    "ours": "pluralign",
    "ours_flex": "pluralign, FlexAttention",
    "trl": "TRL",
    "ours_one_by_one": "pluralign, one by one",
    "peft": "a loop of PEFT adapters",
}


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Write the figure; the file's ending names its format."""
    plt.rcParams.update({"svg.hashsalt": "speed", "svg.fonttype": "none", "font.size": 8})
    claims = [claim for workload in results["workloads"].values() for claim in workload["claims"]]
    curves = results["curves"]
    height = 0.6 + 0.2 * len(claims)
    figure = plt.figure(figsize=(10, height + 2.4 * bool(curves)), layout="constrained")
    above, *below = figure.subfigures(2, 1, height_ratios=[height, 2.4]) if curves else [figure]
    _ratios(above.subplots(), claims)
    if below:
        for axes, curve in zip(below[0].subplots(1, len(curves), squeeze=False)[0], curves.values(), strict=True):
            _curve(axes, curve)
    figure.savefig(path, metadata={"Date": None})


def _ratios(axes: Any, claims: list[Mapping[str, Any]]) -> None:
    """How many times less of time or memory; a mark where the aim was."""
    for row, claim in enumerate(claims):
        low, high = (_times(claim, bound) for bound in claim["interval"])
        middle = _times(claim, claim["ratio"])
        axes.barh(row, middle, color=COLOURS["ours"], height=0.6)
        axes.plot(sorted((low, high)), (row, row), color="black", linewidth=1)
        if claim["aim"] is not None:
            axes.plot([_times(claim, claim["aim"])] * 2, (row - 0.4, row + 0.4), color="#c1666b", linewidth=2)
    axes.set_yticks(range(len(claims)), [claim["title"] for claim in claims])
    axes.invert_yaxis()
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.set_title("times less time or memory (line: 95% interval, mark: what was aimed at)", fontsize=8)


def _times(claim: Mapping[str, Any], value: float) -> float:
    return 1 / value if claim["inverse"] else value


def _curve(axes: Any, curve: Mapping[str, Any]) -> None:
    points = curve["points"]
    for side in (name for name in COLOURS if any(name in point for point in points)):
        there = [(point["x"], point[side]) for point in points if side in point]
        axes.plot(*zip(*there, strict=True), marker="o", markersize=3, color=COLOURS[side], label=NAMES[side])
    if max(point["x"] for point in points) > 8 * min(point["x"] for point in points):
        axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(curve["axis"].replace(" (", "\n("))
    axes.set_ylabel(curve["unit"])
    axes.legend(frameon=False)
