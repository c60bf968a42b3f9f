"""`adapters/index.json`: whose adapters a run holds. No torch: listing people must not pay for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from pluralign.errors import InputError
from pluralign.preferences.people import folder_name
from pluralign.storage import read_json, write_json

SCHEMA_VERSION = 1


class Index(NamedTuple):
    """Whose adapters a run holds.

    Attributes:
        people: id -> name of the folder below `adapters/`.
        skipped: id -> why there is no adapter, or why its training ended early.
    """

    people: dict[str, str]
    skipped: dict[str, str]


def index_path(output_dir: Path | str) -> Path:
    """Where a run has its index."""
    return Path(output_dir) / "adapters" / "index.json"


def write_index(output_dir: Path | str, people: dict[str, str], skipped: dict[str, str]) -> None:
    """Write `adapters/index.json`; see `Index`."""
    write_json(index_path(output_dir), {"schema_version": SCHEMA_VERSION, "people": people, "skipped": skipped})


def read_index(output_dir: Path | str) -> Index:
    """Read `adapters/index.json`.

    Raises:
        InputError: it is missing or broken, or names a folder outside `adapters/`.
    """
    path = index_path(output_dir)
    index = read_json(path)
    version = index.get("schema_version") if isinstance(index, dict) else index
    if not isinstance(index, dict) or version != SCHEMA_VERSION:
        raise InputError(f"schema_version is {version!r}, and this is {SCHEMA_VERSION}", where=str(path))
    people: Any = index.get("people")
    skipped: Any = index.get("skipped")
    if not (_is_text_map(people) and _is_text_map(skipped)):
        raise InputError("'people' and 'skipped' must map ids to text", where=str(path))
    for user, folder in people.items():
        if not user or folder != folder_name(user):
            raise InputError(
                f"user {user!r} has the folder {folder!r}, which is not the one of that id", where=str(path)
            )
    return Index(people, skipped)


def _is_text_map(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
