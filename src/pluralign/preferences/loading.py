"""From `data.path` to preferences: files, folders, a hub id, or the embedded world."""

from __future__ import annotations

import contextlib
import gc
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pluralign.config import DataConfig
from pluralign.errors import InputError
from pluralign.preferences.reading import SUFFIXES, Table, add_batches, format_by_name, read_table
from pluralign.preferences.schema import Preferences
from pluralign.preferences.sources import read_source, refuse_shared_stems

WORLD = "world"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def load_preferences(data: DataConfig, seed: int = 0) -> Preferences:
    """Read every table that `data.path` names, in order, into one.

    Rows that cannot be used are in `problems`, comparisons left undecided in `ties`.

    Args:
        data: path, source, split and revision.
        seed: a run's seed. Reading draws nothing, so it changes nothing here.

    Raises:
        InputError: a file or data set cannot be read as a whole, or lacks the columns that are needed.
    """
    paths = [data.path] if isinstance(data.path, str) else list(data.path)
    if not all(paths) or not paths:
        raise InputError("data.path names no file", fix="Give a file, a folder, `world`, or a data set of the hub.")
    with _collection_paused():
        tables = [table for path in paths for table in _tables(path, data)]
        refuse_shared_stems(tables, data.source)
        return _merged([read_source(table, data.source) for table in tables], ", ".join(paths))


@contextlib.contextmanager
def _collection_paused() -> Iterator[None]:
    """Millions of new objects, none of them garbage: looking through them again and again takes half of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _tables(path: str, data: DataConfig) -> Iterator[Table]:
    if path == WORLD:
        yield _world_table()
        return
    local = Path(path).expanduser()
    if _is_folder(local):
        for file in _files_of(local):
            yield read_table(file)
    elif not _exists(local) and format_by_name(path) is None and _HUB_ID.fullmatch(path):
        yield _hub_table(path, data.split, data.revision)
    elif not _exists(local) and format_by_name(path) is None:
        fix = "Give a file, a folder, `world`, or a data set of the hub by owner/name."
        raise InputError("there is no such file", where=path, fix=fix)
    else:
        yield read_table(local)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        # A name too long for the file system is no file.
        return False


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def _files_of(folder: Path) -> list[Path]:
    """The data files directly in a folder, by name; one that `datasets` saved has descriptions in JSON beside them."""
    suffixes = {".arrow"} if (folder / "state.json").exists() else set(SUFFIXES)
    files = [file for file in sorted(folder.iterdir()) if file.is_file() and not file.name.startswith(".")]
    named = [file for file in files if Path(file.name.lower().removesuffix(".gz")).suffix in suffixes]
    if not named:
        raise InputError(
            "the folder holds no file of a known format", where=str(folder), fix=f"Known: {', '.join(SUFFIXES)}."
        )
    return named


def _world_table() -> Table:
    from pluralign.world import World

    table = Table(WORLD)
    for number, row in enumerate(World(0).preferences(), 1):
        table.add(number, row)
    return table


def _hub_table(name: str, split: str, revision: str | None) -> Table:
    import datasets

    table = Table(f"{name} ({split})")
    try:
        data: Any = datasets.load_dataset(name, split=split, revision=revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        # The hub client's own errors, offline mode among them, are OSErrors; ValueErrors name a wrong split.
        reason = str(error).strip().partition("\n")[0]
        fix = "There is no such local file; as a data set of the hub, check its name, split, revision and your network."
        raise InputError(f"cannot be loaded ({type(error).__name__}: {reason})", where=table.name, fix=fix) from None
    columnar = data.with_format("arrow")
    add_batches((batch for part in columnar.iter(10_000) for batch in part.to_batches()), table)
    if not table.rows:
        raise InputError("holds no rows", where=table.name)
    return table


def _merged(parts: list[Preferences], name: str) -> Preferences:
    if len(parts) == 1:
        return parts[0]
    merged = Preferences([], name=name)
    for part in parts:
        merged.rows += part.rows
        merged.problems += part.problems
        for user, count in part.ties.items():
            merged.ties[user] = merged.ties.get(user, 0) + count
    for column in ("user", "group"):
        _refuse_mixture(parts, column)
    return merged


def _refuse_mixture(parts: list[Preferences], column: str) -> None:
    """All tables name their people or none does: rows of nobody among those of people are an oversight."""
    having = [part for part in parts if part.rows and getattr(part.rows[0], column) is not None]
    lacking = [part for part in parts if part.rows and getattr(part.rows[0], column) is None]
    if having and lacking:
        fix = f"Give all of them the column {column!r}, or none."
        raise InputError(f"has no column {column!r}, {having[0].name} has", where=lacking[0].name, fix=fix)
