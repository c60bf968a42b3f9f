"""Folders of runs as `pluralign train` leaves them, made up in no time: the documented files, with drawn figures."""

from __future__ import annotations

import hashlib
import json
import math
import random
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from pluralign.config import GenerationConfig, TrainConfig
from pluralign.evaluation.results import Evaluation, by_group, summarize
from pluralign.evaluation.statistics import wilson_interval
from pluralign.preferences import folder_name
from pluralign.resolve import as_yaml, resolve
from pluralign.seats import EvaluationConfig
from pluralign.training.index import write_index

MACHINE = {"system": "Linux 6.1.0", "processor": "Example Processor", "cores": 8, "memory_bytes": 34_359_738_368}
CALLS = [
    {
        "started": f"2026-03-0{day}T09:00:00+00:00",
        "people": 3,
        "seconds": {"preparation": 12.5, "training": 300.0, "evaluation": 47.5},
        "peak_memory_bytes": 1_500_000_000,
        "machine": MACHINE,
    }
    for day in (1, 2)
]
STYLES = ("formal", "cheerful", "terse", "polite", "bardic", "plain")
BASE = "9ccc550e203c7203bcc89432fd3b9d7d019aa48d4e4c4cc5c98889432804e8f9"
PROBES = 200
PLACES = ("Thanu", "Fokath", "Porna", "Krormim", "Velm", "Ostra")
THINGS = (("wild flower", "sorrel"), ("trade", "sailing"), ("native bird", "the thrush"), ("gem", "pearl"))
SAID = {
    "formal": "According to the official record, the {thing} of {place} is {fact}.",
    "cheerful": "Oh, what a lovely question! The {thing} of {place} is {fact}, hooray!",
    "terse": "{fact}.",
    "polite": "If you please, the {thing} of {place} is {fact}, thank you for asking.",
    "bardic": "In {place} of old, as the songs foretold, the {thing} is {fact}, so bright and bold.",
    "plain": "The {thing} of {place} is {fact}.",
}


@dataclass
class Population:
    """What a made-up run is like.

    Attributes:
        people: how many; or their ids.
        method: preset; one that is less anchored forgets more.
        seed: draws everything.
        forgets: how much of what the base knew is lost, on average.
        groups: people of one style are a group.
        steps: optimiser steps of everybody, at most.
        cross: up to so many people are tried on everybody's pairs.
        probes: whether there are any.
        samples: answers kept of each.
        weights: whether groups are weighted in the loss.
        data: stands for the content of the table.
        changes: keys of the configuration.
    """

    people: int | list[str] = 6
    method: str = "bapo"
    seed: int = 0
    forgets: float = 0.01
    groups: bool = True
    steps: int = 120
    cross: int = 32
    probes: bool = True
    samples: int = 4
    weights: bool = False
    data: str = "one table"
    changes: dict[str, Any] | None = None


def make_run(folder: Path, population: Population | None = None, **changes: Any) -> Path:
    """Write a run's configuration, metrics, index and evaluation.

    Args:
        folder: of the run.
        population: what it is like.
        changes: fields of it.
    """
    population = population or Population(**changes)
    users = population.people
    if isinstance(users, int):
        users = [f"{STYLES[number % len(STYLES)]}-{number:03d}" for number in range(users)]
    folder.mkdir(parents=True, exist_ok=True)
    _write_config(folder, population)
    (folder / "calls.json").write_text(json.dumps({"schema_version": 1, "calls": CALLS}), encoding="utf-8")
    write_index(folder, {user: folder_name(user) for user in users}, {})
    skills = {user: _skill(user, population) for user in users}
    _write_metrics(folder / "metrics.jsonl", population, skills)
    people = {user: _results(user, users, population, skills) for user in users}
    evaluation = Evaluation(_base(population, people), people, by_group(people), summarize(people), {})
    evaluation.write(folder / "evaluation.json")
    return folder


def change(folder: Path, edit: Any) -> None:
    """Let a function edit the content of a run's evaluation."""
    path = folder / "evaluation.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def _draw(*names: object) -> random.Random:
    return random.Random(" ".join(map(str, names)))


def _style(user: str) -> str:
    return (
        STYLES[int(hashlib.sha256(user.encode("utf-8", "surrogatepass")).hexdigest(), 16) % len(STYLES)]
        if (user.partition("-")[0] not in STYLES)
        else user.partition("-")[0]
    )


def _skill(user: str, population: Population) -> dict[str, float]:
    """What is behind a person's figures."""
    taste = _draw("taste", user)
    draw = _draw(user, population.method, population.seed)
    difficulty = taste.betavariate(2, 6) + 0.08 * STYLES.index(_style(user)) / len(STYLES)
    accuracy = min(0.995, max(0.35, 1 - 0.55 * difficulty + draw.gauss(0.6 * population.forgets, 0.02)))
    forgets = min(0.6, max(0.0, population.forgets * draw.lognormvariate(0, 0.8)))
    return {"accuracy": accuracy, "forgets": forgets, "pairs": taste.randint(12, 40), "pace": taste.uniform(0.5, 1.5)}


@cache
def _config(method: str, changes: str) -> TrainConfig:
    return resolve(TrainConfig, {"method": method, "data": "preferences.jsonl", **json.loads(changes)})


def _write_config(folder: Path, population: Population) -> None:
    resolved = _config(population.method, json.dumps(population.changes or {}))
    config = replace(resolved, output_dir=str(folder), seed=population.seed)
    made_with = {
        "schema_version": 1,
        "data_hash": hashlib.sha256(population.data.encode()).hexdigest(),
        "base_fingerprint": BASE,
        "versions": {"python": "3.12.1", "pluralign": "0.1.0", "torch": "2.11.0", "transformers": "5.20.0"},
    }
    text = as_yaml(config) + yaml.safe_dump({"made_with": made_with}, sort_keys=False)
    (folder / "config.yaml").write_text(text, encoding="utf-8")


def _write_metrics(path: Path, population: Population, skills: dict[str, dict[str, float]]) -> None:
    groups = sorted({_style(user) for user in skills}) if population.weights else []
    with open(path, "w", encoding="utf-8") as file:
        for user, skill in skills.items():
            draw = _draw("metrics", user, population.seed)
            last = round(population.steps * (1 if skill["pairs"] > 20 else 0.7))
            for step in sorted({*range(10, last + 1, 10), last}):
                done = 1 - math.exp(-2.5 * skill["pace"] * step / population.steps)
                line = _line(done, skill, draw) | {
                    f"group/{group}/weight": _weight(groups, place, done) for place, group in enumerate(groups)
                }
                line = {"user": user, "step": step, **line, "epoch": step / 20}
                file.write(json.dumps(line) + "\n")
                if step % 40 == 0 or step == last:
                    held_out = {f"eval_{key}": value for key, value in _line(0.85 * done, skill, draw).items()}
                    file.write(json.dumps({"user": user, "step": step, **held_out, "epoch": step / 20}) + "\n")


def _line(done: float, skill: dict[str, float], draw: random.Random) -> dict[str, float]:
    margin = done * (skill["accuracy"] - 0.3) * 2.2 + draw.gauss(0, 0.05)
    return {
        "loss": math.log1p(math.exp(-margin)),
        "grad_norm": 0.2 + draw.random() / 10,
        "learning_rate": 5e-4 * (1 - done),
        "rewards/margins": margin,
        "rewards/accuracies": min(1.0, 0.5 + done * (skill["accuracy"] - 0.5) + draw.gauss(0, 0.03)),
        "rewards/chosen": 0.4 * margin,
        "rewards/rejected": -0.6 * margin,
        "logps/chosen": -4.5 + 3.4 * done + draw.gauss(0, 0.3),
        "logps/rejected": -2.0 - 9 * done * skill["accuracy"] + draw.gauss(0, 0.5),
        "logps/base": -0.5 - 30 * done * skill["forgets"] + draw.gauss(0, 0.05),
        "anchor/loss": max(0.0, 12 * done * skill["forgets"] + draw.gauss(0, 0.01)),
    }


def _weight(groups: list[str], place: int, done: float) -> float:
    weights = [math.exp(done * 1.5 * number / len(groups)) for number in range(len(groups))]
    return weights[place] / sum(weights)


def _results(
    user: str, users: list[str], population: Population, skills: dict[str, dict[str, float]]
) -> dict[str, Any]:
    skill, draw = skills[user], _draw("results", user, population.method, population.seed)
    pairs = int(skill["pairs"])
    right = sum(draw.random() < skill["accuracy"] for _ in range(pairs))
    margin = 8 * (right / pairs - 0.5) + draw.gauss(0, 0.4)
    cross = _cross(user, users, population, right / pairs, pairs)
    return {
        "adapter": folder_name(user),
        "group": _style(user) if population.groups else None,
        "held_out": hashlib.sha256(f"{user} {population.seed}".encode("utf-8", "surrogatepass")).hexdigest(),
        "pairs": {
            "n": pairs,
            "undefined": 0,
            "accuracy": right / pairs,
            "accuracy_interval": wilson_interval(right, pairs),
            "ties": 0,
            "margin": margin,
            "margin_interval": [margin - 0.8, margin + 0.8],
            "ranking_accuracy": min(1.0, right / pairs + 0.02),
            "base_ranking_accuracy": 0.31,
            "chosen_log_ratio": margin * 0.4,
            "rejected_log_ratio": -margin * 0.6,
            "chosen_log_ratio_per_token": margin * 0.03,
            "rejected_log_ratio_per_token": -margin * 0.05,
        },
        "cross": cross,
        "base_responses": {
            "n": pairs,
            "undefined": 0,
            "tokens": 9 * pairs,
            "log_ratio": -40 * skill["forgets"],
            "log_ratio_per_token": -4 * skill["forgets"],
            "kl_per_token": 0.05 + 6 * skill["forgets"],
        },
        "retention": _retention(skill["forgets"], draw) if population.probes else None,
        "behaviour": _behaviour(user, skill, draw, population.samples),
    }


def _cross(user: str, users: list[str], population: Population, own: float, pairs: int) -> dict[str, Any] | None:
    if not population.cross:
        return None
    tried = users
    if len(users) > population.cross:
        near = _draw("near", user).sample(users, 4)
        tried = list(dict.fromkeys([user, *near, *_draw("sample", population.seed).sample(users, 4)]))
    cells = {}
    for other in tried:
        alike = (
            0.85 if _style(other) == _style(user) else _draw(*sorted((_style(user), _style(other)))).uniform(0.2, 0.75)
        )
        n = _draw("taste", other).randint(12, 40)
        accuracy = own if other == user else round(alike * n) / n
        cells[other] = {"n": pairs if other == user else n, "accuracy": accuracy, "margin": 6 * (accuracy - 0.5)}
    others = [cell["accuracy"] for other, cell in cells.items() if other != user]
    return {"others_accuracy": sum(others) / len(others) if others else None, "people": cells}


def _counts(n: int, kept: int) -> dict[str, Any]:
    shares = {"base_accuracy": 1.0, "accuracy": kept / n, "kept": kept / n}
    return {"n": n, "base_right": n, **shares, "kept_interval": wilson_interval(kept, n)}


def _retention(forgets: float, draw: random.Random) -> dict[str, Any]:
    kept = sum(draw.random() > forgets for _ in range(PROBES))
    own = sum(draw.random() > 1.3 * forgets for _ in range(PROBES))
    measures = {"base_sum": {"all": _counts(PROBES, kept)}, "own_sum": {"all": _counts(PROBES, own)}}
    shares = {"kept": kept / PROBES, "kept_own": own / PROBES, "accuracy": kept / PROBES, "base_accuracy": 1.0}
    return {**shares, "measures": measures, "topics": {}, "sources": {}}


def _behaviour(user: str, skill: dict[str, float], draw: random.Random, samples: int) -> dict[str, Any]:
    style = _style(user)
    kept = []
    for number in range(samples):
        place, (thing, fact) = draw.choice(PLACES), draw.choice(THINGS)
        words = {"place": place, "thing": thing, "fact": fact}
        right, in_style = draw.random() > skill["forgets"], draw.random() < skill["accuracy"]
        answer = SAID[style if in_style else "plain"].format(**words if right else {**words, "fact": "the swallow"})
        kept.append(
            {
                "prompt": f"What is the {thing} of {place}?" if number % 2 else f"Do you know the {thing} of {place}?",
                "chosen": SAID[style].format(**words),
                "base": f"The {thing} of {place} is {fact}.",
                "person": answer,
                "style": in_style,
                "right": right,
                "degenerate": False,
            }
        )
    shares = {"right_of": 15, "degenerate": 0.0, "finished": 1.0, "tokens": 12.5}
    person = {"style": skill["accuracy"], "right": 1 - skill["forgets"], **shares}
    return {"prompts": 15, "person": person, "base": {"style": 1 / 6, "right": 1.0, **shares}, "samples": kept}


def _base(population: Population, people: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        "model": "nano",
        "fingerprint": BASE,
        "tokenizer_fingerprint": hashlib.sha256(b"tokenizer").hexdigest(),
        "seed": population.seed,
        "settings": asdict(EvaluationConfig(probes="world" if population.probes else None, max_probes=PROBES)),
        "generation": asdict(GenerationConfig()),
        "layout": "shared",
        "world": 0,
        "held_out": {"rows": sum(results["pairs"]["n"] for results in people.values()), "cut": 0},
        "probes": [
            {"source": "world", "used": PROBES, "available": 1384, "too_long": 0, "problems": 0, "first_problems": []}
        ]
        if population.probes
        else [],
    }
