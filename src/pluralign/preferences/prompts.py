"""Prompts to be answered: given as they are, or in files; rows without a response."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pluralign.errors import InputError
from pluralign.preferences.columns import KNOWN, read_prompt
from pluralign.preferences.reading import Row, format_by_name, read_lines, read_table
from pluralign.preferences.schema import BadRow, Place, Preference

GIVEN = "--prompts"
"""The "file" of prompts that are given as they are, in messages."""


def read_prompts(given: str | list[str], *, key: str = GIVEN, columns: bool = False) -> list[Preference]:
    """Prompts in order, each as a row that knows its place.

    Args:
        given: prompts, or files of them: a table of any format with a `prompt` column, or `.txt` with one a line.
            What ends like a file's name and has no space in it is a file.
        key: what they were given by, for messages.
        columns: whether group and further columns of a table are kept beside prompt and user.

    Raises:
        InputError: there is none, a file cannot be read, or a prompt is empty or no text.
    """
    prompts: list[Preference] = []
    for number, item in enumerate([given] if isinstance(given, str) else given, 1):
        rows = _rows_of_file(item) if _is_file(item) else iter([(Place(key, number), {"prompt": item})])
        for place, row in rows:
            try:
                prompt = Preference(read_prompt(row), None, None, user=_named(row, "user"), place=place)
            except BadRow as bad:
                raise InputError(str(bad.at(place))) from None
            if columns:
                prompt.group = _named(row, "group")
                prompt.columns = {name: value for name, value in row.items() if name not in KNOWN and value is not None}
            prompts.append(prompt)
    if not prompts:
        raise InputError("no prompt is given", fix=f"Name one, or a file of them, with {key}.")
    return prompts


def _named(row: Row, column: str) -> str | None:
    """Whose prompt it is, where a table says so; whole numbers are taken as their decimal text."""
    name = row.get(column)
    if isinstance(name, int) and not isinstance(name, bool):
        return str(name)
    return name if isinstance(name, str) and name else None


def _is_file(item: str) -> bool:
    named = format_by_name(item) is not None or item.endswith(".txt")
    # "Who wrote notes.txt" is a question; a name without a space that is no file is a slip, not a prompt.
    return named and (not any(map(str.isspace, item)) or Path(item).expanduser().exists())


def _rows_of_file(name: str) -> Iterator[tuple[Place, Row]]:
    path = Path(name).expanduser()
    if path.suffix == ".txt":
        for number, line in enumerate(read_lines(path), 1):
            if line.strip():
                yield Place(name, number), {"prompt": line.strip("\r\n")}
        return
    table = read_table(path)
    if table.problems:
        raise InputError(str(table.problems[0]))
    if "prompt" not in table.columns:
        raise InputError("there is no column `prompt`", where=name, fix="Name the column of the prompts so.")
    for number, row in table.rows:
        yield Place(name, number), row
