"""What a run's folder says of its people, each file read once. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pluralign.config import TrainConfig
from pluralign.errors import InputError
from pluralign.evaluation.results import Evaluation, measure_of, read_evaluation
from pluralign.preferences import ALL
from pluralign.resolve import resolve
from pluralign.training.index import read_index
from pluralign.training.runs import CONFIG_FILE, RunFolder


@dataclass
class Entry:
    """A person on the list.

    Attributes:
        user: id.
        folder: of the adapter, below the run's; None without one.
        group: of the person, where the evaluation knows it.
        trained: whether there is an adapter.
        reason: why there is none, or why its training ended early.
        steps: optimiser steps, by the metrics.
        accuracy: held-out pairs judged as the person did, a share.
        kept: what the base knows and the adapter still knows, a share.
        bytes: size of the adapter's folder on disk.
    """

    user: str
    folder: str | None
    group: str | None
    trained: bool
    reason: str | None
    steps: int | None
    accuracy: float | None
    kept: float | None
    bytes: int


class Register:
    """The people of one run.

    Args:
        run: its folder.

    Raises:
        InputError: it is the folder of no run, or its index or evaluation cannot be read.
    """

    def __init__(self, run: str | Path) -> None:
        self.folder = RunFolder(run)
        self.path = self.folder.path
        require_run(run)
        self.config: TrainConfig = resolve(TrainConfig, self.path / CONFIG_FILE)
        self.adapters, self.skipped = self._read_people()
        there = self.folder.evaluation.exists()
        self.evaluation: Evaluation | None = read_evaluation(self.folder.evaluation) if there else None

    @property
    def users(self) -> list[str]:
        """Everybody whom the index names."""
        return list(dict.fromkeys((*self.adapters, *self.skipped)))

    @property
    def measured(self) -> dict[str, dict[str, Any]]:
        """Id -> results of the evaluation."""
        return self.evaluation.people if self.evaluation else {}

    @cached_property
    def steps(self) -> dict[str, int]:
        """Id -> the last optimiser step that the metrics tell of."""
        found: dict[str, int] = {}
        for line in self.metrics():
            found[line["user"]] = max(line["step"], found.get(line["user"], 0))
        return found

    def metrics(self) -> Iterator[dict[str, Any]]:
        """The lines of metrics; the torn end that a kill may leave is passed over."""
        if self.folder.metrics.exists():
            with open(self.folder.metrics, "rb") as file:
                for line in file:
                    if line.endswith(b"}\n"):
                        yield json.loads(line)

    def entries(self) -> list[Entry]:
        """Everybody, those with an adapter first, in the order of the index."""
        return [self.entry(user) for user in self.users]

    def entry(self, user: str) -> Entry:
        """One person."""
        place, results = self.adapters.get(user), self.measured.get(user, {})
        return Entry(
            user=user,
            folder=place.relative_to(self.path).as_posix() if place else None,
            group=results.get("group"),
            trained=place is not None,
            reason=self.skipped.get(user),
            steps=self.steps.get(user),
            accuracy=measure_of(results, "pairs.accuracy"),
            kept=measure_of(results, "retention.kept"),
            bytes=sum(sizes_of(place).values()) if place else 0,
        )

    def _read_people(self) -> tuple[dict[str, Path], dict[str, str]]:
        if self.config.parameters.kind == "full":
            return ({ALL: self.folder.model} if self.folder.model.is_dir() else {}), {}
        index = read_index(self.path)
        return {user: self.folder.adapters / name for user, name in index.people.items()}, index.skipped


def require_run(run: str | Path) -> None:
    """Raise an `InputError` where a folder holds no run."""
    if not (Path(run).expanduser() / CONFIG_FILE).is_file():
        fix = "Give the output folder of `pluralign train`."
        raise InputError(f"there is no {CONFIG_FILE}", where=str(run), fix=fix)


def sizes_of(folder: Path) -> dict[str, int]:
    """File below a folder -> bytes; nothing where there is no such folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
