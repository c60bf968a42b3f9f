"""What a cell stands on: a world with its nano model, people's tables, prompts without pairs, probes."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pluralign.world import World, WorldUser

INSIDE, COVERED, UNCOVERED = "inside", "covered", "uncovered"
PROBES = 30
"""Of each scope."""
GENERAL = 300
"""Prompts without a pair, drawn for everybody."""


@dataclass(frozen=True)
class Probe:
    """A question that tells whether something is still known.

    Attributes:
        scope: `inside` the topics of the preferences (entity and phrasing that no preference has); outside of them,
            `covered` topics have general prompts and `uncovered` ones have not.
        question: as the user puts it.
        options: one-word answers, the right one first.
        prefixes: what an answer in each style says before the option.
    """

    scope: str
    question: str
    options: tuple[str, ...]
    prefixes: dict[str, str]


class Ground:
    """A world, its model and its files in a work folder; whatever is there is taken as it is.

    Args:
        seed: of the world, of its model's training and of everything drawn.
        work: folder of models and tables.
    """

    def __init__(self, seed: int, work: Path) -> None:
        self.seed, self.folder = seed, work / f"world-{seed}"
        self.world = World(seed)

    @cached_property
    def model(self) -> Path:
        """Folder of the world's nano model, trained where it is not there (some minutes of one core)."""
        from pluralign.world.nano import train_nano

        folder = self.folder / "nano"
        if not folder.exists():
            staged = self.folder / "nano.part"
            shutil.rmtree(staged, ignore_errors=True)
            train_nano(self.world, staged, seed=self.seed)
            staged.rename(folder)
        return folder

    def table(self, people: Sequence[WorldUser], pairs: int) -> Path:
        """The people's preferences as a file."""
        path = self.folder / f"preferences-{people[0].id}-{len(people)}x{pairs}.jsonl"
        return self._written(path, self.world.preferences(people, pairs))

    @cached_property
    def covered(self) -> frozenset[str]:
        """Every other topic outside of the preferences: facts about ships and clubs, skills."""
        inside = set(self.world.inside)
        return frozenset(sorted({item.topic for item in self.world.items} - inside)[::2])

    @cached_property
    def general_prompts(self) -> Path:
        """Questions of the covered topics, none about an item that a probe asks about: a file of prompts."""
        asked = {item.id for probe in self.probes if (item := self.world.find(probe.question))}
        items = [item for item in self.world.items if item.topic in self.covered and item.id not in asked]
        questions = [question for item in items for question in item.questions]
        drawn = random.Random(f"{self.seed}/general").sample(questions, GENERAL)
        rows = [{"prompt": [{"role": "user", "content": question}]} for question in drawn]
        return self._written(self.folder / "general.jsonl", rows)

    @cached_property
    def probes(self) -> list[Probe]:
        """`PROBES` questions of each scope."""
        found: dict[str, list[Probe]] = {INSIDE: [], COVERED: [], UNCOVERED: []}
        for row in self.world.probes():
            scope = INSIDE if row["scope"] == "inside" else COVERED if row["topic"] in self.covered else UNCOVERED
            if row["held_out"]:
                options = (row["answer"], *(option for option in row["options"] if option != row["answer"]))
                found[scope].append(Probe(scope, row["question"], options, row["prefixes"]))
        draw = random.Random(f"{self.seed}/forgetting")
        return [probe for probes in found.values() for probe in draw.sample(probes, PROBES)]

    def _written(self, path: Path, rows: Sequence[dict[str, Any]]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path
