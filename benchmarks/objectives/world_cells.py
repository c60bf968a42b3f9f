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
from methods import BATCH, FIRST_RATE, FIRST_STEPS, METHODS, STEPS, Method

import grid
from pluralign.storage import write_text

GROUPS = {"terse-002": 160, "formal-000": 80, "cheerful-001": 60, "bardic-004": 40}
"""Person whose taste is a group's -> the group's pairs. The smallest wants the opposite of the largest."""


@dataclass(frozen=True)
class Cell:
    """What is trained and asked; the seed is of world, model, draws and adapter."""

    method: str
    learning_rate: float
    seed: int

    @property
    def digest(self) -> str:
        """Of everything that decides the result but versions."""
        what = [asdict(self), asdict(METHODS[self.method]), GROUPS, FIRST_STEPS, FIRST_RATE, STEPS, BATCH]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]

    def kept(self, work: Path) -> Path:
        """Where its result lies."""
        name = self.method.replace(" ", "_").replace(",", "")
        return work / "cells" / f"{name}@{self.learning_rate:g}-s{self.seed}-{self.digest}.json"


def result_of(cell: Cell, work: Path) -> dict[str, Any]:
    """A cell's result: from its file, or made now."""
    return grid.result_of(cell, work, lambda: _made(cell, work))


def _made(cell: Cell, work: Path) -> dict[str, Any]:
    from pluralign.config import TrainConfig
    from pluralign.models.matmul import quick_matmul
    from pluralign.resolve import resolve
    from pluralign.training import train

    ground, began = Ground(cell.seed, work), time.process_time()
    out = work / "runs" / cell.kept(work).stem
    shutil.rmtree(out, ignore_errors=True)
    with quick_matmul():
        adapter = train(resolve(TrainConfig, _configuration(cell, ground, out, work))).adapters["_all"]
        groups = _asked(ground, adapter, cell)
    shutil.rmtree(out, ignore_errors=True)
    return {**asdict(cell), "digest": cell.digest, "groups": groups, "seconds": round(time.process_time() - began)}


def _configuration(cell: Cell, ground: Ground, out: Path, work: Path) -> dict[str, Any]:
    method = METHODS[cell.method]
    first = str(first_stage(method, ground, work))
    models = [first if name == "first" else name for name in method.references]
    values = {**_common(ground, work), **method.changes}
    return {
        **values,
        "method": method.preset,
        "data": {"path": str(tables(ground)[method.unpaired]), "validation": 0.0},
        "output_dir": str(out),
        "conditioning": method.conditioning,
        "parameters": {"per": "none", "start": first},
        "reference": {"models": models},
        "training": _training(STEPS, cell.learning_rate, 2 * BATCH if method.unpaired else BATCH),
    }


def first_stage(method: Method, ground: Ground, work: Path) -> Path:
    """The adapter after supervised fine-tuning on the chosen responses: one for all methods with the same prompts."""
    from pluralign.config import TrainConfig
    from pluralign.resolve import resolve
    from pluralign.training import train

    digest = hashlib.sha256(json.dumps([method.conditioning, GROUPS, FIRST_STEPS]).encode()).hexdigest()[:8]
    values = {
        **_common(ground, work),
        "method": "sft",
        "data": {"path": str(tables(ground)[0]), "validation": 0.0},
        "output_dir": str(ground.folder / f"first-{digest}"),
        "conditioning": method.conditioning,
        "parameters": {"per": "none"},
        "training": _training(FIRST_STEPS, FIRST_RATE, BATCH),
    }
    return train(resolve(TrainConfig, values)).adapters["_all"]


def _common(ground: Ground, work: Path) -> dict[str, Any]:
    return {
        "model": str(ground.model),
        "cache_dir": str(work / "cache"),
        "seed": ground.seed,
        "evaluation": {"generate": False},
    }


def _training(steps: int, rate: float, batch: int) -> dict[str, Any]:
    return {
        "max_steps": steps,
        "per_device_train_batch_size": batch,
        "learning_rate": rate,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 10,
        "eval_strategy": "no",
        "save_strategy": "no",
        "logging_steps": steps,
    }


def tables(ground: Ground) -> tuple[Path, Path]:
    """The pairs of all groups, and the same as completions with verdicts."""
    folder = ground.folder
    paths = folder / "groups.jsonl", folder / "groups-unpaired.jsonl"
    if not all(path.exists() for path in paths):
        people = {user.id: user for user in ground.world.users(10)}
        rows = [row for name, pairs in GROUPS.items() for row in ground.world.preferences([people[name]], pairs)]
        for row in rows:
            row["rejected"] = [{"role": "assistant", "content": _unwanted(ground, row)}]
            row |= {"system_info": "You are an assistant.", "user_info": f"I like answers that are {row['group']}."}
        keys = ("user", "group", "prompt", "system_info", "user_info")
        singles = [
            {**{key: row[key] for key in keys}, "completion": row[side], "label": side == "chosen"}
            for row in rows
            for side in ("chosen", "rejected")
        ]
        for path, table in zip(paths, (rows, singles), strict=True):
            write_text(path, "".join(json.dumps(row) + "\n" for row in table))
    return paths


def _unwanted(ground: Ground, row: dict[str, Any]) -> str:
    """What another group wants to hear: the groups are opposed to each other, and not to the base alone."""
    item = ground.world.find(row["prompt"])
    assert item is not None
    others = [name for name in (user.rpartition("-")[0] for user in GROUPS) if name != row["group"]]
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
        turns = [
            [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": probe.question}]
            for probe in ground.probes
        ]
        template = base.tokenizer.apply_chat_template
        prompts = [template(turn, tokenize=True, add_generation_prompt=True, return_dict=False) for turn in turns]
        return generate(model, base.tokenizer, prompts, settings)

    plain = zip(ground.probes, answers(base.model, ""), strict=True)
    told = [_judged(ground, probe, one, None).right is True for probe, one in plain]
    policy = load_adapter(base, adapter)
    found = {user: _measures(ground, user, answers(policy, _system(cell, user)), told) for user in GROUPS}
    detach_adapter(policy)
    return found


def _system(cell: Cell, user: str) -> str:
    style = user.rpartition("-")[0]
    return str(METHODS[cell.method].conditioning["system"]).format(
        group=style, system_info="You are an assistant.", user_info=f"I like answers that are {style}."
    )


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
