"""One cell on real text: a recipe, a learning rate, a population, a seed; everybody is asked at every mark.

Populations, model and taught trivia are those of `benchmarks/real_text`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from recipes import RECIPES

import grid

sys.path.append(str(Path(__file__).parents[1] / "real_text"))

from sources import Trivia, from_probe
from tasks import TASKS, Task, write_pairs

BATCH = 4
MARKS = {"dsp": (6, 12, 24, 48), "personas": (12, 24, 48)}
PEOPLE_TASKS: dict[str, Task] = {
    "dsp": replace(TASKS["dsp"], held_out_pairs=40),
    "personas": replace(TASKS["personas"], train_pairs=100, held_out_pairs=40),
}
PROMPTS = {"dsp": 40, "personas": 24}
"""Held-out prompts that everybody answers."""
PROBES = {"dsp": 40, "personas": 20}
"""Taught facts asked of everybody, as many from the topics that general prompts reach and from those they do not."""
SET_APART = 40
"""Facts of the topics that general prompts reach, and that none of them is about."""
GENERAL = 300


@dataclass(frozen=True)
class Texts:
    """Where everything lies.

    Attributes:
        data: folder of the published data.
        model: what `real_text/make_model.py` wrote.
        work: folder of tables, caches and cells.
    """

    data: Path
    model: Path
    work: Path

    def facts(self, probes: int = SET_APART) -> tuple[dict[str, list[Trivia]], list[str]]:
        """Taught facts to ask about, of covered and of uncovered topics; and questions of other covered facts."""
        lines = (self.model / "learned.jsonl").read_text(encoding="utf-8").splitlines()
        facts = [from_probe(json.loads(line)) for line in lines]
        topics = sorted({fact.topic for fact in facts})[::2]
        covered = [fact for fact in facts if fact.topic in topics]
        asked = {
            "covered": covered[:SET_APART][:probes],
            "uncovered": [fact for fact in facts if fact.topic not in topics][:probes],
        }
        return asked, [fact.question for fact in covered[SET_APART : SET_APART + GENERAL]]

    def general(self) -> Path:
        """Those questions as a table."""
        from pluralign.storage import write_text

        path = self.work / f"general-{GENERAL}-beside-{SET_APART}.jsonl"
        if not path.exists():
            write_text(path, "".join(json.dumps({"prompt": question}) + "\n" for question in self.facts()[1]))
        return path

    def prepare(self, wanted: Iterable[tuple[str, int]]) -> None:
        """Make what several processes would else make at the same time: the tables of (population, seed)."""
        self.general()
        for task, seed in wanted:
            self.table(PEOPLE_TASKS[task], seed)

    def table(self, task: Task, seed: int) -> Path:
        """The population's pairs."""
        path = self.work / "tables" / f"{task.name}-{seed}-{task.train_pairs}+{task.held_out_pairs}.jsonl"
        return path if path.exists() else write_pairs(task, self.data, seed, path)


@dataclass(frozen=True)
class TextCell:
    """What is trained and asked; the seed is of pairs, split, adapters and order."""

    task: str
    recipe: str
    learning_rate: float
    seed: int

    @property
    def digest(self) -> str:
        """Of everything that decides the result but the model and versions."""
        task = [asdict(PEOPLE_TASKS[self.task]), MARKS[self.task], PROMPTS[self.task], BATCH, PROBES[self.task]]
        what = [asdict(self), asdict(RECIPES[self.recipe]), task, SET_APART, GENERAL]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]

    def kept(self, work: Path) -> Path:
        """Where its result lies."""
        recipe = self.recipe.replace(" ", "_")
        return work / "cells" / f"{self.task}-{recipe}@{self.learning_rate:g}-s{self.seed}-{self.digest}.json"


def result_of(cell: TextCell, texts: Texts) -> dict[str, Any]:
    """A cell's result: from its file, or made now."""
    return grid.result_of(cell, texts.work, lambda: _made(cell, texts))


def _made(cell: TextCell, texts: Texts) -> dict[str, Any]:
    from text_exam import TextExam
    from watch import watched

    from pluralign.models.matmul import quick_matmul

    out = texts.work / "runs" / cell.kept(texts.work).stem
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    began = time.process_time()
    config = _configuration(cell, texts, out)
    marks = MARKS[cell.task]
    facts, _ = texts.facts(PROBES[cell.task])
    with quick_matmul():
        exam = partial(TextExam, config, facts, PROMPTS[cell.task])
        found, base, failed = watched(config, exam, marks, losses=False)
    shutil.rmtree(out, ignore_errors=True)
    seconds = round(time.process_time() - began)
    done = {"base": base, "people": found, "failed": failed, "seconds": seconds}
    return {**asdict(cell), "marks": marks, "digest": cell.digest, **done}


def _configuration(cell: TextCell, texts: Texts, out: Path) -> dict[str, Any]:
    task, recipe = PEOPLE_TASKS[cell.task], RECIPES[cell.recipe]
    settings = recipe.settings(str(texts.general()) if recipe.general else "")
    return {
        "method": "dpo",
        "model": str(texts.model),
        "device": "cpu",
        "data": {
            "path": str(texts.table(task, cell.seed)),
            "validation": task.held_out_pairs / (task.train_pairs + task.held_out_pairs),
            "split_by": "prompt",
            "max_prompt_length": task.max_prompt,
            "max_response_length": task.max_response,
            "chat_template": "always",
        },
        "output_dir": str(out),
        "cache_dir": str(texts.work / "cache"),
        "seed": cell.seed,
        **settings,
        "base_responses": {"max_new_tokens": task.answer, **settings["base_responses"]},
        "training": {
            "max_steps": MARKS[cell.task][-1],
            "per_device_train_batch_size": BATCH,
            "learning_rate": cell.learning_rate,
            "lr_scheduler_type": "constant_with_warmup",
            "warmup_steps": 5,
            "eval_strategy": "no",
            "save_strategy": "no",
            "logging_steps": MARKS[cell.task][-1],
        },
        "bank": {"slots": len(task.files) if cell.task == "personas" else 4},
        "evaluation": {"generate": False},
    }
