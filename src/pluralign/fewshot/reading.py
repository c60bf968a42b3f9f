"""Tables of survey answers: the library's own rows, GlobalOpinionQA's published table, a folder of OpinionQA."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pluralign.errors import InputError
from pluralign.fewshot.answers import Answers, Question, Shares
from pluralign.preferences.columns import check_unicode
from pluralign.preferences.reading import Table, read_table
from pluralign.preferences.schema import BadRow, Place, Problem, excerpt

TOLERANCE = 0.02
"""How far the sum of a distribution may be from 1."""
COLUMNS = ("group", "question", "options", "distribution")
_OWN_FORM = "A row has the columns group, question, options (a list of texts) and distribution (a share an option)."
_TWO = "Give all options that there were, or leave the row out."
_LINE = "Give a number for each option, where it stands on the line; or none where options have no order."
_PUBLISHED = {"question", "selections", "options"}
"""Columns of GlobalOpinionQA, which has all countries of a question in one row."""

COUNTRIES = (
    "Nigeria",
    "Egypt",
    "India (Current national sample)",
    "China",
    "Japan",
    "Germany",
    "France",
    "Spain",
    "United States",
    "Canada",
    "Brazil",
    "Argentina",
    "Australia",
    "New Zealand",
)
"""The 14 countries of Zhao et al. 2024."""
US_GROUPS = (
    "Northeast",
    "South",
    "Female",
    "Male",
    "College graduate/some postgrad",
    "Less than high school",
    "Atheist",
    "Hindu",
    "Jewish",
    "Muslim",
    "Protestant",
    "Democrat",
    "Republican",
    "$100,000 or more",
    "Less than $30,000",
    "Conservative",
    "Liberal",
    "Moderate",
    "Asian",
    "Black",
    "Hispanic",
    "White",
)
"""The 22 groups of Santurkar et al. 2023, as their tables name them."""


def read_answers(path: Path | str, *, group: str = "group") -> Answers:
    """Read what groups answered.

    Args:
        path: a file (JSONL, JSON, CSV, Parquet, Arrow, gzip of these) of rows `group, question, options, distribution`
            and, where options stand on a line, `ordinals`; GlobalOpinionQA's published CSV (`question, selections,
            options`); or a folder of OpinionQA's distributions.
        group: the column that names the group, where it is called otherwise (`country`).

    Returns:
        The answers. Distributions within 0.02 of a sum of 1 are scaled to it, and counted.

    Raises:
        InputError: a row that cannot be used, with its place and group; a table without rows.
    """
    path = Path(path)
    if path.is_dir():
        return _opinion_qa(path)
    table = read_table(path)
    published = table.columns >= _PUBLISHED and group not in table.columns
    return _gathered(table, _selections if published else lambda row: [_own_row(row, group)])


def read_questions(path: Path | str) -> list[Question]:
    """Read what is to be predicted: rows of `question, options` and, where options stand on a line, `ordinals`.

    Raises:
        InputError: a row that cannot be used, with its place.
    """
    table = read_table(path)
    found, bad = [], list(table.problems)
    for number, row in table.rows:
        try:
            found.append(_asked(row, None))
        except BadRow as problem:
            bad.append(problem.at(Place(table.name, number)))
    _refuse(bad)
    return found


def _gathered(table: Table, read: Any) -> Answers:
    found, bad = Answers(name=table.name), list(table.problems)
    unasked: dict[str, None] = {}
    for number, row in table.rows:
        place = Place(table.name, number)
        try:
            for owner, question, distribution in read(row):
                if distribution is None:
                    found.unasked += 1
                    unasked[owner] = None
                    continue
                shares, scaled = _shares(owner, question, distribution)
                found.rescaled += scaled
                _check_line(owner, question, found)
                if not found.add(owner, question, shares, place):
                    before = found.places[owner, found.number(question)].row
                    again = f"group {owner!r} has answered the same question in row {before}"
                    raise BadRow(None, again, "Join the two answers.")
        except BadRow as problem:
            bad.append(problem.at(place))
    _refuse(bad)
    found.silent = tuple(owner for owner in unasked if owner not in found.groups)
    return found


def _check_line(owner: str, question: Question, answers: Answers) -> None:
    """Raise where the question's options stood elsewhere on a line, or on none, in an earlier row."""
    before = answers.questions[number] if (number := answers.find(question)) is not None else question
    if before.line != question.line:
        found = f"group {owner!r}: the same question has other ordinals, or none, in an earlier row"
        raise BadRow("ordinals", found, "Give all rows of a question the same ones.")


def _refuse(bad: Sequence[Problem]) -> None:
    """Raise where there are rows that cannot be used."""
    if bad:
        more = f" (and {len(bad) - 1} more rows)" if len(bad) > 1 else ""
        first = bad[0]
        column = f", column {first.column!r}" if first.column else ""
        raise InputError(f"{first.found}{more}", where=f"{first.place}{column}", fix=first.fix)


def _own_row(row: Mapping[str, Any], group: str) -> tuple[str, Question, Any]:
    if row.get(group) is None:
        raise BadRow(group, "there is no such cell", _OWN_FORM)
    # NaN is no name, and differs from itself.
    if not isinstance(row[group], str | int | float) or row[group] != row[group]:
        raise BadRow(group, f"the cell holds {excerpt(row[group])}, not a name", "Name the group, or number it.")
    owner = str(row[group])
    if not owner.strip():
        raise BadRow(group, "the cell is empty", "Name the group.")
    check_unicode(owner, group)
    for name in COLUMNS[1:]:
        if row.get(name) is None:
            raise BadRow(name, f"{_whose(owner)}there is no such cell", _OWN_FORM)
    return owner, _asked(row, owner), _list(row["distribution"], "distribution", owner)


def _asked(row: Mapping[str, Any], owner: str | None) -> Question:
    for name in ("question", "options"):
        if row.get(name) is None:
            raise BadRow(name, "there is no such cell", _OWN_FORM)
    options = _list(row["options"], "options", owner)
    ordinals = row.get("ordinals")
    places = None if ordinals is None else _numbers(_list(ordinals, "ordinals", owner), "ordinals", owner)
    return _question(owner, str(row["question"]), options, places)


def _selections(row: Mapping[str, Any]) -> list[tuple[str, Question, Any]]:
    """A row of GlobalOpinionQA: the answers of every country to one question, in Python's notation."""
    options = _list(row["options"], "options", None)
    cell = str(row["selections"]).strip()
    inner = re.fullmatch(r"defaultdict\(<class 'list'>, (\{.*\})\)", cell, re.DOTALL)
    by_group = _literal(inner[1] if inner else cell, "selections", None)
    if not isinstance(by_group, dict):
        raise BadRow("selections", f"the cell holds {excerpt(cell)}, not a dictionary of countries")
    # Empty lists and zeros stand where nobody was asked.
    return [
        (
            owner,
            _question(owner, str(row["question"]), options, None),
            distribution if _answered(distribution) else None,
        )
        for owner, distribution in ((str(name), value) for name, value in by_group.items())
    ]


def _answered(distribution: Any) -> bool:
    return not isinstance(distribution, list) or any(distribution)


def _question(owner: str | None, text: str, options: Sequence[Any], ordinals: tuple[float, ...] | None) -> Question:
    _check_text(owner, text, "question")
    if not text.strip():
        raise BadRow("question", f"{_whose(owner)}the cell is empty", "Say what was asked.")
    named = tuple("" if option is None else str(option) for option in options)
    for option in named:
        _check_text(owner, option, "options")
    if not all(option.strip() for option in named):
        raise BadRow("options", f"{_whose(owner)}an option is empty", "Every option is a text.")
    if len(named) < 2:
        raise BadRow("options", f"{_whose(owner)}{len(named)} option, where an answer is a choice between some", _TWO)
    if len(set(named)) < len(named):
        twice = next(option for option in named if named.count(option) > 1)
        raise BadRow(
            "options", f"{_whose(owner)}option {twice!r} stands there twice", "Join the two, and their shares."
        )
    if ordinals is not None and len(ordinals) != len(named):
        raise BadRow("ordinals", f"{_whose(owner)}{len(ordinals)} ordinals for {len(named)} options", _LINE)
    return Question(text, named, ordinals)


def _shares(owner: str, question: Question, distribution: Any) -> tuple[Shares, bool]:
    """A distribution that sums to 1, and whether it had to be scaled."""
    try:
        values = np.array([float(value) for value in distribution])
    except (TypeError, ValueError):
        found = f"group {owner!r}: the cell holds {excerpt(distribution)}, not a list of numbers"
        raise BadRow("distribution", found, "It is a share of each option, in their order.") from None
    if len(values) != len(question.options):
        found = f"group {owner!r}: {len(values)} shares for {len(question.options)} options"
        raise BadRow("distribution", found, "An option that nobody took has the share 0.")
    if not np.isfinite(values).all() or (values < 0).any():
        worst = next(value for value in values if not math.isfinite(value) or value < 0)
        raise BadRow("distribution", f"group {owner!r}: a share is {worst:g}", "Shares are in [0, 1].")
    total = float(values.sum())
    # As decimals say it: 0.48 and 0.5 are within 0.02 of 1, and in binary a little less.
    if abs(total - 1) > TOLERANCE + _ROUNDING:
        found = f"group {owner!r}: the shares sum to {total:.4g}"
        raise BadRow("distribution", found, "They are shares of the group's answers, not counts, and sum to 1.")
    return values / total, abs(total - 1) > _ROUNDING


_ROUNDING = 1e-9


def _check_text(owner: str | None, text: str, column: str) -> None:
    try:
        check_unicode(text, column)
    except BadRow as problem:
        raise BadRow(column, f"{_whose(owner)}{problem.found}", problem.fix) from None


def _whose(owner: str | None) -> str:
    return f"group {owner!r}: " if owner is not None else ""


def _list(cell: Any, column: str, owner: str | None) -> list[Any]:
    value = _literal(cell, column, owner) if isinstance(cell, str) else cell
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        raise BadRow(column, f"{_whose(owner)}the cell holds {excerpt(cell)}, not a list", _OWN_FORM)
    return list(value)


def _numbers(values: Sequence[Any], column: str, owner: str | None) -> tuple[float, ...]:
    try:
        found = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        raise BadRow(column, f"{_whose(owner)}the cell holds {excerpt(values)}, not a list of numbers", _LINE) from None
    if not all(map(math.isfinite, found)):
        raise BadRow(column, f"{_whose(owner)}a number is {next(n for n in found if not math.isfinite(n))}", _LINE)
    return found


def _literal(text: str, column: str, owner: str | None) -> Any:
    """A cell of a CSV: JSON, or what Python prints of lists and dictionaries. Nothing of it is run."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    found = f"{_whose(owner)}the cell holds {excerpt(text)}, neither JSON nor a list as Python prints it"
    raise BadRow(column, found, 'Write it as ["Yes", "No"], or as [0.4, 0.6].')


def _opinion_qa(folder: Path) -> Answers:
    """A folder of OpinionQA: the answers of groups of the Pew panel, without those who refused.

    One table has the answers, another one the questions; a model's answers stand in the latter, and are left alone. A
    group whose name stands under several attributes has the attribute before it (`RACE: Other`).
    """
    tables = []
    for kind in ("human", "model"):
        files = sorted(folder.rglob(f"*_disagreement_500_default_{kind}.csv"))
        if not files:
            fix = f"Of OpinionQA, the tables *_disagreement_500_default_{kind}.csv are read, anywhere below the folder."
            raise InputError(f"has no table of the {kind} answers", where=str(folder), fix=fix)
        tables.append(read_table(files[0]))
    answers, asked = tables
    questions = {str(row.get("qkey")): row for _, row in asked.rows}
    attributes: dict[str, set[str]] = {}
    for _, row in answers.rows:
        attributes.setdefault(str(row.get("group")), set()).add(str(row.get("attribute")))
    several = {group for group, some in attributes.items() if len(some) > 1}
    return _gathered(answers, lambda row: [_pew_row(row, questions, several)])


def _pew_row(
    row: Mapping[str, Any], questions: Mapping[str, Mapping[str, Any]], several: Collection[str]
) -> tuple[str, Question, Any]:
    owner, asked = str(row.get("group")), questions.get(str(row.get("qkey")))
    owner = f"{row.get('attribute')}: {owner}" if owner in several else owner
    if asked is None:
        raise BadRow("qkey", f"group {owner!r}: there is no question {row.get('qkey')!r} in the other table")
    options = _literal(str(asked.get("mapping")), "mapping", owner)
    if not isinstance(options, dict):
        raise BadRow("mapping", f"the question's options are {excerpt(options)}, not a dictionary of letters")
    refused = set(map(str, _list(asked.get("refusal_refs"), "refusal_refs", owner)))
    kept = [str(option) for option in options.values() if str(option) not in refused]
    if asked.get("ordinal_refs") is not None:
        # Shares and places on the line are in this order, which need not be that of the letters.
        along = [str(option) for option in _list(asked["ordinal_refs"], "ordinal_refs", owner)]
        if set(along) != set(kept):
            found = f"group {owner!r}: it orders {excerpt(along)}, and the question's options are {excerpt(kept)}"
            raise BadRow("ordinal_refs", found)
        kept = along
    places = _numbers(_list(asked.get("ordinal"), "ordinal", owner)[: len(kept)], "ordinal", owner)
    question = _question(owner, str(asked.get("question_raw")), kept, places)
    # Shares are of the options that are no refusals.
    return owner, question, _list(row.get("D_H"), "D_H", owner)
