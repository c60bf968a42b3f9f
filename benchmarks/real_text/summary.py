"""From cells to a summary with intervals, and from the summary to the tables of docs/real-text.md."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

RESAMPLES = 2000
COUNTS = {"accuracy": "pairs", "kept": "kept_of", "told": "told_of"}
"""Measures with an interval, and where the number of items behind a person's value stands."""
PLAIN = ("ranking_accuracy", "base_ranking_accuracy", "others_accuracy", "kl_per_token", "degenerate", "margin")
"""Measures given as means only."""
AGAINST = "dpo"


def summarize(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Task -> method -> measures, and each method's difference to `dpo` on the same people and seeds."""
    summary: dict[str, Any] = {}
    for task in dict.fromkeys(cell["task"] for cell in cells):
        by_method: dict[str, list[Mapping[str, Any]]] = {}
        for cell in cells:
            if cell["task"] == task:
                by_method.setdefault(cell["method"], []).append(cell)
        summary[task] = {method: _method(found) for method, found in by_method.items()}
        for method, found in by_method.items():
            if method != AGAINST and AGAINST in by_method:
                summary[task][method][f"less_{AGAINST}"] = _difference(found, by_method[AGAINST])
    return summary


def _method(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"seeds": sorted(cell["seed"] for cell in cells), "people": len(cells[0]["people"])}
    for measure, count in COUNTS.items():
        values, counts = _table(cells, measure), _table(cells, count)
        by_person = values.mean(axis=1)
        names = sorted(cells[0]["people"])
        worst = int(by_person.argmin())
        found[measure] = {
            "mean": round(float(values.mean()), 4),
            "interval": _interval(_resampled([(values, counts)])[0]),
            "worst": round(float(by_person[worst]), 4),
            "worst_person": names[worst],
            "best": round(float(by_person.max()), 4),
            "by_seed": [round(float(value), 4) for value in values.mean(axis=0)],
            "by_person": {name: round(float(value), 4) for name, value in zip(names, by_person, strict=True)},
        }
    for measure in PLAIN:
        mean = float(_table(cells, measure).mean())
        found[measure] = None if math.isnan(mean) else round(mean, 4)
    found["degenerate_base"] = round(float(_table(cells, "degenerate_base").mean()), 4)
    found["seconds_a_person"] = round(sum(c["cpu_seconds"] for c in cells) / sum(len(c["people"]) for c in cells), 1)
    return found


def _difference(cells: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means of the differences over the seeds that both have."""
    seeds = {cell["seed"] for cell in cells} & {cell["seed"] for cell in others}
    if not seeds:
        return {}
    mine = [cell for cell in cells if cell["seed"] in seeds]
    theirs = [cell for cell in others if cell["seed"] in seeds]
    found: dict[str, Any] = {"seeds": sorted(seeds)}
    for measure, count in COUNTS.items():
        tables = [(_table(part, measure), _table(part, count)) for part in (mine, theirs)]
        first, second = _resampled(tables)
        mean = float((tables[0][0] - tables[1][0]).mean())
        found[measure] = {"mean": round(mean, 4), "interval": _interval(first - second)}
    return found


def _table(cells: Sequence[Mapping[str, Any]], measure: str) -> np.ndarray:
    """[people, seeds] in the order of names and seeds; NaN where it was not measured."""
    ordered = sorted(cells, key=lambda cell: cell["seed"])
    names = sorted(ordered[0]["people"])
    values = [[cell["people"][name][measure] for cell in ordered] for name in names]
    return np.array(values, dtype=float)


def _resampled(tables: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
    """Means of `RESAMPLES` resamples: people are drawn anew, then a person's seeds, then the items behind each share.

    All tables see the same people and seeds, so that their difference is one of pairs.
    """
    generator = np.random.default_rng(0)
    people, seeds = tables[0][0].shape
    means = np.empty((len(tables), RESAMPLES))
    for index in range(RESAMPLES):
        rows = generator.integers(0, people, (people, 1))
        columns = generator.integers(0, seeds, (people, seeds))
        for number, (shares, counts) in enumerate(tables):
            items = counts[rows, columns].astype(int)
            right = np.asarray(generator.binomial(items, shares[rows, columns]))
            means[number, index] = (right / items).mean()
    return list(means)


def _interval(means: np.ndarray) -> list[float]:
    low, high = np.quantile(means, [0.025, 0.975])
    return [round(float(low), 4), round(float(high), 4)]


def markdown(results: Mapping[str, Any]) -> str:
    """The tables of the page, one a task."""
    parts = []
    for task, methods in results["summary"].items():
        first = next(iter(methods.values()))
        seeds = max(len(found["seeds"]) for found in methods.values())
        lines = [
            f"**{task}**: {first['people']} people, {seeds} seeds",
            "",
            "| method | accuracy | worst person | kept | worst person | told | KL/token | degenerate | s/person |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        ranking, degenerate = first["base_ranking_accuracy"], first["degenerate_base"]
        lines.append(f"| base | {ranking:.3f} (ranking) | | 1 | | 1 | 0 | {degenerate:.2f} | |")
        for method, found in methods.items():
            cells = [method, *(cell for measure in ("accuracy", "kept") for cell in _shown(found[measure]))]
            told = _shown(found["told"])[0]
            cells += [told, f"{found['kl_per_token']:.2f}", f"{found['degenerate']:.2f}"]
            lines.append("| " + " | ".join([*cells, f"{found['seconds_a_person']:.0f}"]) + " |")
        parts.append("\n".join(lines))
        differences = _differences(methods)
        if differences:
            parts.append(differences)
    return "\n\n".join(parts) + "\n"


def _differences(methods: Mapping[str, Any]) -> str:
    lines = [f"| less {AGAINST} | accuracy | kept | told |", "| --- | --- | --- | --- |"]
    for method, found in methods.items():
        difference = found.get(f"less_{AGAINST}")
        if difference:
            shown = [f"{difference[m]['mean']:+.3f} {_span(difference[m]['interval'], '+.3f')}" for m in COUNTS]
            lines.append(f"| {method} | " + " | ".join(shown) + " |")
    return "\n".join(lines) if len(lines) > 2 else ""


def _shown(found: Mapping[str, Any]) -> tuple[str, str]:
    mean = f"{found['mean']:.3f} {_span(found['interval'], '.3f')}"
    return mean, f"{found['worst']:.3f} ({found['worst_person']})"


def _span(interval: Sequence[float], form: str) -> str:
    return f"[{interval[0]:{form}}, {interval[1]:{form}}]"
