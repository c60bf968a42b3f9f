"""What is computed once: values by the content they depend on, on disk, shared by all users, runs and processes.

A folder `<cache>/<kind>/<hash of the facts>/` holds the values of one section: `facts.json` for the human reader, and
segments `segment-<id>.jsonl`, each written once (staged, synced, renamed) and never changed. A line is
`{"key": ..., "value": ..., "sum": ...}`. Writers never touch each other's files, so processes need no lock.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import uuid
import warnings
from collections.abc import Collection, Mapping
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

from pluralign.storage import STAGING_PREFIX, sha256_of_json, write_bytes, write_json

SCHEMA_VERSION = 1
_PENDING_ENTRIES = 4096
_PENDING_SECONDS = 30.0
_SMALL_SEGMENT = 4 << 20
_MANY_SEGMENTS = 64
_ABANDONED_SECONDS = 86_400.0
_LOOKED_AT = 256
_SUM = b',"sum":"'
_KEY = b'{"key":"'
_WRITTEN = "segment-"


def default_folder() -> Path:
    """`$PLURALIGN_CACHE`, or `~/.cache/pluralign`."""
    return Path(os.environ.get("PLURALIGN_CACHE") or "~/.cache/pluralign")


class Cache:
    """A folder of sections.

    One that cannot be written costs one warning that names it; from then on nothing is written, and the run goes on.

    Args:
        folder: where it is; None is `default_folder()`. Made with the first value.
    """

    def __init__(self, folder: Path | str | None = None) -> None:
        self.folder = Path(folder or default_folder()).expanduser()
        self.writable = True
        self._sections: dict[Path, Section] = {}

    def section(self, kind: str, facts: Mapping[str, Any]) -> Section:
        """The values of one kind that share `facts`; read from disk once per `Cache`.

        Args:
            kind: name of the folder above, as `base_responses`.
            facts: everything besides the key that a value depends on, as JSON values.
        """
        facts = {"schema_version": SCHEMA_VERSION, **facts}
        folder = self.folder / kind / sha256_of_json(facts)[:32]
        if folder not in self._sections:
            self._sections[folder] = Section(self, folder, facts)
        return self._sections[folder]

    def find(self, kind: str, keys: Collection[str]) -> dict[str, list[Any]]:
        """Key -> its values, one a section of the kind that has it, whatever facts the section is of."""
        found: dict[str, list[Any]] = {}
        for path in self._files(kind):
            if path.suffix != ".jsonl":
                continue
            values: dict[str, Any] = {}
            wanted = [line for line in _lines(path) if _key_of(line) in keys]
            _read_lines(b"\n".join(wanted), path.parent.name.encode(), values)
            for key, value in values.items():
                found.setdefault(key, []).append(value)
        return found

    def remove(self, kind: str, keys: Collection[str]) -> int:
        """Take values out of all sections of a kind, and damaged lines, of which nobody can say whose they are.

        A segment that holds one is replaced by a new one with its other lines, which appears before the old one goes. A
        process at work that has read the values meanwhile may write them again.

        Returns:
            Number of lines taken out.
        """
        removed = 0
        for path in self._files(kind):
            if path.suffix != ".jsonl":
                continue
            lines, salt = _lines(path), path.parent.name.encode()
            kept = [line for line in lines if _key_of(line) not in keys and _is_whole(line, salt)]
            if len(kept) == len(lines):
                continue
            if kept:
                write_bytes(path.with_name(f"segment-{uuid.uuid4().hex}.jsonl"), b"\n".join(kept) + b"\n")
            path.unlink(missing_ok=True)
            removed += len(lines) - len(kept)
        return removed

    def holding(self, keys: Collection[str]) -> tuple[list[Path], int]:
        """The files that have one of some keys in them, half-written ones too, and the number of files looked at."""
        files = self._files("*")
        return [path for path in files if any(_key_of(line) in keys for line in _lines(path))], len(files)

    def _files(self, kind: str) -> list[Path]:
        """Segments, and what writers have not finished."""
        found = self.folder.glob(f"{kind}/*/*")
        return sorted(path for path in found if path.name.startswith((_WRITTEN, STAGING_PREFIX)))

    def unwritable(self, error: OSError) -> None:
        """Stop writing, and say so once."""
        if self.writable:
            warnings.warn(
                f"the cache {self.folder} cannot be written ({error.strerror or error}): this run goes on without "
                "keeping what it computes. Free some space, or name another folder with --cache_dir",
                stacklevel=2,
            )
        self.writable = False


class Section:
    """Values by key, as JSON values; used in a `with` block, or flushed by hand.

    Attributes:
        folder: where its segments are.
        hits: lookups that found a value.
        misses: lookups that did not.
        damaged: lines that failed their checksum when the section was read; their values count as missing.
    """

    def __init__(self, cache: Cache, folder: Path, facts: Mapping[str, Any]) -> None:
        self.folder, self.hits, self.misses, self.damaged = folder, 0, 0, 0
        self._cache, self._facts = cache, facts
        # The sum covers the section's name too: a segment that strayed into another folder is not believed.
        self._salt = folder.name.encode()
        self._pending: list[bytes] = []
        self._last_flush = time.monotonic()
        self._values = self._load()

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    @property
    def bytes_each(self) -> float:
        """Mean bytes of a value on disk, of some that are there; 0 where there are none."""
        some = [len(_line(key, value, self._salt)) + 1 for key, value in islice(self._values.items(), _LOOKED_AT)]
        return sum(some) / len(some) if some else 0.0

    def __enter__(self) -> Section:
        self._last_flush = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()

    def get(self, key: str) -> Any | None:
        """The value of a key (hex digest of the content), or None."""
        value = self._values.get(key)
        if value is None:
            self.misses += 1
        else:
            self.hits += 1
        return value

    def put(self, key: str, value: Any) -> None:
        """Keep a value; written to disk with the next flush (every 4096 values, every 30 seconds, at the block's end).

        A key that is there keeps its value: the first one computed is the one every later run sees.
        """
        if key in self._values:
            return
        self._values[key] = value
        self._pending.append(_line(key, value, self._salt))
        if len(self._pending) >= _PENDING_ENTRIES or time.monotonic() - self._last_flush > _PENDING_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is pending as one new segment."""
        pending, self._pending = self._pending, []
        self._last_flush = time.monotonic()
        if pending:
            self._write_segment(pending)

    def _write_segment(self, lines: list[bytes]) -> bool:
        if not self._cache.writable:
            return False
        try:
            if not (self.folder / "facts.json").exists():
                write_json(self.folder / "facts.json", dict(self._facts))
            write_bytes(self.folder / f"segment-{uuid.uuid4().hex}.jsonl", b"\n".join(lines) + b"\n")
        except OSError as error:
            self._cache.unwritable(error)
            return False
        return True

    def _load(self) -> dict[str, Any]:
        values: dict[str, Any] = {}
        seen: set[Path] = set()
        small: dict[Path, list[bytes]] = {}
        damaged: dict[Path, list[bytes]] = {}
        # Another process may merge segments while they are read here: what vanished stands in one that is listed next.
        while fresh := [path for path in self._segments() if path not in seen]:
            seen.update(fresh)
            for path in fresh:
                content = self._read(path)
                lines, broken = _read_lines(content, self._salt, values)
                self.damaged += broken
                if broken:
                    damaged[path] = lines
                elif 0 < len(content) < _SMALL_SEGMENT:
                    small[path] = lines
        if damaged:
            warnings.warn(
                f"the cache {self.folder} holds {self.damaged} damaged line(s), in "
                f"{', '.join(path.name for path in damaged)}: they are ignored and computed again",
                stacklevel=2,
            )
        self._replace(damaged | small if len(small) > _MANY_SEGMENTS else damaged)
        return values

    @staticmethod
    def _read(path: Path) -> bytes:
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            warnings.warn(
                f"{path} cannot be read ({error.strerror or error}); its values are computed again", stacklevel=2
            )
            return b""

    def _segments(self) -> list[Path]:
        try:
            names = sorted(entry.name for entry in os.scandir(self.folder))
        except OSError:
            return []  # nothing there yet; where it cannot be read it cannot be written either, and that is reported
        for name in names:
            if name.startswith(STAGING_PREFIX):
                self._remove_abandoned(self.folder / name)
        return [self.folder / name for name in names if name.startswith("segment-") and name.endswith(".jsonl")]

    @staticmethod
    def _remove_abandoned(staging: Path) -> None:
        # A young one may belong to a process that is writing it now.
        with contextlib.suppress(OSError):
            if time.time() - staging.stat().st_mtime > _ABANDONED_SECONDS:
                staging.unlink()

    def _replace(self, segments: Mapping[Path, list[bytes]]) -> None:
        """Replace damaged segments, and small ones where there are many, by one that holds all their good lines.

        Safe beside other processes: segments never change, and one is removed only after a whole segment with all its
        good lines stands in its place. Two processes that do this at once leave double lines, and lose none.
        """
        lines = list(dict.fromkeys(line for path in sorted(segments) for line in segments[path]))
        if lines and not self._write_segment(lines):
            return
        for path in segments:
            with contextlib.suppress(OSError):
                path.unlink()


def _lines(path: Path) -> list[bytes]:
    """Lines of a segment; none where another process has replaced it meanwhile."""
    try:
        # Not splitlines, which would also split at a carriage return.
        return [line for line in path.read_bytes().split(b"\n") if line]
    except FileNotFoundError:
        return []


def _key_of(line: bytes) -> str:
    end = line.find(b'"', len(_KEY))
    return line[len(_KEY) : end].decode("ascii", "replace") if line.startswith(_KEY) else ""


def _is_whole(line: bytes, salt: bytes) -> bool:
    body, _, end = line.rpartition(_SUM)
    return end == _digest(body, salt) + b'"}'


def _line(key: str, value: Any, salt: bytes) -> bytes:
    body = json.dumps({"key": key, "value": value}, separators=(",", ":"))[:-1].encode("ascii")
    return body + _SUM + _digest(body, salt) + b'"}'


def _read_lines(content: bytes, salt: bytes, values: dict[str, Any]) -> tuple[list[bytes], int]:
    """Add a segment's values to `values`; returns its good lines and the number of the others."""
    good: list[bytes] = []
    broken = 0
    # Not splitlines, which would also split at a carriage return.
    for line in filter(None, content.split(b"\n")):
        body, _, end = line.rpartition(_SUM)
        # The bytes are checked before they are parsed: what is parsed is what was written.
        if end != _digest(body, salt) + b'"}':
            broken += 1
            continue
        good.append(line)
        entry = json.loads(body + b"}")
        values.setdefault(entry["key"], entry["value"])
    return good, broken


def _digest(body: bytes, salt: bytes) -> bytes:
    return hashlib.blake2b(salt + body, digest_size=8).hexdigest().encode()
