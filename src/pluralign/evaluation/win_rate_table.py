"""Win rates on a terminal of 80 to 100 columns: the worst served first, everybody, and what else moved the judge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pluralign.evaluation.results import measure_of
from pluralign.evaluation.table import NAME_WIDTH, ROWS
from pluralign.preferences import shown

if TYPE_CHECKING:
    from rich.table import Table

    from pluralign.evaluation.results import Evaluation

_RATES = {"raw": "win rate", "length_controlled": "at equal length"}


def win_rate_table(evaluation: Evaluation) -> Table:
    """The table; lines below say what the judge's verdicts are worth, who is not shown and who was skipped."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    pooled = evaluation.win_rate or {}
    against = "the base" if pooled.get("against") == "base" else shown(str(pooled.get("against")), 40)
    judge = shown(str((pooled.get("annotator") or {}).get("name")), 40)
    title = f"{shown(str(pooled.get('run')), 40)} against {against}, by {judge}"
    table = Table(
        title=Text(title),
        title_justify="left",
        box=SIMPLE_HEAD,
        collapse_padding=True,
        min_width=70,
        caption=Text("\n".join(_notes(evaluation, pooled))),
        caption_justify="left",
    )
    table.add_column("person", vertical="bottom")
    rates = {name: label for name, label in _RATES.items() if pooled.get(name) is not None}
    for label in ("won", "tied", "lost", *rates.values()):
        table.add_column(label, justify="right", vertical="bottom", no_wrap=True)
    own = {person: results["win_rate"] for person, results in evaluation.people.items()}
    ranked = sorted(own, key=lambda person: _last_without(measure_of(own[person], "raw")))
    for person in ranked[:ROWS]:
        # Text, not a string: an id may hold what rich takes for markup.
        name = Text(shown(person, NAME_WIDTH), no_wrap=True, overflow="ellipsis")
        table.add_row(name, *_cells(own[person], list(rates)))
    table.add_section()
    table.add_row(Text(f"mean of {len(own)}", style="bold"), *_cells(pooled, list(rates)), style="bold")
    return table


def _cells(found: Mapping[str, Any], rates: list[str]) -> list[str]:
    cells = [str(found["wins"]), str(found["ties"]), str(found["losses"])]
    for name in rates:
        value, interval = measure_of(found, name), found[f"{name}_interval"]
        bounds = f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else ""
        cells.append("" if value is None else f"{value:.2f}{bounds}")
    return cells


def _notes(evaluation: Evaluation, pooled: Mapping[str, Any]) -> list[str]:
    notes = [f"NOT THE SAME YARDSTICK: {reason}" for reason in pooled.get("different", [])]
    if pooled.get("unanswered"):
        notes.append(f"NOT FINISHED: {pooled['unanswered']} comparisons wait for the annotator")
    if (first := pooled.get("first_place")) is not None:
        flipped = f"; {pooled['flipped']} verdicts changed with the order" if pooled.get("orders") == "both" else ""
        notes.append(f"of verdicts for one, {first:.2f} are for what stood first{flipped}")
    if pooled.get("same"):
        notes.append(f"{pooled['same']} answers are the same on both sides: ties that nobody was asked of")
    if pooled.get("abstained"):
        notes.append(f"{pooled['abstained']} comparisons are left out: the annotator did not say")
    if pooled.get("characters") is not None:
        lengths = f"{pooled['characters']:.0f} characters against {pooled['against_characters']:.0f}"
        longer = (pooled.get("regression") or {}).get("length")
        # Where all answers are the same nothing is known of the judge.
        if longer is None or pooled.get("first_place") is None:
            taste = ""
        else:
            taste = f"; the judge {'likes' if longer > 0 else 'dislikes'} length by {longer:+.2f}"
        notes.append(f"answers have {lengths}{taste}")
    if (more := len(evaluation.people) - ROWS) > 0:
        notes.append(f"worst first; {more} more people are in the file")
    for person, reason in list(evaluation.skipped.items())[:ROWS]:
        notes.append(f"skipped {shown(person, NAME_WIDTH)}: {reason}")
    if len(evaluation.skipped) > ROWS:
        notes.append(f"{len(evaluation.skipped) - ROWS} more were skipped")
    return notes


def _last_without(value: float | None) -> float:
    return float("inf") if value is None else value
