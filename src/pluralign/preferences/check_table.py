"""A check report as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pluralign.preferences.people import shown

if TYPE_CHECKING:
    from pluralign.preferences.check import CheckReport, Spread


def render(report: CheckReport, longest: int) -> RenderableType:
    """Totals, lengths, up to `longest` people and as many problems. Texts of the table are never read as markup."""
    parts: list[RenderableType] = [_totals(report), _lengths(report)]
    if report.users:
        parts.append(_people(report, longest))
    if report.problems:
        parts.append(_problems(report, longest))
    return Group(*parts)


def _grid(title: str, *columns: str) -> Table:
    table = Table(title=Text(title, style="bold"), title_justify="left", box=None, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    return table


def _totals(report: CheckReport) -> Table:
    kinds = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in report.kinds.items() if count)
    contradicted = sum(report.contradictions.values())
    lines = {
        "rows": f"{report.rows} ({kinds})" if kinds else "0",
        "rows that cannot be used": len(report.problems),
        "undecided comparisons": sum(report.ties.values()),
        "distinct prompts": report.prompts,
        "users": len(report.users) or "none named: one policy for all",
        "users without a usable row": len(report.unusable),
        "groups": len(report.groups) or "none named",
        "duplicates": report.duplicates,
        "equal sides": report.equal_sides,
        "users that contradict themselves": f"{len(report.contradictions)} ({contradicted} pairs)",
        "pairs of two or more users": report.shared_pairs,
        "of these, judged differently": report.disputed_pairs,
    }
    table = _grid(report.name, "", "")
    table.show_header = False
    for label, value in lines.items():
        table.add_row(label, Text(str(value)))
    return table


def _lengths(report: CheckReport) -> Table:
    table = _grid(f"Lengths in {report.unit}", "", "min", "median", "max")
    for branch, spread in report.lengths.items():
        table.add_row(branch, *_numbers(spread))
    if report.users:
        table.add_row("rows per user", *_numbers(report.rows_per_user))
    return table


def _people(report: CheckReport, longest: int) -> Table:
    table = _grid("Users", "user", "rows", "contradictions", "undecided")
    for user in list(report.users)[:longest]:
        contradictions, ties = report.contradictions.get(user, 0), report.ties.get(user, 0)
        table.add_row(Text(shown(user)), str(report.users[user]), str(contradictions), str(ties))
    _add_rest(table, len(report.users) - longest)
    return table


def _problems(report: CheckReport, longest: int) -> Table:
    table = _grid("Rows that cannot be used", "")
    table.show_header = False
    for problem in report.problems[:longest]:
        user = f" (user {shown(problem.user)})" if problem.user is not None else ""
        table.add_row(Text(f"{problem}{user}"))
    _add_rest(table, len(report.problems) - longest)
    return table


def _numbers(spread: Spread) -> Iterable[str]:
    return (f"{number:g}" for number in (spread.min, spread.median, spread.max))


def _add_rest(table: Table, rest: int) -> None:
    if rest > 0:
        table.add_row(Text(f"... and {rest} more", style="dim"))
