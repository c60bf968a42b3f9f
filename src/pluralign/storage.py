"""Files that are whole or absent: staged beside their place, synced, renamed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pluralign.errors import InputError

STAGING_PREFIX = ".staging-"


@contextlib.contextmanager
def staged_file(path: Path | str) -> Iterator[Path]:
    """Fill a file beside its place, then move it there in one rename.

    A reader, or a run killed at any moment, sees the old content or the new, never a part. On any exception the old
    file stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f"{STAGING_PREFIX}{uuid.uuid4().hex[:12]}")
    try:
        yield staging
        _sync_file(staging)
        os.replace(staging, path)
    except BaseException as error:
        staging.unlink(missing_ok=True)
        if isinstance(error, OSError):
            # The system names the staging file, and of a full disk none: the reader knows this one.
            error.filename = str(path)
        raise
    _sync_folder(path.parent)


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write a file whole or not at all; see `staged_file`."""
    with staged_file(path) as staging:
        staging.write_bytes(content)


def check_place(path: Path | str) -> None:
    """Find out now, and not after the work, that a file cannot be written.

    Raises:
        InputError: there is a folder of that name, or its own folder cannot be made or written to.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError("it is a folder, and a file is to be written", where=str(path), fix="Name a file in it.")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        found = f"{above} is {'a folder that may not be written to' if above.is_dir() else 'a file, not a folder'}"
        raise InputError(found, where=str(path), fix="Name another place.")


def write_text(path: Path | str, text: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, text.encode("utf-8"))


def write_jsonl(path: Path | str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON object a line."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_json(path: Path | str, value: Any) -> None:
    """Write JSON with keys in the order given, two spaces of indent and a final newline; NaN is refused."""
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """What `write_json` writes."""
    text = json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n"
    # An id may hold half a surrogate pair, which UTF-8 has no bytes for; JSON's own escape has.
    return text.encode("utf-8", "backslashreplace")


def read_json(path: Path | str) -> Any:
    """Read a JSON file.

    Raises:
        InputError: the file is missing, cannot be read or is not JSON; the message names the line.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError("there is no such file", where=str(path)) from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(path)) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"not JSON ({error})", where=str(path)) from None


@contextlib.contextmanager
def staged_folder(path: Path | str) -> Iterator[Path]:
    """Fill a folder beside its place, then move it there in one rename; an older one is replaced.

    On any exception the staged folder is removed and the old one stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f"{STAGING_PREFIX}{uuid.uuid4().hex[:12]}")
    staging.mkdir()
    try:
        yield staging
        for file in staging.rglob("*"):
            if file.is_file():
                _sync_file(file)
        _replace_folder(staging, path)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    _sync_folder(path.parent)


def remove_staging(folder: Path | str) -> None:
    """Remove what killed writers left behind directly below `folder`."""
    for leftover in Path(folder).glob(f"{STAGING_PREFIX}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def sha256_of_file(path: Path | str) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(value: Any) -> str:
    """Hex digest of a JSON value in its canonical form (sorted keys, no spaces)."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _replace_folder(staging: Path, path: Path) -> None:
    if not path.exists():
        os.replace(staging, path)
        return
    # A folder cannot be renamed over one with content: the old one steps aside first. A kill between the two
    # renames leaves neither in place, but the old one is whole under its staging name and the writer redoes it.
    aside = path.with_name(f"{STAGING_PREFIX}{uuid.uuid4().hex[:12]}")
    os.replace(path, aside)
    os.replace(staging, path)
    shutil.rmtree(aside, ignore_errors=True)


def _sync_file(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    # Windows cannot open a folder; there the rename alone has to do.
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
