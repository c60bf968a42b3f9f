"""Every method on every split of a table, a cell each; summaries over splits, and paired differences to `taste`."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tables import KNOWN, NEW, TABLES

import grid

SPLITS = range(5)
FRESH = range(30, 50)
"""Splits on which intervals are measured: how they are shaped was decided after a look at others."""
METHODS = ("uniform", "mean", "nearest", "mixture", "ridge", "gpo", "taste")
FORMS = {"taste": {KNOWN: 9, NEW: 10}, "mean": {KNOWN: 2, NEW: 2}}
"""Of a method that has changed its form, which one it is in a protocol: a cell of another form is another cell."""
BY_TEXT = ("annotators", "world", "world120")
"""Tables on which one text is asked with several pairs of options, which are held out together."""
EITHER_WAY = ("annotators",)
"""Tables on which a pair of options is asked in both orders."""
MODULE = {"groups": 8, "learning_rate": 3e-4}
"""Of the published module, beside a table's own steps: fewer groups a step than published, for short budgets. At a rate
of 0.001 it stays at uniform answers for long."""


@dataclass(frozen=True)
class Part:
    """A method on one split.

    Attributes:
        table, protocol, method: which.
        seed: of the split.
    """

    table: str
    protocol: str
    method: str
    seed: int

    @property
    def digest(self) -> str:
        """Of everything that decides the result but versions."""
        table = TABLES[self.table]
        # What is changed of our form is of that form, too.
        form = FORMS.get(self.method.split(",")[0], {}).get(self.protocol, 1)
        how = {**MODULE, "steps": table.steps} if self.method == "gpo" else form
        what = [asdict(self), how, list(table.sizes), table.least]
        # Where no text is asked twice, holding out texts is holding out questions, as it was before.
        if self.table in BY_TEXT and (self.protocol == NEW or self.method.startswith("taste")):
            what.append("texts")
        # Pairs that were asked both ways round are one question each.
        if self.table in EITHER_WAY:
            what.append("either way")
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]

    def kept(self, work: Path) -> Path:
        """Where its result lies."""
        name = f"{self.table}-{self.protocol}-{self.method}-s{self.seed}-{self.digest}.json"
        return work / "cells" / name.replace(" ", "_").replace(",", "")


def parts(table: str, methods: Sequence[str] = METHODS, seeds: Iterable[int] = SPLITS) -> list[Part]:
    """All of a table's, one split after another."""
    found = TABLES[table].protocols
    return [Part(table, protocol, method, seed) for seed in seeds for protocol in found for method in methods]


def result_of(part: Part, data: Path, work: Path) -> dict[str, Any]:
    """A cell's result: from its file, or made now."""
    return grid.result_of(part, work, lambda: _made(part, data))


def _made(part: Part, data: Path) -> dict[str, Any]:
    from ideas import idea

    from pluralign.config import ModuleTrainingConfig
    from pluralign.fewshot.comparison import cells_of
    from pluralign.fewshot.methods import methods
    from pluralign.fewshot.protocols import split

    answers, points = _read(part.table, data)
    table = TABLES[part.table]
    one = split(answers, part.protocol, list(table.sizes), least=table.least, seed=part.seed)
    began = time.process_time()
    there = methods(ModuleTrainingConfig(**MODULE, steps=table.steps), seed=0)
    cells = cells_of(part.method, there.get(part.method) or idea(part.method), one, points)
    rows = [asdict(cell) for cell in cells]
    return {**asdict(part), "digest": part.digest, "seconds": round(time.process_time() - began, 1), "rows": rows}


@cache
def _read(table: str, data: Path) -> tuple[Any, Any]:
    from pluralign.config import EmbeddingConfig
    from pluralign.fewshot.embedding import embed

    answers = TABLES[table].read(data)
    return answers, embed(answers.questions, EmbeddingConfig())[0]


def summaries(cells: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over splits with their intervals, a row a protocol, size and method."""
    from pluralign.fewshot.comparison import Cell, summarise

    return [asdict(one) for one in summarise(Cell(**row) for cell in cells for row in cell["rows"])]
