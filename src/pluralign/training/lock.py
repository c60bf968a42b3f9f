"""One process at a time on a folder: a lock of the operating system's, which a kill gives back by itself."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pluralign.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".lock"
_UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@contextlib.contextmanager
def locked(folder: Path, *, command: str) -> Iterator[None]:
    """Hold a folder for the time of the block; it is made if it is not there, and goes again if it stayed empty.

    The lock is `flock` on a file in the folder, which says who holds it and is removed at the end. Where the system or
    the file system has no such locks (Windows, some network disks) the block runs without one, with a warning.

    Args:
        folder: what is held.
        command: what the others are told is at work.

    Raises:
        InputError: another process holds the folder; the message says which, where and since when.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = _acquire(folder / LOCK_FILE)
    try:
        if descriptor is not None:
            _introduce(descriptor, command)
        yield
    finally:
        if descriptor is not None:
            # While it is still held: who comes next either fails on this file or makes a new one.
            (folder / LOCK_FILE).unlink(missing_ok=True)
            os.close(descriptor)
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _acquire(path: Path) -> int | None:
    """A descriptor that holds the lock; None where there are no locks."""
    if fcntl is None:
        warnings.warn(
            f"{path.parent}: this system has no file locks; see that no other process works here", stacklevel=4
        )
        return None
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(path)
            os.close(descriptor)
            raise InputError(
                f"another process is at work on the folder: {holder}",
                where=str(path.parent),
                fix="Wait until it is done, or stop it, or name another folder.",
            ) from None
        except OSError as error:
            os.close(descriptor)
            if error.errno not in _UNSUPPORTED:
                raise
            warnings.warn(
                f"{path.parent}: its file system has no locks; see that no other process works here", stacklevel=4
            )
            return None
        if _is_in_place(descriptor, path):
            return descriptor
        # Whoever held it has removed the file in between.
        os.close(descriptor)


def _is_in_place(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _introduce(descriptor: int, command: str) -> None:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    holder = {"command": command, "pid": os.getpid(), "host": socket.gethostname(), "since": since}
    os.truncate(descriptor, 0)
    os.write(descriptor, json.dumps(holder).encode())


def _holder(path: Path) -> str:
    try:
        holder: Any = json.loads(path.read_bytes())
        return f"{holder['command']}, process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "it has only just begun"
