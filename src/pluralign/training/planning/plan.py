"""A plan: people, work, time, memory and disk of a run, as numbers and as a table."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pluralign.config import TrainConfig
from pluralign.errors import InputError
from pluralign.models.matmul import quick_matmul
from pluralign.training.planning.estimate import Estimate
from pluralign.training.planning.memory import Levels
from pluralign.training.run import Run

if TYPE_CHECKING:
    from rich.table import Table

SCHEMA_VERSION = 1
_PROCESSES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass
class Plan:
    """What a run will take, from here on: what the plan itself has computed is in the cache.

    Attributes:
        people: `new`, `updated`, `left` as they are, `skipped`.
        work: `rows` (examples in all steps), `steps` (of optimisers), `slots` (0 without a bank), `workers`, and the
            tokens through the model, padding included: `training_tokens`, `validation_tokens`, `reference_tokens`, and
            `base_responses` to generate.
        seconds: by phase, with their `total`.
        memory: bytes at the highest point, by part, with their `total`; `forwards` is what training and evaluation took
            beside the other parts, `evaluation` what everybody's takes more than the sample's.
        device: what that memory is of, `cpu` for the host's.
        memory_free: bytes that are free or already this process's.
        disk: bytes that the run leaves, by part, with their `total`; of these `cache` is outside of the output folder.
            `passing`, beside the total, is what checkpoints take while it runs.
        disk_free: bytes that are free where the output folder is.
        warnings: what does not suffice, and what a plan cannot know.
        planning_seconds: what making the plan took.
    """

    people: dict[str, int]
    work: dict[str, int]
    seconds: dict[str, float]
    memory: dict[str, int]
    device: str
    memory_free: int
    disk: dict[str, int]
    disk_free: int
    warnings: list[str] = field(default_factory=list)
    planning_seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}

    def table(self) -> Table:
        """A table for a terminal of 80 columns."""
        from pluralign.training.planning.table import plan_table

        return plan_table(self)


def plan(config: TrainConfig, *, before: float = 0.0) -> Plan:
    """Find out what a run will take. Nothing is written to its output folder.

    A small part of the run is made for real in a temporary folder, and the whole is counted: what the sample's base
    responses and reference log-probs cost is not lost, for they go to the cache.

    Args:
        config: of the run.
        before: seconds that went by before the call and that the run takes too, as the start of the process.

    Raises:
        InputError: as `train` would.
    """
    if config.sft.num_train_epochs > 0:
        raise InputError(
            f"sft.num_train_epochs is {config.sft.num_train_epochs}, and a plan is of one stage",
            fix="Plan the first with method sft, and the second without sft.",
        )
    begun = time.perf_counter()
    workers = int(os.environ.get("WORLD_SIZE", "1"))
    levels = Levels()
    with _alone(), quick_matmul():
        run = Run(config)
        found = run.prepare()
        loading = before + time.perf_counter() - begun
        rows = [row for person in found.census.people for row in person.train]
        levels.loaded(run.worker.base, [*rows, *found.census.held_out])
        with tempfile.TemporaryDirectory(prefix=".plan-", dir=_scratch(run.folder.path)) as folder:
            estimate = Estimate(run, found, Path(folder), loading=loading, levels=levels, processes=workers)
            made = Plan(**estimate.make())
    made.planning_seconds = time.perf_counter() - begun
    return made


@contextmanager
def _alone() -> Iterator[None]:
    """Without the other processes of torchrun, which do not take part in a plan."""
    kept = {name: os.environ.pop(name) for name in _PROCESSES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _scratch(output_dir: Path) -> Path | None:
    """A folder on the output's disk, beside it: saving takes as long there as it will. None for the system's own."""
    beside = next(folder for folder in output_dir.parents if folder.exists())
    return beside if os.access(beside, os.W_OK) else None
