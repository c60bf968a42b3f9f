"""One cell: a recipe, a learning rate, a world, some people, trained together and asked at every mark."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ground import GENERAL, PROBES, Ground
from recipes import RECIPES

import grid

MARKS = (10, 16, 24, 34, 48, 66, 90, 120, 160)
"""Evenly on a log scale, but for the first: before that hardly anything has changed."""
PAIRS = 240


@dataclass(frozen=True)
class Cell:
    """What is trained and asked.

    Attributes:
        recipe: name in `RECIPES`.
        learning_rate: constant after ten steps of warm-up, so that every mark is the end of a training of its own.
        seed: of world, model, people's draws and adapters.
        people: numbers of the world's people.
        marks: optimiser steps after which people are asked; the last one ends the training.
    """

    recipe: str
    learning_rate: float
    seed: int
    people: tuple[int, ...]
    marks: tuple[int, ...] = MARKS

    @property
    def name(self) -> str:
        """Unique, and fit for a file's name."""
        return f"{self.recipe.replace(' ', '_')}@{self.learning_rate:g}-s{self.seed}-{len(self.people)}p-{self.digest}"

    @property
    def digest(self) -> str:
        """Of everything that decides the result but versions: a recipe that has changed is another cell."""
        what = [asdict(self), asdict(RECIPES[self.recipe]), PAIRS, PROBES, GENERAL]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]

    def kept(self, work: Path) -> Path:
        """Where its result lies."""
        return work / "cells" / f"{self.name}.json"


def result_of(cell: Cell, work: Path) -> dict[str, Any]:
    """A cell's result: from its file, or made now."""
    return grid.result_of(cell, work, lambda: _made(cell, work))


def _made(cell: Cell, work: Path) -> dict[str, Any]:
    from watch import Exam, watched

    from pluralign.models.matmul import quick_matmul

    ground = Ground(cell.seed, work)
    out = work / "runs" / cell.name
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    began = time.process_time()
    ground.prepare()
    with quick_matmul():
        exam = partial(Exam, ground)
        found, base, failed = watched(_configuration(cell, ground, out, work), exam, cell.marks)
    shutil.rmtree(out, ignore_errors=True)
    seconds = round(time.process_time() - began)
    done = {"base": base, "people": found, "failed": failed, "seconds": seconds}
    return {**asdict(cell), "digest": cell.digest, **done}


def _configuration(cell: Cell, ground: Ground, out: Path, work: Path) -> dict[str, Any]:
    recipe = RECIPES[cell.recipe]
    users = [ground.world.users(max(cell.people) + 1)[number] for number in cell.people]
    return {
        "method": "dpo",
        "model": str(ground.model),
        "data": {"path": str(ground.table(users, PAIRS)), "validation": 0.1},
        "output_dir": str(out),
        "cache_dir": str(work / "cache"),
        "seed": cell.seed,
        **recipe.settings(str(ground.general_prompts) if recipe.general else ""),
        "training": {
            "max_steps": cell.marks[-1],
            "learning_rate": cell.learning_rate,
            "lr_scheduler_type": "constant_with_warmup",
            "warmup_steps": 10,
            "eval_strategy": "no",
            "save_strategy": "no",
            "logging_steps": cell.marks[-1],
        },
        "bank": {"slots": len(cell.people)},
        "evaluation": {"generate": False},
    }
