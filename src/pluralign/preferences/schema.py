"""What one row of preferences is, whatever file it came from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]
Text = str | list[Message]
"""Plain text, or messages as chat templates take them (`{"role": ..., "content": ..., ...}`)."""

ALL = "_all"
"""The person of a table without a `user` column, and the name of the one policy of `per: none`."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row stands: `str(place)` is what an error message names."""

    file: str
    row: int

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}"


@dataclass(slots=True)
class Preference:
    """One comparison: who, on which prompt, chose which response over which.

    Attributes:
        prompt: text or messages; never empty.
        chosen: the preferred response, or a good completion; None in an anchor-only row or of a bad completion.
        rejected: the other response, or a bad completion; None in anchor-only rows or of a good completion.
        base: the base model's own response, where the table already has it.
        base_finished: whether `base` ended by itself; a cut one carries no end-of-sequence token.
        user: a legal id is any non-empty string; None where the table has no such column.
        group: the same for groups.
        mismatched: a response to another prompt, where the loss asks for one; never from a table.
        columns: every other column of the row, carried through to loss and metrics.
        place: file and 1-based row (its line in JSONL; a CSV header is not counted).
    """

    prompt: Text
    chosen: Text | None
    rejected: Text | None
    user: str | None = None
    group: str | None = None
    base: Text | None = None
    base_finished: bool = True
    mismatched: Text | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    place: Place = field(default_factory=lambda: Place("memory", 0))

    @property
    def responses(self) -> dict[str, Text]:
        """The responses that are there, by branch name."""
        named = {"chosen": self.chosen, "rejected": self.rejected, "base": self.base, "mismatched": self.mismatched}
        return {name: text for name, text in named.items() if text is not None}

    def owner(self, per: str) -> str:
        """Whose adapter the row trains: its user, its group, or everybody's (`per` is user, group or none)."""
        value = {"user": self.user, "group": self.group, "none": None}[per]
        return ALL if value is None else value


@dataclass(slots=True)
class Preferences(Sequence[Preference]):
    """A table of preferences in memory, in the order of its file.

    Attributes:
        rows: the rows that can be used.
        problems: rows that cannot, with the reason; never dropped silently.
        ties: comparisons that a user left undecided, by user; no fault of the row, but nothing to learn from either.
        name: what to call the table in messages.
    """

    rows: list[Preference]
    problems: list[Problem] = field(default_factory=list)
    ties: dict[str, int] = field(default_factory=dict)
    name: str = "memory"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __iter__(self) -> Iterator[Preference]:
        return iter(self.rows)

    def by(self, per: str) -> dict[str, list[Preference]]:
        """Rows of each person (`per` user), group, or of all under `ALL`, in order of first appearance."""
        owned: dict[str, list[Preference]] = {}
        for row in self.rows:
            owned.setdefault(row.owner(per), []).append(row)
        return owned


@dataclass(frozen=True, slots=True)
class Problem:
    """A row that cannot be used.

    Attributes:
        place: file and row.
        column: the column at fault, where one is.
        found: what was found.
        fix: what to do.
        user: whose row it is, where that could be read: the person is reported with it.
    """

    place: Place
    column: str | None
    found: str
    fix: str = ""
    user: str | None = None

    def __str__(self) -> str:
        column = f", column {self.column!r}" if self.column else ""
        fix = f". {self.fix}" if self.fix else ""
        return f"{self.place}{column}: {self.found}{fix}"


class BadRow(Exception):  # noqa: N818 - becomes a Problem, is no error of the run
    """A row that cannot be used, before its place is known. See `Problem` for the fields."""

    def __init__(self, column: str | None, found: str, fix: str = "", *, user: str | None = None) -> None:
        super().__init__(found)
        self.column, self.found, self.fix, self.user = column, found, fix, user

    def at(self, place: Place) -> Problem:
        """The problem it is."""
        return Problem(place, self.column, self.found, self.fix, self.user)


def excerpt(value: Any, longest: int = 40) -> str:
    """What a cell holds, on one line, for a message; safe to print whatever it holds."""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= longest else f"{text[:longest]}..."
