"""Tables and plots of `compare`: every method, ours against the best of the others, and what intervals hold."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(1, str(Path(__file__).parents[1] / "forgetting"))

from intervals import estimate

OURS = "taste"
SPREAD = "mean"
"""The method whose interval is the training groups' spread."""
AGAINST = {"alignment": 1, "accuracy": 1, "nll": -1}
"""Measure -> whether more of it is better."""


def compare_table(found: Mapping[str, Any]) -> str:
    """Alignment by method and answers, ± half of its 95% interval over splits, and in brackets accuracy and nats."""
    return _by_size(found, _figures)


def width_table(found: Mapping[str, Any]) -> str:
    """Of the 80% intervals: what they hold and how wide they are, beside the training groups' spread; ± as above."""
    return _by_size(found, _held, [OURS, SPREAD])


def against_table(found: Mapping[str, Any]) -> str:
    """Ours less the best other method of each size and measure, split by split, with what could be told from 0."""
    lines = ["| protocol | answers | measure | best other | ours better by | detectable | splits |", "| --- " * 7 + "|"]
    for protocol, size in dict.fromkeys((row["protocol"], row["size"]) for row in _rows(found)):
        for measure, sign in AGAINST.items():
            values = _by_seed(found, protocol, size, measure)
            ours = values.pop(OURS, {})
            # A method that was not measured on all splits of ours is no match.
            able = {method: some for method, some in values.items() if ours.keys() <= some.keys()}
            if ours and able:
                best = max(able, key=lambda method: sign * mean(able[method][seed] for seed in ours))
                gain = estimate([sign * (value - able[best][seed]) for seed, value in ours.items()])
                low, high = gain.ends
                shown = f"{gain.mean:+.4f} [{low:+.4f}, {high:+.4f}] | {gain.detectable:.4f} | {len(ours)}"
                lines.append(f"| {protocol} | {size} | {measure} | {best} | {shown} |")
    return "\n".join(lines) + "\n"


def plot_results(found: Mapping[str, Any], path: Path) -> None:
    """Alignment against answers, every method of every protocol."""
    from pluralign.fewshot.comparison import Summary
    from pluralign.fewshot.plot import plot_comparison

    plot_comparison([Summary(**one) for one in found["summaries"]], path)


def _figures(one: Mapping[str, Any]) -> str:
    means = one["means"]
    margin = f" ± {one['margins']['alignment']:.3f}" if "alignment" in one["margins"] else ""
    return f"{means['alignment']:.3f}{margin} ({means['accuracy']:.0%}, {means['nll']:.2f})"


def _held(one: Mapping[str, Any]) -> str:
    means, margins = one["means"], one["margins"]
    if "coverage" not in means:
        return ""
    return f"{means['coverage']:.1%} ± {margins['coverage']:.1%}, {means['width']:.3f} ± {margins['width']:.3f}"


def _by_size(
    found: Mapping[str, Any], show: Callable[[Mapping[str, Any]], str], methods: Sequence[str] | None = None
) -> str:
    lines: list[str] = []
    for protocol in dict.fromkeys(one["protocol"] for one in found["summaries"]):
        own = [one for one in found["summaries"] if one["protocol"] == protocol]
        sizes = sorted({one["size"] for one in own})
        lines += ["", f"| {protocol} | {' | '.join(f'{size} answers' for size in sizes)} |"]
        lines.append("| --- " * (len(sizes) + 1) + "|")
        for method in methods or dict.fromkeys(one["method"] for one in own):
            cells = {one["size"]: show(one) for one in own if one["method"] == method}
            splits = {one["splits"] for one in own if one["method"] == method}
            named = method if splits == {5} or not splits else f"{method} ({min(splits)} splits)"
            if any(cells.values()):
                lines.append(f"| {named} | {' | '.join(cells.get(size, '') for size in sizes)} |")
    return "\n".join(lines[1:]) + "\n"


def _rows(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = [row for cell in found["cells"] for row in cell["rows"]]
    return sorted(rows, key=lambda row: (row["protocol"], row["size"]))


def _by_seed(found: Mapping[str, Any], protocol: str, size: int, measure: str) -> dict[str, dict[int, float]]:
    """Method -> seed -> mean over groups."""
    values: dict[str, dict[int, float]] = {}
    for row in _rows(found):
        if (row["protocol"], row["size"]) == (protocol, size):
            some = [group[measure] for group in row["groups"].values()]
            values.setdefault(row["method"], {})[row["seed"]] = mean(some)
    return values
