"""Who is finished, who was given up, and what a run's folder says of it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pluralign.config import WeightingConfig
from pluralign.models.adapters import INFO_FILE
from pluralign.models.anchoring import Anchored
from pluralign.objectives import Objective
from pluralign.storage import read_json
from pluralign.training.index import Index, write_index
from pluralign.training.runs import RunFolder
from pluralign.training.weighting import Weighting

_INDEX_SECONDS = 5.0


@dataclass(slots=True)
class Rows:
    """Anchored rows of one person."""

    train: Sequence[Anchored]
    held_out: Sequence[Anchored]

    def weighting(self, config: WeightingConfig, objective: Objective, *, among: Weighting | None = None) -> Weighting:
        """What the rows count, among those of the person before them where there were any."""
        return Weighting(config, [row.preference for row in self.train], counts=objective.counts, among=among)


Hashes = Mapping[str, str]
Supply = Callable[[Sequence[str]], Iterator[tuple[str, Rows]]]
"""Takes ids and gives their rows, one person after another, made when they are asked for."""


class Record:
    """What became of everybody, in memory and in `adapters/index.json`.

    Args:
        folder: of the run.
        kind: `parameters.kind`.
        hashes: id -> hashes of the person's rows in the present table, see `save_adapter`; an adapter made from them
            is saved with them.
        writes: whether this process is the one that writes.

    Attributes:
        finished: id -> folder of what that person owns.
        skipped: id -> why a person has nothing, or only what was good before the training failed.
        trained: people whom this call has trained, finished or not.
        again: people who are to be trained whatever was decided before; an adapter that is there stays until then.
        made_from: id -> hashes of the rows that a recalled adapter was made from; empty where they were not recorded.
    """

    def __init__(
        self, folder: RunFolder, kind: str, *, hashes: Mapping[str, Hashes] | None = None, writes: bool = True
    ) -> None:
        self.folder, self.kind, self.writes = folder, kind, writes
        self.hashes: Mapping[str, Hashes] = hashes or {}
        self.finished: dict[str, Path] = {}
        self.skipped: dict[str, str] = {}
        self.trained: set[str] = set()
        self.again: set[str] = set()
        self.made_from: dict[str, Hashes] = {}
        self._index_written = 0.0

    def recall(self, users: Sequence[str], index: Index, *, again: Collection[str] = ()) -> None:
        """Take over what earlier calls on the folder have decided, of people who are in the table no more too.

        Args:
            users: who can be trained.
            index: of the folder; it may lack what was finished just before a kill.
            again: people who are trained anew.
        """
        self.again, present = set(again), set(users)
        for user in dict.fromkeys((*index.people, *users)):
            place = self.place(user)
            info = read_json(place / INFO_FILE) if place.is_dir() else {}
            if info:
                self.finished[user] = place
                self.made_from[user] = info.get("made_from") or {}
            if user in self.again:
                continue
            reason = info.get("note") or (index.skipped.get(user) if info or user in present else None)
            if reason:
                self.skipped[user] = reason
            if info and self.writes:
                shutil.rmtree(self.folder.state(user), ignore_errors=True)

    def decided(self, user: str) -> bool:
        """Whether there is nothing more to do for a person."""
        return user not in self.again and (user in self.finished or user in self.skipped)

    def stays(self, user: str) -> bool:
        """Whether a person has an adapter that only a training without failure replaces."""
        return user in self.again and user in self.finished

    def remaining(self, users: Sequence[str]) -> list[str]:
        """Those of whom nothing is decided yet."""
        return [user for user in users if not self.decided(user)]

    def place(self, user: str) -> Path:
        """Where a person's finished adapter (or the one full model) stands."""
        return self.folder.result(user, self.kind)

    def add(self, finished: Mapping[str, Path], skipped: Mapping[str, str], trained: Collection[str]) -> None:
        """Take over what another worker has decided."""
        self.finished |= finished
        self.skipped |= skipped
        self.trained |= set(trained)

    def arrange(self, users: Sequence[str]) -> None:
        """Put people into an order of one's own, whoever finished first; those it does not name come before."""
        order = {user: number for number, user in enumerate(users)}
        self.finished = dict(sorted(self.finished.items(), key=lambda item: order.get(item[0], -1)))
        self.skipped = dict(sorted(self.skipped.items(), key=lambda item: order.get(item[0], -1)))

    def write_index(self) -> None:
        """Write `adapters/index.json`; a fully trained model has none."""
        if self.writes and self.kind == "lora":
            write_index(self.folder.path, {user: path.name for user, path in self.finished.items()}, self.skipped)
        self._index_written = time.monotonic()

    def note_progress(self) -> None:
        """Write the index if it is due.

        It grows with the population: rewritten for each person, it would cost their number squared. What it may lack
        after a kill is found again by looking at the folders.
        """
        if time.monotonic() - self._index_written > _INDEX_SECONDS:
            self.write_index()
