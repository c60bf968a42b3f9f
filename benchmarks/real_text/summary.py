"""From cells to a summary with intervals, and from the summary to the tables of docs/real-text.md."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

RESAMPLES = 2000
COUNTS = {"accuracy": "pairs", "manner": "manner_of", "kept": "kept_of", "told": "told_of"}
"""Measures with an interval, and where the number of items behind a person's value stands."""
PLAIN = (
    "ranking_accuracy",
    "base_ranking_accuracy",
    "others_accuracy",
    "margin",
    "kl_per_token",
    "degenerate",
    "degenerate_base",
    "manner_base",
    "manner_real",
)
"""Measures given as means only."""
AGAINST = "dpo"
SECONDS = "cpu_seconds_a_person"


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
        if np.isnan(values).any():
            continue
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
    # The median: a cell that was stopped and went on knows only its last part.
    found[SECONDS] = round(float(np.median([cell["cpu_seconds"] / len(cell["people"]) for cell in cells])), 1)
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
        if any(np.isnan(_table(part, measure)).any() for part in (mine, theirs)):
            continue
        tables = [(_table(part, measure), _table(part, count)) for part in (mine, theirs)]
        first, second = _resampled(tables)
        mean = float((tables[0][0] - tables[1][0]).mean())
        found[measure] = {"mean": round(mean, 4), "interval": _interval(first - second)}
    return found


def _table(cells: Sequence[Mapping[str, Any]], measure: str) -> np.ndarray:
    """[people, seeds] in the order of names and seeds; NaN where it was not measured."""
    ordered = sorted(cells, key=lambda cell: cell["seed"])
    names = sorted(ordered[0]["people"])
    values = [[cell["people"][name].get(measure) for cell in ordered] for name in names]
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
    """The tables of the page, two a population."""
    parts = []
    for task, methods in results["summary"].items():
        parts += [_results(task, methods), _differences(methods)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _results(task: str, methods: Mapping[str, Any]) -> str:
    base = next(iter(methods.values()))
    measures = [measure for measure in COUNTS if measure in base]
    titles = ["method", "seeds", *measures, "worst person", "KL/token", "degenerate", "s/person"]
    own = {"accuracy": "0.5", "manner": f"{base['manner_base'] or 0:.3f}", "kept": "1", "told": "1"}
    rows = [["base", "", *(own[measure] for measure in measures), "", "0", f"{base['degenerate_base']:.2f}", ""]]
    for method, found in methods.items():
        worst = f"{found['accuracy']['worst']:.2f} ({found['accuracy']['worst_person']})"
        row = [method, str(len(found["seeds"])), *(_shown(found[measure], ".3f") for measure in measures), worst]
        rows.append([*row, *(f"{found[key]:.2f}" for key in ("kl_per_token", "degenerate")), f"{found[SECONDS]:.0f}"])
    return f"**{task}**, {base['people']} people\n\n" + _markdown_table(titles, rows)


def _differences(methods: Mapping[str, Any]) -> str:
    found = {name: method[f"less_{AGAINST}"] for name, method in methods.items() if method.get(f"less_{AGAINST}")}
    if not found:
        return ""
    measures = [measure for measure in COUNTS if measure in next(iter(found.values()))]
    rows = [[name, *(_shown(one[measure], "+.3f") for measure in measures)] for name, one in found.items()]
    return _markdown_table([f"less {AGAINST}", *measures], rows)


def _markdown_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _shown(found: Mapping[str, Any], form: str) -> str:
    return f"{found['mean']:{form}} {_span(found['interval'], form)}"


def _span(interval: Sequence[float], form: str) -> str:
    return f"[{interval[0]:{form}}, {interval[1]:{form}}]"
