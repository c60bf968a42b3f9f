"""The three populations of the benchmark: who the people are, how many pairs each gets, how long the texts may be."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from pathlib import Path

from pluralign.config import DataConfig
from pluralign.preferences import Preference, load_preferences

PERSONAS = (
    "agreeableness",
    "anti-immigration",
    "believes-in-gun-rights",
    "believes-life-has-no-meaning",
    "conscientiousness",
    "ends-justify-means",
    "extraversion",
    "interest-in-art",
    "interest-in-science",
    "interest-in-sports",
    "machiavellianism",
    "narcissism",
    "neuroticism",
    "openness",
    "politically-conservative",
    "politically-liberal",
    "risk-averse",
    "risk-seeking",
    "subscribes-to-Buddhism",
    "subscribes-to-utilitarianism",
)
"""Twenty of the 52, some of them each other's opposites."""


@dataclass(frozen=True)
class Task:
    """One population.

    Attributes:
        files: below the data folder, in their publishers' formats.
        train_pairs, held_out_pairs: pairs a person.
        max_prompt, max_response: tokens.
        steps: optimiser steps a person, of eight pairs each.
        learning_rate: peak; found on a seed that is not reported (`run.py --tune`).
        answer: tokens of a base response.
        probes: taught trivia asked of each person, at most.
        cross: whether each person's adapter is also tried on the pairs of all others.
    """

    name: str
    files: tuple[str, ...]
    train_pairs: int
    held_out_pairs: int
    max_prompt: int
    max_response: int
    steps: int
    learning_rate: float
    answer: int
    probes: int
    cross: bool

    def quick(self) -> Task:
        """The same in about a tenth of the time: to see that it runs, not to report."""
        return replace(self, files=self.files[:4], train_pairs=64, held_out_pairs=32, steps=12, probes=100)


TASKS = {
    task.name: task
    for task in (
        Task(
            name="dsp",
            files=("dsp/domain_specific_preference.test.json.gz",),
            train_pairs=400,
            held_out_pairs=200,
            max_prompt=48,
            max_response=64,
            steps=80,
            learning_rate=3e-3,
            answer=48,
            probes=500,
            cross=True,
        ),
        Task(
            name="hh",
            files=("hh/helpful.test.json.gz", "hh/harmless.test.json.gz"),
            train_pairs=800,
            held_out_pairs=300,
            max_prompt=80,
            max_response=64,
            steps=80,
            learning_rate=3e-4,
            answer=48,
            probes=500,
            cross=True,
        ),
        Task(
            name="personas",
            files=tuple(f"personas/{name}.jsonl.gz" for name in PERSONAS),
            train_pairs=320,
            held_out_pairs=100,
            max_prompt=64,
            max_response=4,
            steps=40,
            learning_rate=3e-3,
            answer=24,
            probes=300,
            cross=False,
        ),
    )
}


def write_pairs(task: Task, data: Path, seed: int, path: Path) -> Path:
    """Draw each person's pairs by the seed and write them as a table that `pluralign` reads; one pair a prompt.

    The library reads the published files itself. Of the four comparisons that DSP has of a person and a query, one
    is drawn.
    """
    preferences = load_preferences(DataConfig(path=[str(data / file) for file in task.files]))
    lines: list[str] = []
    for user, rows in preferences.by("user").items():
        draw = random.Random(f"{task.name} {user} {seed}")
        draw.shuffle(rows)
        by_prompt = {json.dumps(row.prompt): row for row in rows}
        wanted = task.train_pairs + task.held_out_pairs
        # All people of DSP share their queries: the same ones for all, so that the split by prompt is even.
        order = sorted(by_prompt, key=lambda prompt: random.Random(f"{prompt} {seed}").random())
        lines += [json.dumps(_row(user, by_prompt[prompt]), ensure_ascii=False) for prompt in order[:wanted]]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _row(user: str, row: Preference) -> dict[str, object]:
    return {"user": user, "prompt": row.prompt, "chosen": row.chosen, "rejected": row.rejected}
