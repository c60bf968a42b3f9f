"""One cell of the benchmark: a population, a method, a seed; trained and evaluated by `pluralign.train`."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import measure
import peft
import sources
import tasks
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import pluralign


@dataclass(frozen=True)
class Method:
    """A preset, keys beside it, and a factor on the population's learning rate."""

    preset: str
    keys: dict[str, Any] = field(default_factory=dict)
    rate: float = 1.0


METHODS = {
    "bapo": Method("bapo"),
    "dpo": Method("dpo"),
    "dpop": Method("dpop"),
    "ipo": Method("ipo"),
    "dpo-beta-1": Method("dpo", {"loss": {"beta": 1.0}}),
    "dpo-slow": Method("dpo", rate=0.1),
    "bapo-nll": Method("bapo", {"anchor": {"nll": {"weight": 1.0}}}),
}
"""Name in the results -> what it is; the variants of dpo are the plain remedies that any anchor has to beat."""

TOLD_PROBES = 200
"""Taught questions that each person also answers in words."""
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
    done = output / "cell.json"
    if done.exists() and (cell := json.loads(done.read_text(encoding="utf-8")))["config"] == config:
        return cell
    if not table.exists():
        tasks.write_pairs(task, data, seed, table)
    wall, cpu = time.time(), time.process_time()
    # Another setting of the same cell replaces it; the same one goes on where it was stopped.
    result = pluralign.train({**config, "overwrite": True})
    evaluation = json.loads((Path(result.output_dir) / "evaluation.json").read_text(encoding="utf-8"))
    people = {user: _measures(found) for user, found in evaluation["people"].items()}
    trained = time.time() - wall
    for user, found in _told(model, result.adapters).items():
        people[user] |= found
    cell = {
        "task": task.name,
        "method": method,
        "seed": seed,
        "people": people,
        "skipped": result.skipped,
        "seconds": round(time.time() - wall, 1),
        "train_and_evaluate_seconds": round(trained, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "base": {key: evaluation["base"][key] for key in ("fingerprint", "held_out", "layout")},
        "config": config,
    }
    done.write_text(json.dumps(cell, indent=1) + "\n", encoding="utf-8")
    return cell


def _measures(found: Mapping[str, Any]) -> dict[str, float | None]:
    return {name: _at(found, key) for name, key in MEASURES.items()}


def _at(found: Any, key: str) -> Any:
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return round(found, 5) if isinstance(found, float) else found


def _told(model: Path, adapters: Mapping[str, Path]) -> dict[str, dict[str, float]]:
    """Of the taught facts that the base tells when asked, the share that a person's model still tells.

    The adapters are read by PEFT alone, as anybody would; a fact is told where the answer's words stand in the greedy
    reply, whatever else does.
    """
    base, tokenizer, known = _base(model)
    found: dict[str, dict[str, float]] = {}
    for user, folder in adapters.items():
        policy = peft.PeftModel.from_pretrained(base, folder)
        told = measure.answer_greedily(policy, tokenizer, known, inside=True)
        found[user] = {"told": round(sum(told) / len(told), 5), "told_of": len(known)}
        policy.unload()
    return found


@cache
def _base(model: Path) -> tuple[Any, Any, list[sources.Trivia]]:
    tokenizer = AutoTokenizer.from_pretrained(model)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    lines = (model / "learned.jsonl").read_text(encoding="utf-8").splitlines()[:TOLD_PROBES]
    facts = [sources.from_probe(json.loads(line)) for line in lines]
    told = measure.answer_greedily(base, tokenizer, facts, inside=True)
    return base, tokenizer, [fact for fact, right in zip(facts, told, strict=True) if right]
