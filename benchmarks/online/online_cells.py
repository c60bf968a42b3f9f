"""One cell: an arm, a learning rate, a world; four people who begin with a little fine-tuning, sampled and trained."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from arms import ARMS
from ground import PROBES, Ground

import grid

PEOPLE = (0, 1, 2, 4)
"""Numbers of the world's people: two who replace the base's form, one who keeps it, one who is terse."""
PAIRS, BUDGET = 240, 192
"""Pairs of a person's table, of which a tenth is held out, and prompts that their policy is annotated for."""
FIRST = {
    "max_steps": 36,
    "learning_rate": 5e-4,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 10,
}
"""The fine-tuning that a policy begins with: enough that it says what a person likes now and then."""


@dataclass(frozen=True)
class Cell:
    """What is trained and asked; the seed is of world, model, people's draws, samples and adapters."""

    arm: str
    learning_rate: float
    seed: int

    @property
    def digest(self) -> str:
        """Of everything that decides the result but versions."""
        what = [asdict(self), asdict(ARMS[self.arm]), PEOPLE, PAIRS, BUDGET, FIRST, PROBES]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]

    def kept(self, work: Path) -> Path:
        """Where its result lies."""
        name = self.arm.replace(" ", "_").replace(",", "")
        return work / "cells" / f"online-{name}@{self.learning_rate:g}-s{self.seed}-{self.digest}.json"


def result_of(cell: Cell, work: Path) -> dict[str, Any]:
    """A cell's result: from its file, or made now."""
    return grid.result_of(cell, work, lambda: _made(cell, work))


def prepare(seed: int, work: Path) -> None:
    """Make what several processes would else make at the same time: the world's model, what policies begin with."""
    ground = Ground(seed, work)
    ground.prepare()
    first_stage(ground, work)


def first_stage(ground: Ground, work: Path) -> Path:
    """The run that everybody's policy begins with."""
    from pluralign.config import TrainConfig
    from pluralign.resolve import resolve
    from pluralign.training import train

    digest = hashlib.sha256(json.dumps([FIRST, PEOPLE, PAIRS]).encode()).hexdigest()[:8]
    folder = ground.folder / f"online-first-{digest}"
    if not (folder / "adapters" / "index.json").exists() or (folder / "unfinished.json").exists():
        values = {"method": "sft", "output_dir": str(folder), **_common(ground, work)}
        values["training"] = {**values["training"], **FIRST, "eval_strategy": "no"}
        train(resolve(TrainConfig, values))
    return folder


def _made(cell: Cell, work: Path) -> dict[str, Any]:
    from asking import asked

    from pluralign.annotators.function import WorldJudge
    from pluralign.online_config import OnlineConfig
    from pluralign.resolve import resolve
    from pluralign.training.online.run import online

    ground, arm = Ground(cell.seed, work), ARMS[cell.arm]
    first = first_stage(ground, work)
    out = work / "runs" / cell.kept(work).stem
    shutil.rmtree(out, ignore_errors=True)
    common = _common(ground, work)
    values = {
        **common,
        **arm.more,
        "method": "dpo",
        "output_dir": str(out),
        "parameters": {"start": str(first)},
        "reference": arm.reference,
        "loss": arm.loss,
        "pairs": {"phases": arm.phases, "budget": BUDGET, "generation": {"do_sample": True, "max_new_tokens": 40}},
        "annotator": {"type": "world"},
        "training": {**common["training"], "num_train_epochs": 2, "learning_rate": cell.learning_rate},
    }
    began = time.process_time()
    with _timed() as seconds:
        result = online(resolve(OnlineConfig, values), WorldJudge(ground.world))
    trained = {"skipped": len(result.skipped), **{name: round(value, 1) for name, value in seconds.items()}}
    people = asked(ground, work, first, out)
    shutil.rmtree(out, ignore_errors=True)
    spent = round(time.process_time() - began)
    return {**asdict(cell), "digest": cell.digest, "people": people, "run": trained, "seconds": spent}


def _common(ground: Ground, work: Path) -> dict[str, Any]:
    users = ground.world.users(max(PEOPLE) + 1)
    table = ground.table([users[number] for number in PEOPLE], PAIRS)
    training = {"per_device_train_batch_size": 8, "warmup_steps": 0.1, "logging_steps": 1000}
    return {
        "model": str(ground.model),
        "data": {"path": str(table), "validation": 0.1},
        "cache_dir": str(work / "cache"),
        "seed": ground.seed,
        "training": {**training, "eval_strategy": "no", "save_strategy": "no"},
        "evaluation": {"generate": False, "cross_table": 0},
    }


@contextmanager
def _timed() -> Iterator[dict[str, float]]:
    """Seconds of sampling, labelling and learning."""
    from pluralign.training.online import population
    from pluralign.training.online.population import OnlinePopulation

    seconds = {"sampling": 0.0, "labelling": 0.0, "learning": 0.0}
    places = [(OnlinePopulation, "_sample", "sampling"), (population, "annotate", "labelling")]
    places += [(OnlinePopulation, "_learn", "learning")]
    before = [(where, name, getattr(where, name)) for where, name, _ in places]
    for (where, name, own), (_, _, part) in zip(before, places, strict=True):
        setattr(where, name, _timing(own, part, seconds))
    try:
        yield seconds
    finally:
        for where, name, own in before:
            setattr(where, name, own)


def _timing(function: Callable[..., Any], part: str, seconds: dict[str, float]) -> Callable[..., Any]:
    def run(*arguments: Any, **keywords: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*arguments, **keywords)
        finally:
            seconds[part] += time.perf_counter() - began

    return run
