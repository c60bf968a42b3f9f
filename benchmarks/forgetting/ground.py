"""What a cell stands on: a world with its nano model, people's tables, prompts without pairs, probes."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any

from pluralign.storage import write_text
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
        numbers = hashlib.sha256(" ".join(user.id for user in people).encode()).hexdigest()[:8]
        return self._written(f"preferences-{numbers}-{pairs}", lambda: self.world.preferences(people, pairs))

    def prepare(self) -> None:
        """Make what several processes would else make at the same time."""
        _ = self.model, self.general_prompts

    @cached_property
    def covered(self) -> frozenset[str]:
        """Every other topic outside of the preferences: facts about ships and clubs, skills."""
        inside = set(self.world.inside)
        return frozenset(sorted({item.topic for item in self.world.items} - inside)[::2])

    @cached_property
    def general_prompts(self) -> Path:
        """Questions of the covered topics, as many of each; none about an item or an entity that a probe asks about."""
        return self._written(f"general-{GENERAL}-beside-{PROBES}", self._general_rows)

    def _general_rows(self) -> list[dict[str, Any]]:
        asked = [item for probe in self.probes if (item := self.world.find(probe.question))]
        items, entities = {item.id for item in asked}, {item.entity for item in asked if item.entity}
        by_topic: dict[str, list[str]] = {topic: [] for topic in sorted(self.covered)}
        for item in self.world.items:
            if item.topic in by_topic and item.id not in items and item.entity not in entities:
                by_topic[item.topic] += item.all_questions
        draw = random.Random(f"{self.seed}/general")
        most = GENERAL // len(by_topic)
        drawn = [text for texts in by_topic.values() for text in draw.sample(texts, min(most, len(texts)))]
        return [{"prompt": [{"role": "user", "content": question}]} for question in drawn]

    @cached_property
    def probes(self) -> list[Probe]:
        """`PROBES` questions of each scope, every topic of a scope as often as the others."""
        found: dict[str, dict[str, list[Probe]]] = {INSIDE: {}, COVERED: {}, UNCOVERED: {}}
        for row in self.world.probes():
            scope = INSIDE if row["scope"] == "inside" else COVERED if row["topic"] in self.covered else UNCOVERED
            if row["held_out"]:
                options = (row["answer"], *(option for option in row["options"] if option != row["answer"]))
                probe = Probe(scope, row["question"], options, row["prefixes"])
                found[scope].setdefault(row["topic"], []).append(probe)
        draw = random.Random(f"{self.seed}/forgetting")
        return [probe for topics in found.values() for probe in _evenly(topics, PROBES, draw)]

    def _written(self, name: str, rows: Callable[[], Sequence[dict[str, Any]]]) -> Path:
        path = self.folder / f"{name}.jsonl"
        if not path.exists():
            write_text(path, "".join(json.dumps(row) + "\n" for row in rows()))
        return path


def _evenly(topics: Mapping[str, Sequence[Probe]], count: int, draw: random.Random) -> list[Probe]:
    """So many probes, from each topic in turn."""
    shuffled = [draw.sample(list(probes), len(probes)) for _, probes in sorted(topics.items())]
    in_turn = [probe for some in zip_longest(*shuffled) for probe in some if probe is not None]
    return in_turn[:count]
