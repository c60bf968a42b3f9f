"""One cell on the world: a method, a learning rate, a seed; one policy for four groups of unequal size."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ground import INSIDE, Ground
from methods import METHODS
from two_stages import Budget, Setting, system_prompt, tables, turns

import grid

GROUPS = {"terse-002": 160, "formal-000": 80, "cheerful-001": 60, "bardic-004": 40}
"""Person whose taste is a group's -> the group's pairs. The smallest wants the opposite of the largest."""
BUDGET = Budget(first_steps=260, first_rate=1e-3, steps=100, batch=16)


@dataclass(frozen=True)
class Cell:
    """What is trained and asked; the seed is of world, model, draws and adapter."""

    method: str
    learning_rate: float
    seed: int

    @property
    def digest(self) -> str:
        """Of everything that decides the result but versions."""
        what = [asdict(self), METHODS[self.method].what, GROUPS, BUDGET.digest]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]

    def kept(self, work: Path) -> Path:
        """Where its result lies."""
        name = self.method.replace(" ", "_").replace(",", "")
        return work / "cells" / f"{name}@{self.learning_rate:g}-s{self.seed}-{self.digest}.json"


def result_of(cell: Cell, work: Path) -> dict[str, Any]:
    """A cell's result: from its file, or made now."""
    return grid.result_of(cell, work, lambda: _made(cell, work))


def _made(cell: Cell, work: Path) -> dict[str, Any]:
    from pluralign.models.matmul import quick_matmul

    ground, began = Ground(cell.seed, work), time.process_time()
    out = work / "runs" / cell.kept(work).stem
    shutil.rmtree(out, ignore_errors=True)
    with quick_matmul():
        adapter = setting(ground, work).second_stage(METHODS[cell.method], cell.learning_rate, out)
        groups = _asked(ground, adapter, cell)
    shutil.rmtree(out, ignore_errors=True)
    return {**asdict(cell), "digest": cell.digest, "groups": groups, "seconds": round(time.process_time() - began)}


def setting(ground: Ground, work: Path) -> Setting:
    """Model and tables of a world."""
    name = "groups-" + "-".join(map(str, GROUPS.values()))
    made = tables(ground.folder, name, lambda: _rows(ground))
    return Setting(ground.model, made, ground.folder, work / "cache", ground.seed, BUDGET)


def prepare(seed: int, work: Path) -> None:
    """Make what several processes would else make at the same time."""
    ground = Ground(seed, work)
    ground.prepare()
    setting(ground, work).prepare()


def _rows(ground: Ground) -> list[dict[str, Any]]:
    people = {user.id: user for user in ground.world.users(10)}
    rows = [row for name, pairs in GROUPS.items() for row in ground.world.preferences([people[name]], pairs)]
    kept = ("user", "group", "prompt", "chosen")
    return [
        {**{key: row[key] for key in kept}, "rejected": [{"role": "assistant", "content": _unwanted(ground, row)}]}
        for row in rows
    ]


def _unwanted(ground: Ground, row: dict[str, Any]) -> str:
    """What another group wants to hear: the groups are opposed to each other, and not to the base alone."""
    item = ground.world.find(row["prompt"])
    assert item is not None
    others = [style for style in map(_style, GROUPS) if style != row["group"]]
    return item.say(random.Random(f"{ground.seed}/{row['group']}/{item.id}").choice(others))


def _asked(ground: Ground, adapter: Path, cell: Cell) -> dict[str, dict[str, float]]:
    """What the policy answers when it is told each group."""
    from pluralign.config import GenerationConfig, ModelConfig
    from pluralign.models.adapters import detach_adapter, load_adapter
    from pluralign.models.base import load_base
    from pluralign.models.generation import generate

    base = load_base(ModelConfig(model=str(ground.model)))
    settings = GenerationConfig(max_new_tokens=40, batch_size=256)

    def answers(model: Any, system: str) -> list[Any]:
        template = base.tokenizer.apply_chat_template
        prompts = [
            template(
                turns(system, [{"role": "user", "content": probe.question}]),
                tokenize=True,
                add_generation_prompt=True,
                return_dict=False,
            )
            for probe in ground.probes
        ]
        return generate(model, base.tokenizer, prompts, settings)

    plain = zip(ground.probes, answers(base.model, ""), strict=True)
    told = [_judged(ground, probe, one, None).right is True for probe, one in plain]
    policy = load_adapter(base, adapter)
    found = {
        user: _measures(ground, user, answers(policy, system_prompt(cell.method, _style(user))), told)
        for user in GROUPS
    }
    detach_adapter(policy)
    return found


def _style(user: str) -> str:
    return user.rpartition("-")[0]


def _judged(ground: Ground, probe: Any, answer: Any, user: str | None) -> Any:
    return ground.world.judge(probe.question, answer.text, user, finished=answer.finished)


def _measures(ground: Ground, user: str, answers: Sequence[Any], told: Sequence[bool]) -> dict[str, float]:
    """Of a group: what is served inside the topics of the preferences, and what is kept outside of them.

    served: share of held-out questions inside whose answer is in the group's style and states the right value.
    style: share of the same that is in the style.
    kept: of questions outside that the base answers right, the share whose answer states the right value.
    """
    judged = [_judged(ground, probe, one, user) for probe, one in zip(ground.probes, answers, strict=True)]
    inside = [one for one, probe in zip(judged, ground.probes, strict=True) if probe.scope == INSIDE]
    known = [
        one for one, probe, there in zip(judged, ground.probes, told, strict=True) if probe.scope != INSIDE and there
    ]
    return {
        "served": sum(one.style and one.right is True for one in inside) / len(inside),
        "style": sum(one.style for one in inside) / len(inside),
        "kept": sum(one.right is True for one in known) / len(known),
    }
