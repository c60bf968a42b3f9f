"""One cell: an arm, a learning rate, a seed; two people who begin with a little fine-tuning, sampled and trained."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import setting
from arms import ARMS

import grid

FIRST = {
    "max_steps": 28,
    "learning_rate": 5e-4,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 10,
}
"""The fine-tuning that a policy begins with: enough that it says what a person likes now and then."""
PASSES = 4
"""Over the pairs of a phase."""
GENERATION = {"do_sample": True, "max_new_tokens": 28, "batch_size": 256}


@dataclass(frozen=True)
class Cell:
    """What is trained and asked; the seed is of two people, their tables, questions, samples and adapters."""

    arm: str
    learning_rate: float
    seed: int

    @property
    def digest(self) -> str:
        """Of everything that decides the result but versions."""
        what = [asdict(self), asdict(ARMS[self.arm]), setting.KINDS, setting.PAIRS, setting.BUDGET, FIRST]
        what += [PASSES, setting.STYLED, setting.INSIDE, setting.OUTSIDE, setting.JUDGES_PAIRS]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]

    def kept(self, work: Path) -> Path:
        """Where its result lies."""
        name = self.arm.replace(" ", "_").replace(",", "")
        return work / "cells" / f"{name}@{self.learning_rate:g}-s{self.seed}-{self.digest}.json"


def result_of(cell: Cell, work: Path) -> dict[str, Any]:
    """A cell's result: from its file, or made now."""
    return grid.result_of(cell, work, lambda: _made(cell, work))


def prepare(seed: int, work: Path) -> None:
    """Make what several processes would else make at the same time: the other judge, what policies begin with."""
    setting.other_judge(work)
    first_stage(seed, work)


def first_stage(seed: int, work: Path) -> Path:
    """The run that everybody's policy begins with."""
    from pluralign.config import TrainConfig
    from pluralign.resolve import resolve
    from pluralign.training import train

    digest = hashlib.sha256(json.dumps([FIRST, setting.KINDS, setting.PAIRS]).encode()).hexdigest()[:8]
    folder = work / f"first-{seed}-{digest}"
    if not (folder / "adapters" / "index.json").exists() or (folder / "unfinished.json").exists():
        values = {"method": "sft", "output_dir": str(folder), **_common(seed, work)}
        values["training"] = {**values["training"], **FIRST}
        train(resolve(TrainConfig, values))
    return folder


@functools.cache
def _of_first(seed: int, work: Path) -> dict[str, dict[str, Any]]:
    from asking import asked

    return asked(seed, work, first_stage(seed, work))


def _made(cell: Cell, work: Path) -> dict[str, Any]:
    from asking import asked, measured

    from pluralign.annotators.function import WorldJudge
    from pluralign.online_config import OnlineConfig
    from pluralign.resolve import resolve
    from pluralign.training.online.run import online

    arm, first = ARMS[cell.arm], _of_first(cell.seed, work)
    out = work / "runs" / cell.kept(work).stem
    shutil.rmtree(out, ignore_errors=True)
    common = _common(cell.seed, work)
    values = {
        **common,
        **arm.more,
        "method": "dpo",
        "output_dir": str(out),
        "parameters": {"start": str(first_stage(cell.seed, work))},
        "reference": arm.reference,
        "loss": arm.loss,
        "pairs": {"phases": arm.phases, "budget": setting.BUDGET, "generation": GENERATION},
        "annotator": {"type": "world"},
        "training": {**common["training"], "num_train_epochs": PASSES, "learning_rate": cell.learning_rate},
    }
    began = time.process_time()
    with _timed() as seconds:
        result = online(resolve(OnlineConfig, values), WorldJudge(setting.world()))
    run = {"skipped": len(result.skipped), "paired": _paired(out, len(setting.people(cell.seed)))}
    run |= {name: round(value, 2) for name, value in seconds.items()}
    found = measured(cell.seed, work, asked(cell.seed, work, out), first)
    shutil.rmtree(out, ignore_errors=True)
    spent = round(time.process_time() - began, 1)
    return {**asdict(cell), "digest": cell.digest, "people": found, "run": run, "seconds": spent}


def _paired(out: Path, people: int) -> float:
    """Share of the annotated prompts that gave a pair."""
    found = sum(len(path.read_text().splitlines()) for path in out.glob("phases/*/pairs-*.jsonl"))
    return round(found / (setting.BUDGET * people), 3)


def _common(seed: int, work: Path) -> dict[str, Any]:
    path = setting.table(setting.people(seed), setting.PAIRS, work / "tables")
    training = {"per_device_train_batch_size": 8, "warmup_steps": 0.1, "logging_steps": 1000}
    return {
        "model": setting.MODEL,
        "data": {"path": str(path), "validation": 0.0},
        "cache_dir": str(work / "cache"),
        "seed": seed,
        "training": {**training, "eval_strategy": "no", "save_strategy": "no"},
        "evaluation": {"generate": False, "cross_table": 0},
    }


@contextmanager
def _timed() -> Iterator[dict[str, float]]:
    """Seconds of one core that sampling, labelling and learning take."""
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
        began = time.process_time()
        try:
            return function(*arguments, **keywords)
        finally:
            seconds[part] += time.process_time() - began

    return run
