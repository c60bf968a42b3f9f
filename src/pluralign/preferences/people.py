"""Ids of people, any text: as the name of a folder, never out of the output folder, on a terminal, as typed there."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Collection, Sequence

from pluralign.errors import InputError

_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789_-")
_LONGEST = 120


def folder_name(user: str) -> str:
    """The folder of a person's adapter: different for different ids, also on disks that are blind to case.

    Every byte of the id's UTF-8 outside `[a-z0-9_-]` is percent-encoded. An id of more than 120 bytes becomes a prefix
    and the hash of the whole.

    Args:
        user: any non-empty string.

    Raises:
        ValueError: the id is empty.
    """
    if not user:
        raise ValueError("an id is empty; a person needs a name")
    raw = user.encode("utf-8", "surrogatepass")
    if len(raw) <= _LONGEST:
        name = _encoded(raw)
        # An id of 120 bytes that all need encoding gives 360 characters, more than file systems take.
        if len(name) <= 2 * _LONGEST:
            return name
    # '%-' can stand in no plain encoding, so a shortened name never meets one that was not.
    return f"{_encoded(raw)[:80].rstrip('%')}%-{hashlib.sha256(raw).hexdigest()}"


def shown(user: str, longest: int = 60) -> str:
    """An id on one line of a terminal: what does not print is escaped, what is too long loses its middle."""
    text = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in user)
    return text if len(text) <= longest else f"{text[: longest - 8]}...{text[-5:]}"


def named_people(given: str | Sequence[str] | None, known: Collection[str], *, where: str) -> list[str]:
    """The ids that somebody typed, each once, in that order.

    Args:
        given: a list of ids, or a text: an id, or several with commas between. An id that holds a comma itself is
            taken as it is where somebody has it; among others it goes into a list.
        known: ids that there are.
        where: what the message names.

    Raises:
        InputError: nobody has such an id; the message names near ones.
    """
    if isinstance(given, str):
        given = [given] if given in known else [part.strip() for part in given.split(",") if part.strip()]
    named = list(dict.fromkeys(given or ()))
    for user in named:
        if user not in known:
            near = difflib.get_close_matches(user, dict.fromkeys(known), n=3)
            hint = f"Did you mean {' or '.join(repr(shown(one)) for one in near)}?" if near else _some(known)
            raise InputError(f"nobody has the id {shown(user)!r}", where=where, fix=hint)
    return named


def _some(known: Collection[str]) -> str:
    first = ", ".join(repr(shown(user)) for user in list(known)[:10])
    return f"There are {first}{', ...' if len(known) > 10 else ''}." if known else "There is nobody."


def _encoded(raw: bytes) -> str:
    return "".join(chr(byte) if byte in _PLAIN else f"%{byte:02x}" for byte in raw)
