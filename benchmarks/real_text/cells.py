"""One cell of the benchmark: a population, a method, a seed; trained and evaluated by `pluralign.train`."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import replies
import tasks

import pluralign
from pluralign.preferences import folder_name
from pluralign.storage import write_json


@dataclass(frozen=True)
class Method:
    """A preset, keys beside it, and a factor on the population's learning rate."""

    preset: str
    keys: dict[str, Any] = field(default_factory=dict)
    rate: float = 1.0


METHODS = {
    "bapo": Method("dpo", {"anchor": {"base": {"weight": 0.3}}}),
    "dpo": Method("dpo"),
    "bapo-light": Method("dpo", {"anchor": {"base": {"weight": 0.1}}}),
    "bapo-nll": Method("dpo", {"anchor": {"base": {"weight": 0.3}, "nll": {"weight": 1.0}}}),
    "dpo-third": Method("dpo", rate=1 / 3),
    "dpo-slow": Method("dpo", rate=0.1),
    "dpo-beta-1": Method("dpo", {"loss": {"beta": 1.0}}),
    "ipo": Method("ipo"),
    "dpop": Method("dpop"),
}
"""Name in the results -> what it is. A smaller learning rate, a larger beta and IPO are plain remedies that an anchor
has to beat. `bapo` is the bare anchor at a small beta with greedy base responses, not the preset: what became of it is
in docs/methods/bapo.md."""
MEASURES = {
    "accuracy": "pairs.accuracy",
    "pairs": "pairs.n",
    "margin": "pairs.margin",
    "ranking_accuracy": "pairs.ranking_accuracy",
    "base_ranking_accuracy": "pairs.base_ranking_accuracy",
    "chosen_log_ratio": "pairs.chosen_log_ratio",
    "rejected_log_ratio": "pairs.rejected_log_ratio",
    "others_accuracy": "cross.others_accuracy",
    "kept": "retention.kept",
    "kept_of": "retention.measures.base_sum.all.base_right",
    "kl_per_token": "base_responses.kl_per_token",
    "degenerate": "behaviour.person.degenerate",
    "degenerate_base": "behaviour.base.degenerate",
}
"""Name in the results -> key of a person in `evaluation.json`."""


def configuration(
    task: tasks.Task, method: str, seed: int, *, model: Path, table: Path, work: Path, output: Path
) -> dict[str, Any]:
    """The keys of `pluralign train` for one cell."""
    chosen = METHODS[method]
    return {
        "model": str(model),
        "method": chosen.preset,
        **chosen.keys,
        "seed": seed,
        "device": "cpu",
        "cache_dir": str(work / "cache"),
        "output_dir": str(output),
        "data": {
            "path": str(table),
            "validation": task.held_out_pairs / (task.train_pairs + task.held_out_pairs),
            "split_by": "prompt",
            "max_prompt_length": task.max_prompt,
            "max_response_length": task.max_response,
            "chat_template": "always",
        },
        "base_responses": {"max_new_tokens": task.answer},
        "training": {
            "max_steps": task.steps,
            "per_device_train_batch_size": 8,
            "learning_rate": task.learning_rate * chosen.rate,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 0.1,
            "logging_steps": 0.25,
            "eval_strategy": "no",
            "save_strategy": "no",
        },
        "evaluation": {
            "probes": str(model / "learned.jsonl"),
            "max_probes": task.probes,
            "cross_table": 32 if task.cross else 0,
            "max_prompts": 24,
        },
    }


def run_cell(task: tasks.Task, method: str, seed: int, *, data: Path, model: Path, work: Path) -> dict[str, Any]:
    """Train and evaluate one cell, or read it where that was done before; what differs in settings is another cell."""
    name = f"{task.name}-{method}-{task.learning_rate:g}-{seed}"
    table = work / "tables" / f"{task.name}-{seed}-{task.train_pairs}+{task.held_out_pairs}.jsonl"
    output = work / "cells" / name
    config = configuration(task, method, seed, model=model, table=table, work=work, output=output)
    if not table.exists():
        tasks.write_pairs(task, data, seed, table)
    cell = _kept(output / "cell.json", config) or _trained(task, method, seed, config)
    spoken = _kept(output / "replies.json", config) or _spoken(task, config, cell)
    for user, found in spoken["people"].items():
        cell["people"][user] |= found
    seconds = {key: round(cell[key] + spoken[key], 1) for key in ("seconds", "cpu_seconds")}
    return {**cell, **seconds}


def _kept(path: Path, config: dict[str, Any]) -> dict[str, Any] | None:
    """What an earlier call measured with the same settings."""
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found if found["config"] == config else None


def _trained(task: tasks.Task, method: str, seed: int, config: dict[str, Any]) -> dict[str, Any]:
    output, wall, cpu = Path(config["output_dir"]), time.time(), time.process_time()
    # Another setting of the same cell replaces it; the same one goes on where it was stopped.
    result = pluralign.train({**config, "overwrite": True})
    evaluation = json.loads((output / "evaluation.json").read_text(encoding="utf-8"))
    cell = {
        "task": task.name,
        "method": method,
        "seed": seed,
        "people": {user: _measures(found) for user, found in evaluation["people"].items()},
        "skipped": result.skipped,
        "base": {key: evaluation["base"][key] for key in ("fingerprint", "held_out", "layout")},
        "seconds": round(time.time() - wall, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "config": config,
    }
    write_json(output / "cell.json", cell)
    return cell


def _spoken(task: tasks.Task, config: dict[str, Any], cell: dict[str, Any]) -> dict[str, Any]:
    output, wall, cpu = Path(config["output_dir"]), time.time(), time.process_time()
    adapters = {user: output / "adapters" / folder_name(user) for user in cell["people"]}
    found = {
        "people": replies.replies(task.name, config, adapters),
        "seconds": round(time.time() - wall, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "config": config,
    }
    write_json(output / "replies.json", found)
    return found


def _measures(found: Mapping[str, Any]) -> dict[str, float | None]:
    return {name: _at(found, key) for name, key in MEASURES.items()}


def _at(found: Any, key: str) -> Any:
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return round(found, 5) if isinstance(found, float) else found
