"""What makes two prompts, two rows or two tables the same: their content, not their file or its format."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from pluralign.preferences.schema import Preference, Preferences, Text


def text_key(text: Text) -> str:
    """A string that is equal for equal texts only; messages never equal plain text."""
    if isinstance(text, str):
        # Almost always the text itself, at no cost; the mark of messages is doubled where a text begins with it.
        return f"\0{text}" if text.startswith("\0") else text
    return f"\0{_canonical(text)}"


def row_key(row: Preference) -> str:
    """A string that is equal for rows of equal content only; the place does not count."""
    return _canonical(
        [row.prompt, row.chosen, row.rejected, row.base, row.base_finished, row.user, row.group, row.columns]
    )


def fraction(seed: int, *parts: str) -> float:
    """A number in [0, 1) that a seed and a content fix: the draw of a split, the same in any order of rows."""
    digest = hashlib.blake2b(_joined((str(seed), *parts)), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)


def data_hash(preferences: Preferences) -> str:
    """Hex digest of the usable rows in order, of problems and ties; names and formats of files do not count."""
    digest = hashlib.sha256()
    for row in preferences.rows:
        digest.update(_bytes(row_key(row)) + b"\n")
    problems = sorted([problem.user or "", problem.column or "", problem.found] for problem in preferences.problems)
    digest.update(_bytes(_canonical([problems, preferences.ties])))
    return digest.hexdigest()


def people_hashes(rows: Iterable[Preference], per: str, *, held_out: Iterable[Preference] = ()) -> dict[str, str]:
    """Owner -> hex digest of the owner's rows in order: changed rows are another digest, whatever others' rows do.

    Args:
        rows: of a whole table, before it is split.
        per: whose rows belong together: user, group or none.
        held_out: rows of a file of their own; an owner who has none but these is left out.
    """
    digests: dict[str, Any] = {}
    for row in rows:
        digests.setdefault(row.owner(per), hashlib.sha256()).update(_bytes(row_key(row)) + b"\n")
    for row in held_out:
        if row.owner(per) in digests:
            digests[row.owner(per)].update(b"held out " + _bytes(row_key(row)) + b"\n")
    return {owner: digest.hexdigest() for owner, digest in digests.items()}


def _joined(parts: Iterable[str]) -> bytes:
    return b"\0".join(_bytes(part) for part in parts)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


# Dates and other values of columnar files have no JSON form; their text stands for them.
_encoder = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=str)


def _canonical(value: Any) -> str:
    return _encoder.encode(value)
