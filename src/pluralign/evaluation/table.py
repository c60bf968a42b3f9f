"""An evaluation on a terminal of 80 to 100 columns: who fares worst, what the mean is, what the base does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from pluralign.evaluation.over_people import finite_number
from pluralign.evaluation.results import measure_of
from pluralign.preferences import shown

if TYPE_CHECKING:
    from rich.table import Table

    from pluralign.evaluation.results import Evaluation

ROWS = 20
NAME_WIDTH = 22
CELL_WIDTH = 5
IDENTITIES = {"right": "right", "random": "other", "missing": "none"}
"""Keys of an identity and what the table calls them."""


class Column(NamedTuple):
    """One measure: its title, its key in `people`, the base's own value where that has a key, digits."""

    title: str
    measure: str
    base: str | None = None
    digits: int = 2


COLUMNS = (
    Column("acc.", "pairs.accuracy"),
    Column("margin", "pairs.margin", digits=1),
    Column("others", "cross.others_accuracy"),
    Column("kept", "retention.kept"),
    Column("kept\nown", "retention.kept_own"),
    Column("KL/\ntoken", "base_responses.kl_per_token", digits=3),
    Column("style", "behaviour.person.style", "behaviour.base.style"),
    Column("right", "behaviour.person.right", "behaviour.base.right"),
    Column("degen.", "behaviour.person.degenerate", "behaviour.base.degenerate"),
    Column("tasks", "knowledge.score", "knowledge.base_score"),
    Column("survey", "distribution.alignment", "distribution.base_alignment"),
)


def evaluation_table(evaluation: Evaluation) -> Table:
    """The table; columns without any value are left out, lines below say who is not shown and who was skipped."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    columns = [
        column
        for column in COLUMNS
        if any(measure_of(results, column.measure) is not None for results in evaluation.people.values())
    ]
    table = Table(
        box=SIMPLE_HEAD,
        collapse_padding=True,
        # The lines below are wrapped to the table's width, however few columns it has.
        min_width=70,
        caption=_caption(evaluation, columns),
        caption_justify="left",
    )
    # Where the terminal is narrow, names give way (rich shrinks what may wrap) and numbers stay whole.
    table.add_column("person", vertical="bottom")
    for column in columns:
        width = max(CELL_WIDTH, *map(len, column.title.split("\n")))
        table.add_column(column.title, justify="right", vertical="bottom", no_wrap=True, min_width=width)
    ranked = sorted(evaluation.people, key=lambda person: _goodness(evaluation.people[person]))
    for person in ranked[:ROWS]:
        results = evaluation.people[person]
        cells = [_number(measure_of(results, column.measure), column.digits) for column in columns]
        # Text, not a string: an id may hold what rich takes for markup.
        table.add_row(Text(shown(person, NAME_WIDTH), no_wrap=True, overflow="ellipsis"), *cells)
    table.add_section()
    if len(evaluation.people) > 1:
        means = [_number(_mean(evaluation, column.measure), column.digits) for column in columns]
        table.add_row(Text(f"mean of {len(evaluation.people)}", style="bold"), *means, style="bold")
    base = [_number(_mean(evaluation, column.base) if column.base else None, column.digits) for column in columns]
    if any(base):
        table.add_row(Text("base", style="dim"), *base, style="dim")
    return table


TEXT = {
    "tokens": ("tokens", 1),
    "distinct_1": ("distinct-1", 2),
    "distinct_2": ("distinct-2", 2),
    "repetition": ("repetition", 2),
    "kl_per_token": ("KL/token", 3),
    "base_perplexity": ("base's\nperplexity", 1),
}
"""Figures of answers as texts, below `behaviour.person` and `behaviour.base`: titles and digits."""


def text_table(evaluation: Evaluation) -> Table | None:
    """What answers are like as texts: the mean over people, the worst of them, and the base; None without answers."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    if _mean(evaluation, "behaviour.person.tokens") is None:
        return None
    table = Table(title="answers as texts", title_justify="left", box=SIMPLE_HEAD, collapse_padding=True)
    table.add_column("", vertical="bottom")
    for title, _ in TEXT.values():
        table.add_column(title, justify="right", vertical="bottom", no_wrap=True)
    rows = {f"mean of {len(evaluation.people)}": "person.{}.mean", "worst": "person.{}.worst", "base": "base.{}.mean"}
    for label, key in rows.items():
        found = [evaluation.summary.get(f"behaviour.{key.format(name)}") for name in TEXT]
        cells = [_number(finite_number(value), digits) for value, (_, digits) in zip(found, TEXT.values(), strict=True)]
        table.add_row(Text(label), *cells)
    return table


def identities_table(identities: Mapping[str, Any]) -> Table:
    """Whether the model listens: pairs under the right identity, another one and none; the least attentive group first.

    Args:
        identities: of `evaluation.json`.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    groups = identities["groups"]
    more = len(groups) - ROWS
    notes = [identities["reason"]] if identities["reason"] else []
    notes += [f"{more} more groups are in evaluation.json"] if more > 0 else []
    table = Table(
        title="does the model listen?",
        title_justify="left",
        box=SIMPLE_HEAD,
        collapse_padding=True,
        caption=Text("\n".join(notes)) if notes else None,
        caption_justify="left",
    )
    table.add_column("group", vertical="bottom")
    accuracies, margins = ([f"{part}\n{title}" for title in IDENTITIES.values()] for part in ("acc.", "margin"))
    for title in ("pairs", *accuracies, "acc.\nright - other", *margins):
        width = max(map(len, title.split("\n")))
        table.add_column(title, justify="right", vertical="bottom", no_wrap=True, min_width=width)
    ranked = sorted(groups, key=lambda group: _least_first(groups[group]))
    for name, found in [("all", identities["all"]), *((group, groups[group]) for group in ranked[:ROWS])]:
        accuracies = [_number(measure_of(found, f"{one}.accuracy"), 2) for one in IDENTITIES]
        margins = [_number(measure_of(found, f"{one}.margin"), 1) for one in IDENTITIES]
        cells = [str(found["n"]), *accuracies, _difference(found), *margins]
        label = Text(name if found is identities["all"] else shown(name, NAME_WIDTH), no_wrap=True, overflow="ellipsis")
        table.add_row(label, *cells, end_section=found is identities["all"])
    return table


def _least_first(found: Mapping[str, Any]) -> float:
    value = measure_of(found, "accuracy_difference")
    return float("-inf") if value is None else value


def _difference(found: Mapping[str, Any]) -> str:
    interval = found["accuracy_difference_interval"]
    bounds = f" [{', '.join(_number(bound, 2) for bound in interval)}]" if interval else ""
    return f"{_number(measure_of(found, 'accuracy_difference'), 2)}{bounds}"


def _goodness(results: Mapping[str, Any]) -> tuple[float, ...]:
    """Ascending: least accurate first, then who kept least, then by style."""
    keys = ("pairs.accuracy", "retention.kept", "behaviour.person.style", "pairs.margin")
    values = (measure_of(results, key) for key in keys)
    return tuple(float("-inf") if value is None else value for value in values)


def _caption(evaluation: Evaluation, columns: list[Column]) -> Any:
    from rich.text import Text

    lines = []
    more = len(evaluation.people) - ROWS
    if more > 0:
        lines.append(f"worst first; {more} more people are in evaluation.json")
    for person, reason in list(evaluation.skipped.items())[:ROWS]:
        lines.append(f"skipped {shown(person, NAME_WIDTH)}: {reason}")
    if len(evaluation.skipped) > ROWS:
        lines.append(f"{len(evaluation.skipped) - ROWS} more were skipped")
    if not columns:
        lines.append("nothing was measured: no held-out pairs and no probes")
    return Text("\n".join(lines)) if lines else None


def _mean(evaluation: Evaluation, measure: str) -> float | None:
    return measure_of({"value": evaluation.summary.get(f"{measure}.mean")}, "value")


def _number(value: float | None, digits: int) -> str:
    # Adding zero turns -0.0 into 0.0.
    return "" if value is None else f"{round(value, digits) + 0.0:.{digits}f}"
