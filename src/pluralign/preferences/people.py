"""From the id of a person, any text, to the name of a folder, never out of the output folder, and to a terminal."""

from __future__ import annotations

import hashlib

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


def _encoded(raw: bytes) -> str:
    return "".join(chr(byte) if byte in _PLAIN else f"%{byte:02x}" for byte in raw)
