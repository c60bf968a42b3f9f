"""A bank at one moment, in one file: who is in the slots, how far, and who waits."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pluralign.errors import InputError
from pluralign.storage import staged_file
from pluralign.training.runs import RunFolder
from pluralign.training.shares import Share

SCHEMA_VERSION = 1
# No person's folder: an at sign is percent-encoded in theirs.
_NAME = re.compile(r"@bank-(\d+)-of-(\d+)\.pt")
_MOST = 0.05


@dataclass(slots=True)
class Snapshot:
    """What a worker goes on from; everybody of its share who is neither here nor waiting was finished before.

    Attributes:
        slots: of the bank: the same forwards need as many; 0 where nobody has begun.
        learners: `Learner.state_dict` of everybody in a slot, with their sums of metrics.
        waiting: ids of those who have not begun, in order.
        skipped: id -> why somebody of the share has nothing, or less than all steps.
    """

    slots: int
    learners: list[dict[str, Any]]
    waiting: list[str]
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def users(self) -> list[str]:
        """Everybody who is to be trained on, in the order in which their rows are needed."""
        return [*(learner["user"] for learner in self.learners), *self.waiting]

    @property
    def steps(self) -> dict[str, int]:
        """Person -> optimiser steps made, -1 for those who wait."""
        begun = {learner["user"]: int(learner["trainer"]["global_step"]) for learner in self.learners}
        return {**dict.fromkeys(self.waiting, -1), **begun}


class Snapshots:
    """The snapshots of a run's workers.

    A worker writes its own so seldom that they take a twentieth of the time at most.

    Args:
        folder: where they stand.
        share: of this worker.
    """

    def __init__(self, folder: Path, share: Share) -> None:
        self.folder, self.share = folder, share
        self.path = folder / f"@bank-{share.index}-of-{share.count}.pt"
        self._took, self._ended = 0.0, time.monotonic()

    @property
    def affordable(self) -> bool:
        """Whether enough time has passed since the last one."""
        return self._took <= _MOST * (time.monotonic() - self._ended)

    def begin(self, users: Sequence[str]) -> Snapshot:
        """Note whose people are whose: that holds from here on, whoever is finished when a killed run goes on."""
        first = Snapshot(slots=0, learners=[], waiting=list(users))
        self.write(lambda: first)
        return first

    def write(self, make: Callable[[], Snapshot]) -> None:
        """Write a snapshot in place of the last one."""
        began = time.monotonic()
        made = make()
        content = {
            "schema_version": SCHEMA_VERSION,
            "slots": made.slots,
            "learners": made.learners,
            "waiting": made.waiting,
            "skipped": made.skipped,
        }
        with staged_file(self.path) as staging, open(staging, "wb") as file:
            torch.save(content, file)
        self._ended = time.monotonic()
        self._took = self._ended - began

    def read(self) -> dict[int, Snapshot]:
        """Index of a worker -> its last snapshot, of all who have one; tensors stay on disk until they are used.

        Raises:
            InputError: one cannot be read, is of another version, or of another number of workers.
        """
        self._check_count()
        return {index: _read(path, mmap=True) for (index, _), path in _found(self.folder).items()}

    def own(self) -> Snapshot | None:
        """The last snapshot of this worker, or None.

        Raises:
            InputError: as for `read`.
        """
        self._check_count()
        return _read(self.path) if self.path.is_file() else None

    def _check_count(self) -> None:
        count = workers_before(self.folder)
        if count not in (None, self.share.count):
            raise InputError(
                f"the run was begun with {_workers(count)}, and this is {_workers(self.share.count)}",
                where=str(self.folder.parent),
                fix="Go on with as many as before, or set --overwrite to begin anew.",
            )


def take_up(folder: RunFolder, count: int, users: Collection[str]) -> dict[int, Snapshot]:
    """What the workers of a killed run have left, before any of this one begins.

    All lines of metrics go into the one file, without those of steps that will be made again.

    Args:
        folder: of the run.
        count: of this run's workers.
        users: those of whom nothing is decided.

    Returns:
        Index of a worker -> its last snapshot.

    Raises:
        InputError: see `Snapshots.read`.
    """
    found = Snapshots(folder.path / "state", Share(0, count)).read()
    folder.gather_metrics()
    if count > 1:  # one alone keeps its lines in that file, and goes through them itself
        folder.keep_metrics(last_steps(found.values(), users))
    return found


def workers_before(folder: Path) -> int | None:
    """Number of workers that a killed run was divided over, or None where nothing says so."""
    return next((count for _, count in _found(folder)), None)


def last_steps(snapshots: Iterable[Snapshot], users: Iterable[str]) -> dict[str, int]:
    """Person -> last optimiser step that will not be made again.

    Args:
        snapshots: that workers go on from.
        users: those of whom nothing is decided; who is in no snapshot begins.
    """
    steps = dict.fromkeys(users, -1)
    for snapshot in snapshots:
        steps |= snapshot.steps
        for user in snapshot.skipped:
            steps.pop(user, None)
    return steps


def _found(folder: Path) -> dict[tuple[int, int], Path]:
    """Index and number of workers -> file."""
    named = ((path, _NAME.fullmatch(path.name)) for path in sorted(folder.glob("@bank-*")))
    return {(int(match[1]), int(match[2])): path for path, match in named if match}


def _read(path: Path, *, mmap: bool = False) -> Snapshot:
    fix = "Set --overwrite to begin anew."
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise InputError(f"the snapshot cannot be read ({error})", where=str(path), fix=fix) from None
    if not isinstance(content, dict) or content.pop("schema_version", None) != SCHEMA_VERSION:
        raise InputError("the snapshot is of another version", where=str(path), fix=fix)
    return Snapshot(**content)


def _workers(count: int | None) -> str:
    return "one worker" if count == 1 else f"{count} workers"
