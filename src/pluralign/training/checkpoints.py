"""Checkpoints that are whole or absent: staged beside their place, synced, then renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from safetensors import SafetensorError

from pluralign.errors import PluralignError
from pluralign.storage import STAGING_PREFIX, staged_folder

_NAME = re.compile(r"checkpoint-(\d+)")


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of an optimiser step stands, by the Trainer's convention."""
    return folder / f"checkpoint-{step}"


def staging_path(checkpoint: Path) -> Path:
    """Where a checkpoint is filled, the same on every process; never taken for a checkpoint."""
    return checkpoint.with_name(f"{STAGING_PREFIX}{checkpoint.name}")


def publish(staging: Path, checkpoint: Path) -> None:
    """Give a filled folder its name. A kill at any moment leaves it staged or published, never in between."""
    with staged_folder(checkpoint) as folder:
        # Several processes filled `staging`, so it could not be a folder that one of them had named.
        for path in staging.iterdir():
            os.replace(path, folder / path.name)
    staging.rmdir()


def last_checkpoint(folder: Path) -> Path | None:
    """The published checkpoint of the highest step, or None."""
    found = _published(folder)
    return found[max(found)] if found else None


def remove_others(folder: Path, keep: Collection[Path]) -> None:
    """Remove the checkpoints of a folder that are not in `keep`."""
    for path in _published(folder).values():
        if path not in keep:
            remove_folder(path)


def remove_folder(path: Path) -> None:
    """Remove a folder so that no kill leaves a part of it under its name."""
    if not path.exists():
        return
    aside = path.with_name(f"{STAGING_PREFIX}old-{path.name}")
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(path, aside)
    shutil.rmtree(aside, ignore_errors=True)


def disk_is_full(error: BaseException) -> bool:
    """Whether an exception of a writer means that there is no room: Python's, safetensors' or torch's own."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, SafetensorError):
        return "No space left" in str(error) or "StorageFull" in str(error)
    # torch's archive writer names no cause: it says where in its own source it failed to write.
    return isinstance(error, RuntimeError) and ("inline_container" in str(error) or "PytorchStreamWriter" in str(error))


@contextlib.contextmanager
def full_disk_explained(folder: Path) -> Iterator[None]:
    """A full disk said in words; where it struck, the writer has removed its half."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not disk_is_full(error):
            raise
        raise PluralignError(
            f"{folder}: the disk is full. Nothing is half-written, and who is finished is kept: make room and "
            "give the same command again"
        ) from error


def _published(folder: Path) -> dict[int, Path]:
    if not folder.is_dir():
        return {}
    matches = ((_NAME.fullmatch(path.name), path) for path in folder.iterdir() if path.is_dir())
    return {int(match[1]): path for match, path in matches if match}
