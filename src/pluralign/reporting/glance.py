"""Runs and groups in a few figures: means, who is worst, and how far runs are apart on the same people."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from pluralign.evaluation.statistics import bootstrap_interval
from pluralign.reporting.gather import Person, Run
from pluralign.reporting.measures import MEASURES, Measure, mean_interval

FEWEST = 8
"""People below whom a bootstrap over people says little, and is not shown."""
MOST_GROUPS = 200


class Cell(NamedTuple):
    """One run's figures of a measure, as text; empty where there is none.

    Attributes:
        mean: over people.
        worst: of the worst person.
        who: that person.
        base: mean of the base's own value.
        difference: mean over shared people of this run less the first, with its 95% interval.
    """

    mean: str = ""
    worst: str = ""
    who: str = ""
    base: str = ""
    difference: str = ""


class Line(NamedTuple):
    """A measure and its figures in every run."""

    measure: Measure
    cells: list[Cell]


def glance(runs: Sequence[Run], label: Callable[[str], str]) -> list[Line]:
    """Every measure that some run has."""
    lines = [Line(measure, [_cell(measure, run, runs[0], label) for run in runs]) for measure in MEASURES]
    return [line for line in lines if any(cell.mean for cell in line.cells)]


def group_rows(run: Run) -> list[dict[str, Any]]:
    """The groups of a run, worst first, at most two hundred; none where every group is one person.

    Each is `{group, people, values: {measure: [mean, low, high, worst, id of the worst]}}`; low and high are None where
    the measure has no intervals. A mean counts every person once.
    """
    groups: dict[str, dict[str, Person]] = {}
    for user, person in run.people.items():
        if person.group is not None:
            groups.setdefault(person.group, {})[user] = person
    if len(groups) < 2 or all(len(members) == 1 for members in groups.values()):
        return []
    rows: list[dict[str, Any]] = [
        {"group": group, "people": len(members), "values": _group_values(members)} for group, members in groups.items()
    ]
    first = MEASURES[0].key
    return sorted(rows, key=lambda row: (row["values"].get(first, [math.inf])[0], row["group"]))[:MOST_GROUPS]


def shown_value(measure: Measure, value: float | None) -> str:
    """A value as text: shares in percent, others with their decimals."""
    if value is None:
        return ""
    return f"{100 * value:.1f}%" if measure.unit == "share" else _with_minus(f"{value:.{measure.digits}f}")


def _cell(measure: Measure, run: Run, first: Run, label: Callable[[str], str]) -> Cell:
    values = {user: person.values[measure.key] for user, person in run.people.items() if measure.key in person.values}
    if not values:
        return Cell()
    base = run.evaluation.summary.get(f"{measure.base}.mean") if measure.base else None
    worst = _worst(measure, values)
    return Cell(
        mean=shown_value(measure, fmean(values.values())),
        worst="" if worst is None else shown_value(measure, values[worst]),
        who=""
        if worst is None
        else label(worst)
        if len(set(values.values())) > 1 or len(values) == 1
        else "all the same",
        base=shown_value(measure, base if isinstance(base, int | float) else None),
        difference="" if run is first else _difference(measure, values, first),
    )


def _difference(measure: Measure, values: dict[str, float], first: Run) -> str:
    """Paired: the same people in both runs."""
    before = {user: person.values.get(measure.key) for user, person in first.people.items()}
    apart = [value - there for user, value in values.items() if (there := before.get(user)) is not None]
    if not apart:
        return ""
    interval = bootstrap_interval(apart) if len(apart) >= FEWEST else None
    bounds = f" [{', '.join(_signed(measure, bound) for bound in interval)}]" if interval else ""
    return f"{_signed(measure, fmean(apart))}{bounds}"


def _signed(measure: Measure, value: float) -> str:
    """A difference; of shares in percentage points."""
    return _with_minus(f"{100 * value:+.1f}" if measure.unit == "share" else f"{value:+.{measure.digits}f}")


def _with_minus(text: str) -> str:
    """A minus, and not a hyphen, at which a line could break."""
    return text.replace("-", "−")


def _group_values(members: dict[str, Person]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for measure in MEASURES:
        values = {user: person.values[measure.key] for user, person in members.items() if measure.key in person.values}
        if not values:
            continue
        intervals = [members[user].intervals.get(measure.key) for user in values]
        known = [interval for interval in intervals if interval is not None]
        low, high = mean_interval(list(values.values()), known) if len(known) == len(values) else (None, None)
        worst = _worst(measure, values)
        found[measure.key] = [fmean(values.values()), low, high, values[worst] if worst else None, worst]
    return found


def _worst(measure: Measure, values: dict[str, float]) -> str | None:
    if measure.higher is None:
        return None
    return (min if measure.higher else max)(values, key=lambda user: values[user])
