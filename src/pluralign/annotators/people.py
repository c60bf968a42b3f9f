"""People as annotators: a table that they fill in, for which the run stops and with which it goes on."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pluralign.annotators.protocol import AnnotatorError, Request, Verdict
from pluralign.errors import InputError
from pluralign.fewshot.answers import plain_text
from pluralign.storage import check_place, write_text

_KINDS = (".csv", ".jsonl")
_TIE = "tie"


class LabelsNeededError(AnnotatorError):
    """A table waits for people; the same call goes on when it is filled in."""


@dataclass(frozen=True)
class PeopleAnnotator:
    """A table with a row a request: `row`, `user`, `prompt`, `response_1`, ..., and `choice`, which people fill in.

    Rows stay where they are once they are filled in; requests that are new are written below them.

    Attributes:
        path: `.csv` or `.jsonl`.
        missing: what becomes of requests without a choice once others have one.
    """

    path: Path
    missing: Literal["stop", "skip"] = "stop"

    @classmethod
    def of_path(cls, path: str, missing: Literal["stop", "skip"]) -> PeopleAnnotator:
        """From the name of the table.

        Raises:
            InputError: it is of another kind, or cannot be written.
        """
        if Path(path).suffix not in _KINDS:
            raise InputError(f"annotator.people is {path!r}", fix="It is a .csv or a .jsonl file.")
        check_place(path)
        return cls(Path(path), missing)

    @property
    def name(self) -> str:
        """What errors call it."""
        return f"people ({self.path})"

    @property
    def asks_at_once(self) -> bool:
        """All requests of a phase: people are not to be called again for every batch."""
        return True

    def annotate(self, requests: Sequence[Request]) -> list[Verdict]:
        """What people chose.

        Raises:
            LabelsNeededError: the table has been written, or is not filled in.
            InputError: a choice is none of the responses, or a row is not as it was written.
        """
        rows = {str(row.get("row")): row for row in self._rows()}
        choices = {request.row: self._choice(rows[request.row], request) for request in requests if request.row in rows}
        new = [request for request in requests if request.row not in rows]
        if new:
            self._write([*rows.values(), *map(_as_row, new)])
        open_rows = [request.row for request in requests if choices.get(request.row) is None]
        if open_rows and (self.missing == "stop" or new or len(open_rows) == len(requests)):
            raise LabelsNeededError(
                self.name,
                f"{len(open_rows)} of {len(requests)} comparisons wait for a choice",
                row=open_rows[0],
                fix="Fill in the column `choice` (the number of the best response, or tie), and run the command again.",
            )
        return [choices.get(request.row) or Verdict(abstained=True, reason="nobody has chosen") for request in requests]

    def _choice(self, row: dict[str, Any], request: Request) -> Verdict | None:
        where = f"{self.path}, row {request.row!r}"
        expected = _as_row(request)
        changed = [
            name for name, value in expected.items() if name != "choice" and _lines(row.get(name)) != _lines(value)
        ]
        if changed:
            found = f"column {changed[0]!r} is not as it was written"
            raise InputError(found, where=where, fix="Fill in `choice` only, or take the row away to be asked again.")
        said = str(row.get("choice") or "").strip().lower()
        if not said:
            return None
        if said == _TIE:
            return Verdict(tie=True)
        count = len(request.responses)
        if not said.isascii() or not said.isdigit() or not 1 <= int(said) <= count:
            raise InputError(f"the choice is {said!r}", where=where, fix=f"It is a number from 1 to {count}, or tie.")
        best = int(said) - 1
        return Verdict(scores=tuple(float(number == best) for number in range(count)))

    def _rows(self) -> Iterator[dict[str, Any]]:
        if not self.path.exists():
            return
        with open(self.path, encoding="utf-8", newline="") as file:
            text = file.read()
        if self.path.suffix == ".csv":
            yield from csv.DictReader(io.StringIO(text, newline=""))
            return
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise InputError(f"not JSON ({error})", where=f"{self.path}, line {number}") from None
                yield row

    def _write(self, rows: Sequence[dict[str, Any]]) -> None:
        names = list(dict.fromkeys(name for row in rows for name in row if name != "choice"))
        if self.path.suffix == ".csv":
            sink = io.StringIO(newline="")
            table = csv.DictWriter(sink, [*names, "choice"])
            table.writeheader()
            table.writerows(rows)
            write_text(self.path, sink.getvalue())
        else:
            write_text(self.path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _lines(cell: object) -> list[str]:
    """A cell's lines: programs that people open a table with write ends of lines in ways of their own."""
    return str(cell).splitlines()


def _as_row(request: Request) -> dict[str, str]:
    responses = {f"response_{number}": text for number, text in enumerate(request.responses, 1)}
    return {
        "row": request.row,
        "user": request.user or "",
        "prompt": plain_text(request.prompt),
        **responses,
        "choice": "",
    }
