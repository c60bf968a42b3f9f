"""One cell on real text: a method, a learning rate, a seed; one policy for two groups of HH, or for twenty personas.

Model and taught trivia are those of `benchmarks/real_text`.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from methods import METHODS
from two_stages import Budget, Setting, tables

import grid

sys.path.append(str(Path(__file__).parents[1] / "real_text"))

from tasks import PERSONAS, TASKS

Row = dict[str, Any]
MEASURED = 2
"""Form of what is measured."""
LONGEST = 240
"""Characters of a prompt or response: the model reads 384 tokens, and a longer text would be cut anyway."""


@dataclass(frozen=True)
class Population:
    """Groups of real preferences.

    Attributes:
        pairs: group -> training pairs.
        held_out: pairs of each group that are asked about.
        facts: taught ones that each group is asked.
        budget: of every method.
        brief: whether a response is Yes or No, so that a program can tell whether the policy says it.
    """

    pairs: dict[str, int]
    held_out: int
    facts: int
    budget: Budget
    brief: bool


POPULATIONS = {
    "hh": Population({"helpful": 320, "harmless": 80}, 100, 60, Budget(40, 1e-4, 30, 8), brief=False),
    "personas": Population(dict.fromkeys(PERSONAS, 40), 20, 10, Budget(150, 3e-4, 60, 16), brief=True),
}


@dataclass(frozen=True)
class Texts:
    """Where everything lies: the published data, the model of `real_text/make_model.py`, tables and cells."""

    data: Path
    model: Path
    work: Path

    def setting(self, population: str, seed: int) -> Setting:
        """Model and tables of a population."""
        of, task = POPULATIONS[population], TASKS[population]
        folder = self.work / f"{population}-{seed}"
        name = f"groups-{'-'.join(map(str, dict.fromkeys(of.pairs.values())))}"
        made = tables(folder, name, lambda: self.rows(population, seed)[0])
        limits = {"max_prompt_length": task.max_prompt + 32, "max_response_length": task.max_response}
        return Setting(self.model, made, folder, self.work / "cache", seed, of.budget, limits)

    def prepare(self, population: str, seed: int) -> None:
        """Make what several processes would else make at the same time."""
        self.setting(population, seed).prepare()

    def rows(self, population: str, seed: int) -> tuple[list[Row], list[Row]]:
        """Pairs to learn from and pairs held out, of all groups."""
        from pluralign.config import DataConfig
        from pluralign.preferences import load_preferences

        of, task = POPULATIONS[population], TASKS[population]
        kept: tuple[list[Row], list[Row]] = [], []
        for file in task.files:
            found = load_preferences(DataConfig(path=[str(self.data / file)]))
            for group, rows in found.by("user").items():
                distinct = list({json.dumps(row.prompt): row for row in rows}.values())
                random.Random(f"{population} {group} {seed}").shuffle(distinct)
                short = [row for row in map(_messages, distinct) if _characters(row) <= LONGEST]
                count = of.pairs[group]
                for side, part in zip(kept, (short[:count], short[count : count + of.held_out]), strict=True):
                    side.extend({"user": group, "group": group, **row} for row in part)
        return kept


@dataclass(frozen=True)
class RealCell:
    """What is trained and asked; the seed is of pairs, draws and adapter."""

    population: str
    method: str
    learning_rate: float
    seed: int

    @property
    def digest(self) -> str:
        """Of everything that decides the result but the model and versions."""
        what = [asdict(self), METHODS[self.method].what, asdict(POPULATIONS[self.population]), MEASURED]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]

    def kept(self, work: Path) -> Path:
        """Where its result lies."""
        name = self.method.replace(" ", "_").replace(",", "")
        return work / "cells" / f"{self.population}-{name}@{self.learning_rate:g}-s{self.seed}-{self.digest}.json"


def result_of(cell: RealCell, texts: Texts) -> dict[str, Any]:
    """A cell's result: from its file, or made now."""
    return grid.result_of(cell, texts.work, lambda: _made(cell, texts))


def _made(cell: RealCell, texts: Texts) -> dict[str, Any]:
    from real_questions import Questions

    from pluralign.models.matmul import quick_matmul

    began, of = time.process_time(), POPULATIONS[cell.population]
    out = texts.work / "runs" / cell.kept(texts.work).stem
    shutil.rmtree(out, ignore_errors=True)
    with quick_matmul():
        adapter = texts.setting(cell.population, cell.seed).second_stage(METHODS[cell.method], cell.learning_rate, out)
        asked = Questions(texts.model, cell.method, texts.rows(cell.population, cell.seed)[1], of.facts, of.brief)
        groups = asked.ask(adapter)
    shutil.rmtree(out, ignore_errors=True)
    return {**asdict(cell), "digest": cell.digest, "groups": groups, "seconds": round(time.process_time() - began)}


def _messages(row: Any) -> Row:
    """A published row as messages, whatever it came as."""

    def turns_of(text: Any, role: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}] if isinstance(text, str) else [dict(turn) for turn in text]

    return {
        "prompt": turns_of(row.prompt, "user"),
        "chosen": turns_of(row.chosen, "assistant"),
        "rejected": turns_of(row.rejected, "assistant"),
    }


def _characters(row: Row) -> int:
    return max(sum(len(turn["content"]) for turn in row[part]) for part in ("prompt", "chosen", "rejected"))
