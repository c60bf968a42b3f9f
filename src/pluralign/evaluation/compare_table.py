"""A comparison on a terminal of 80 to 100 columns: every figure of two runs, or one run's figures over its people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pluralign.evaluation.over_people import finite_number
from pluralign.evaluation.paired import OF_A, Difference
from pluralign.evaluation.results import HIGHER_IS_BETTER, TASKS
from pluralign.preferences.people import shown

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from pluralign.evaluation.comparing import Comparison

STATISTICS = {
    "mean": "mean",
    "worst": "worst person",
    "worst_decile": "worst tenth",
    OF_A: "A's worst tenth",
    "best": "best person",
    "gap": "gap",
    "gap_90_10": "gap 90-10",
    "gini": "Gini",
}
"""Names of the statistics, and what the table calls them."""
_LABEL = 23
"""Cells of a label: as many as leave room for the figures on 80 columns."""
_LEVELS = ("mean", "worst_decile")
_SPREADS = ("gap_90_10", "gini")
"""What a verdict is given on. Not on single people (`worst`, `best`, `gap`): resamples know nobody worse than the worst
they are drawn from. Nor on A's worst tenth: who was chosen for being low is higher in any other run."""


def comparison_table(comparison: Comparison) -> RenderableType:
    """Runs, figures, remarks and conditions."""
    from rich.console import Group
    from rich.text import Text

    lines = [
        f"{name.upper()}: {shown(str(run.path), 90)} ({len(run.evaluation.people)} people)"
        for name, run in comparison.runs.items()
    ]
    lines += [f"NOT THE SAME YARDSTICK: {reason}" for reason in comparison.different]
    if len(comparison.runs) == 2:
        lines.append(f"figures are over the {len(comparison.shared)} people that both have")
    tables = _differences(comparison) if len(comparison.runs) == 2 else [_figures(comparison)]
    remarks = [f"note: {remark}" for remark in comparison.remarks]
    verdicts = [
        f"{'FAILED' if outcome.holds else 'passed'}: {outcome.condition}   "
        f"({', '.join(f'{key} is {value:.6g}' for key, value in outcome.figures.items())})"
        for outcome in comparison.outcomes
    ]
    # Text, not strings: ids and paths may hold what rich takes for markup.
    return Group(Text("\n".join(lines)), *tables, *map(Text, remarks), *map(Text, verdicts))


def _differences(comparison: Comparison) -> list[Table]:
    """A table a measure, all of the same widths, and one of the figures that are a mean or a count and no more."""
    grouped: dict[str, dict[str, Difference]] = {}
    for key, one in comparison.differences.items():
        measure, _, statistic = key.rpartition(".")
        grouped.setdefault(measure, {})[statistic] = one
    counts = grouped.pop("", {})
    tables: list[Table] = []
    rest = _beside("means and counts", header=not any(map(_is_ranked, grouped)))
    for measure, found in grouped.items():
        people = found["mean"].people
        note = "" if people == len(comparison.shared) else f" (of {people})"
        if not _is_ranked(measure):
            rest.add_row(f"{_label(measure)}{note}", *_cells(found["mean"]), "")
            continue
        table = _beside(f"{measure}{note}   {_worst_people(comparison, measure)}", header=not tables)
        for statistic, one in found.items():
            table.add_row(STATISTICS[statistic], *_cells(one), _verdict(measure, statistic, one))
        tables.append(table)
    for key, one in counts.items():
        rest.add_row(_label(key), f"{one.a:g}", f"{one.b:g}", f"{one.difference:+g}", "", "")
    return [*tables, rest] if rest.row_count else tables


def _beside(title: str, *, header: bool) -> Table:
    from rich.table import Table
    from rich.text import Text

    heading = Text(f"\n{title}", style="bold", overflow="fold")
    table = Table(title=heading, title_justify="left", box=None, collapse_padding=True, show_header=header)
    table.add_column("", min_width=_LABEL, overflow="fold")
    for name, width in (("A", 7), ("B", 7), ("B - A", 7), ("95% interval", 18), ("B is", 9)):
        table.add_column(name, justify="right", no_wrap=True, min_width=width)
    return table


def _is_ranked(measure: str) -> bool:
    """Whether there is a worst person of it."""
    return measure in HIGHER_IS_BETTER or measure.startswith(TASKS)


def _worst_people(comparison: Comparison, measure: str) -> str:
    """Who of the shared people is worst in each run."""
    values = [run.measured[measure].values if measure in run.measured else {} for run in comparison.runs.values()]
    people = [person for person in comparison.shared if all(person in some for some in values)]
    worst = min if HIGHER_IS_BETTER.get(measure, True) else max
    return f"worst: {' / '.join(shown(worst(people, key=some.__getitem__), 16) for some in values)}"


def _figures(comparison: Comparison) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    names = [name for name in STATISTICS if name != OF_A]
    table = Table(box=SIMPLE_HEAD, collapse_padding=True)
    table.add_column("", vertical="bottom", overflow="fold")
    for name in names:
        table.add_column(STATISTICS[name].replace(" ", "\n", 1), justify="right", vertical="bottom", no_wrap=True)
    figures = comparison.runs["a"].figures
    measures = dict.fromkeys(key.rpartition(".")[0] for key in figures if key.endswith(".mean"))
    for measure in measures:
        numbers = [finite_number(figures.get(f"{measure}.{name}")) for name in names]
        if any(number is not None for number in numbers):
            table.add_row(_label(measure), *map(_number, numbers))
    return table


def _label(measure: str) -> str:
    """A measure's name, on two lines where it is long."""
    part, dot, name = measure.rpartition(".")
    return measure if len(measure) <= _LABEL else f"{part}{dot}\n  {name}"


def _verdict(measure: str, statistic: str, one: Difference) -> str:
    """What a difference means whose interval leaves out 0."""
    if one.interval is None or one.interval[0] <= 0 <= one.interval[1]:
        return ""
    up = one.interval[0] > 0
    if statistic in _SPREADS:
        return "less even" if up else "more even"
    if statistic in _LEVELS:
        return "better" if up == HIGHER_IS_BETTER.get(measure, True) else "worse"
    return ""


def _cells(one: Difference) -> tuple[str, ...]:
    interval = "" if one.interval is None else f"[{', '.join(_number(end, sign=True) for end in one.interval)}]"
    return _number(one.a), _number(one.b), _number(one.difference, sign=True), interval


def _number(value: Any, *, sign: bool = False) -> str:
    if value is None:
        return ""
    # Adding zero turns -0.0 into 0.0.
    return f"{round(value, 3) + 0.0:{'+' if sign else ''}.3f}"
