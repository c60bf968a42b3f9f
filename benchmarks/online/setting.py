"""What every cell stands on: people of the embedded world, questions, written references, judges."""

from __future__ import annotations

import functools
import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pluralign.annotators.protocol import Annotator, Request, Verdict
from pluralign.storage import write_text
from pluralign.world import PLAIN, World, WorldUser
from pluralign.world.people import world_user

MODEL = "nano"
KINDS = (0, 1)
"""Numbers of people who want formal and cheerful answers; the world repeats them every `PERIOD`."""
PERIOD = 240
PAIRS, BUDGET = 120, 64
"""Pairs of a person's table, whose prompts are sampled for, and prompts that are annotated, over all phases."""
INSIDE, OUTSIDE = 4, 16
"""Held-out questions of each of the twelve topics that people have wishes for, and of everything else."""
JUDGES_PEOPLE, JUDGES_PAIRS = tuple(range(120, 130)), 240
"""The other judge learns from these: one person a style, who want it everywhere. No cell trains them."""
STYLED = 0.5
"""Share of the written references that are in the style that the person wants; the others are plain. All are true, so
that an answer in the right style with a wrong fact loses against the first and wins against the second."""


@dataclass(frozen=True)
class Question:
    """A question that no table has.

    Attributes:
        text: as the user puts it.
        inside: whether its topic is one that people have wishes for.
        styled: whether the written answer is in the style that its reader wants.
    """

    text: str
    inside: bool
    styled: bool

    def reference(self, user: str) -> str:
        """The true answer that somebody has written for a person."""
        item = world().find(self.text)
        assert item is not None
        return item.say(world().wanted_style(user, item.topic) if self.styled else PLAIN)


@functools.cache
def world() -> World:
    """The embedded one."""
    return World(0)


def people(seed: int) -> list[WorldUser]:
    """Two people, other ones for every seed."""
    return [world_user(number + PERIOD * seed) for number in KINDS]


def table(users: Sequence[WorldUser], pairs: int, folder: Path) -> Path:
    """Their preferences as a file."""
    numbers = hashlib.sha256(" ".join(user.id for user in users).encode()).hexdigest()[:8]
    path = folder / f"preferences-{numbers}-{pairs}.jsonl"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, "".join(json.dumps(row) + "\n" for row in world().preferences(users, pairs)))
    return path


@functools.cache
def questions(seed: int) -> tuple[Question, ...]:
    """Drawn anew for every seed, as many of each topic; the entities are in nobody's table."""
    draw = random.Random(f"online/{seed}")
    by_topic: dict[str, list[str]] = {}
    beside = []
    for row in world().probes():
        if row["scope"] == "inside" and row["held_out"]:
            by_topic.setdefault(row["topic"], []).append(row["question"])
        elif row["scope"] == "outside":
            beside.append(row["question"])
    drawn = [(text, True) for topic in sorted(by_topic) for text in draw.sample(by_topic[topic], INSIDE)]
    drawn += [(text, False) for text in draw.sample(beside, OUTSIDE)]
    return tuple(Question(text, inside, draw.random() < STYLED) for text, inside in drawn)


class ByStyle:
    """The judge of other origin: of a topic, it asks the head of somebody else who wants the person's style everywhere.

    Args:
        judge: of the people of `JUDGES_PEOPLE`.
    """

    name = "other judge"

    def __init__(self, judge: Annotator) -> None:
        self.judge = judge
        self.heads = {world_user(number).style: world_user(number).id for number in JUDGES_PEOPLE}

    def annotate(self, requests: Sequence[Request]) -> list[Verdict]:
        """The verdicts of the heads."""
        return self.judge.annotate([Request(r.prompt, r.responses, self._head(r), r.row) for r in requests])

    def _head(self, request: Request) -> str:
        item = world().find(request.prompt)
        return self.heads[world().wanted_style(request.user or "", item.topic if item else "")]


@functools.cache
def other_judge(work: Path) -> tuple[ByStyle, dict[str, Any]]:
    """A reward model that other people have taught, and its figures on pairs that it did not learn."""
    from pluralign.annotators.reward import RewardModel
    from pluralign.annotators.reward_training import train_reward
    from pluralign.config import DataConfig
    from pluralign.reward_config import RewardTrainConfig

    folder = work / "other-judge"
    if not (folder / "reward.json").exists():
        path = table([world_user(number) for number in JUDGES_PEOPLE], JUDGES_PAIRS, work / "tables")
        train_reward(
            RewardTrainConfig(
                model=MODEL,
                data=DataConfig(path=str(path)),
                output_dir=str(folder),
                trunk="frozen",
                cache_dir=str(work / "cache"),
                overwrite=True,
            )
        )
    return ByStyle(RewardModel.load(str(folder))), json.loads((folder / "reward.json").read_text(encoding="utf-8"))
