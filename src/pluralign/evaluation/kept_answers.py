"""Answers on disk, by what decides them: what was said is not generated again, by no later call and after no kill."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from pluralign.errors import InputError
from pluralign.storage import write_bytes

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Answer:
    """What somebody said to a prompt.

    Attributes:
        text: without special tokens.
        finished: whether it ended by itself.
    """

    text: str
    finished: bool


class KeptAnswers:
    """A file that is appended to: a line `{"row": ..., "key": ..., "text": ..., "finished": ...}` an answer.

    Args:
        path: it may be there.

    Raises:
        InputError: a line of it, but for a last one that a kill has torn, cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._said: dict[str, Answer] = {}
        self._whole = False
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                if "key" in row:
                    self._said[row["key"]] = Answer(row["text"], row["finished"])
                elif row["schema_version"] != SCHEMA_VERSION:
                    raise ValueError
            except (ValueError, KeyError, TypeError):
                raise InputError("not an answer", where=f"{path}, line {number}", fix="Take the file away.") from None

    def get(self, key: str) -> Answer | None:
        """What was said, or None."""
        return self._said.get(key)

    def add(self, answers: Iterable[tuple[str, str, Answer]]) -> None:
        """Keep answers with the name of their comparison and their key; they are on the disk when this returns."""
        lines = []
        for row, key, answer in answers:
            self._said[key] = answer
            lines.append(json.dumps({"row": row, "key": key, "text": answer.text, "finished": answer.finished}))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab+") as file:
            if not self._whole:
                file.seek(0)
                # Behind the last whole line, whatever a kill has left there.
                end = file.read().rfind(b"\n") + 1
                file.truncate(end)
                if not end:
                    lines.insert(0, json.dumps({"schema_version": SCHEMA_VERSION}))
            self._whole = True
            file.write("".join(f"{line}\n" for line in lines).encode())
            file.flush()
            os.fsync(file.fileno())


def without_people(path: Path, digests: Collection[str]) -> int:
    """Take the lines of people out of a file of answers or verdicts; returns how many.

    Args:
        path: of JSON lines with `row`, which begins with the person's digest.
        digests: of the people.
    """
    lines = path.read_bytes().split(b"\n")
    # A torn last line could be anybody's.
    kept = [line for line in lines[:-1] if not _is_of(line, digests)] + [b""]
    if len(kept) < len(lines) or lines[-1]:
        write_bytes(path, b"\n".join(kept))
    return len(lines) - len(kept)


def _is_of(line: bytes, digests: Collection[str]) -> bool:
    try:
        return str(json.loads(line).get("row", "")).partition("-")[0] in digests
    except (ValueError, AttributeError):
        return True
