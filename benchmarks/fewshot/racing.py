"""The published module trained for a stated time of one core, against the closed form.

On its published schedule (`race`), and on a short one of ours on the world's people, to see when it converges. Both
learn from the same groups; both are scored on groups that teach neither, predicted from 20 of their answers, at moments
of the module's training.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from tables import TABLES, world

from pluralign.config import EmbeddingConfig
from pluralign.fewshot.answers import Answers, Shares
from pluralign.fewshot.comparison import measured
from pluralign.fewshot.embedding import embed
from pluralign.fewshot.episodes import episode, predict
from pluralign.fewshot.features import Points
from pluralign.fewshot.fitting import fit
from pluralign.fewshot.hashing import hashed
from pluralign.fewshot.module import ModuleConfig, PreferenceModule, cross_entropy, gaussian_nll

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Means, log standard deviations, shares and questions of an episode's targets -> what is made small."""


@dataclass(frozen=True)
class Schedule:
    """How the module is trained: Adam, along a cosine to 0.

    Attributes:
        learning_rate: at first.
        steps: until it is 0.
        groups: in a step, at most.
        loss: of a step.
    """

    learning_rate: float
    steps: int
    groups: int
    loss: Loss


PUBLISHED = Schedule(3e-4, 200_000, 32, gaussian_nll)
SHORT = Schedule(3e-4, 3_000, 8, lambda means, _, said, questions: cross_entropy(means, said, questions))
"""Cheaper steps, the published rate, and the loss that does not grow over-confident."""
PEOPLE, PAIRS, DIMENSIONS = 20, 500, 384
"""Of the world: people who teach (and as many are tested), questions of each, and sizes of the vectors."""
READ, LEAST, SHARE = 20, 60, 0.4
"""Answers that are read; answers that a group needs; share of those groups that teach, as published."""
MOMENTS, MEASURES = 12, ("alignment", "accuracy", "nll")
Say = Callable[[Mapping[int, Shares], Sequence[int]], Sequence[Shares]]
"""What a group answered and what is asked -> what it is predicted to answer."""


def race(name: str, data: Path, seconds: float) -> Iterator[dict[str, Any]]:
    """Alignment on groups that teach nothing, by the module's seconds; the closed form's seconds and alignment.

    After every moment all there is: a race that is stopped has got that far.

    Args:
        name: of the table.
        data: folder of the published data.
        seconds: of one core for the module.
    """
    torch.set_num_threads(1)
    answers = TABLES[name].read(data)
    points, _ = embed(answers.questions, EmbeddingConfig())
    draw = np.random.default_rng(0)
    ample = [group for group, own in answers.groups.items() if len(own) >= LEAST]
    order = [ample[place] for place in draw.permutation(len(ample))]
    cut = int(SHARE * len(order))
    for found in _raced(answers, points, order[:cut], order[cut:], PUBLISHED, seconds, draw):
        yield {"table": name, **found}


def converge(seconds: float) -> Iterator[dict[str, Any]]:
    """The same on the world's people, with the short schedule.

    Args:
        seconds: of one core for the module.
    """
    torch.set_num_threads(1)
    answers = world(2 * PEOPLE, PAIRS)
    people = list(answers.groups)
    points, draw = hashed(answers.questions, DIMENSIONS), np.random.default_rng(0)
    for found in _raced(answers, points, people[:PEOPLE], people[PEOPLE:], SHORT, seconds, draw):
        yield {"table": "world", "questions": PAIRS, "dimensions": DIMENSIONS, **found}


def race_table(found: Mapping[str, Any]) -> str:
    """The module's curve, and when it reached what."""
    names = [name for name in MEASURES if name in found["taste"]]
    lines = [f"| method | seconds of one core | steps | {' | '.join(names)} |", "| --- " * (3 + len(names)) + "|"]
    rows = [("taste", {**found["taste"], "steps": ""}), *(("gpo", one) for one in found["module"])]
    for method, one in rows:
        measured = " | ".join(f"{one[name]:.4f}" for name in names)
        spent = one["seconds"]
        lines.append(f"| {method} | {spent:{'.3g' if spent < 1000 else '.0f'}} | {one['steps']} | {measured} |")
    return "\n".join(lines) + "\n"


def _raced(
    answers: Answers,
    points: Points,
    taught: Sequence[str],
    tested: Sequence[str],
    schedule: Schedule,
    seconds: float,
    draw: np.random.Generator,
) -> Iterator[dict[str, Any]]:
    teaching, kept = answers.of(taught), [_halves(answers.groups[group], draw) for group in tested]

    def told(read: Mapping[int, Shares], said: Mapping[int, Shares], say: Say) -> list[Any]:
        pairs = zip(said, say(read, list(said)), strict=True)
        return [(answers.questions[number], said[number], (one, None, None)) for number, one in pairs]

    def score(say: Say) -> dict[str, float]:
        found = [measured(told(read, said, say)) for read, said in kept]
        return {name: mean(one[name] for one in found) for name in MEASURES}

    began = time.process_time()
    views = fit(teaching, points).tastes.view(answers.questions, points)
    spent = time.process_time() - began
    ours = {"seconds": spent, **score(lambda read, targets: views.read(read).shares(targets))}
    trace: list[dict[str, Any]] = []
    for spent, step, module in _trained(teaching, points, schedule, seconds):
        trace.append({"seconds": spent, "steps": step, **score(partial(predict, module, points))})
        yield {"groups": [len(taught), len(kept)], "seconds": seconds, "module": trace, "taste": ours}


def _trained(
    taught: Answers, points: Points, schedule: Schedule, seconds: float
) -> Iterator[tuple[float, int, PreferenceModule]]:
    """The module at moments of its training, until the time or the schedule ends; time for scoring does not count."""
    draw, vectors = np.random.default_rng(0), torch.tensor(points.vectors, dtype=torch.float32)
    torch.manual_seed(0)
    module = PreferenceModule(ModuleConfig(dim_x=vectors.shape[1]))
    optimizer = torch.optim.Adam(module.parameters(), lr=schedule.learning_rate)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, schedule.steps)
    groups = list(taught.groups.values())
    spent, step, due = 0.0, 0, [seconds * number / MOMENTS for number in range(1, MOMENTS + 1)]
    while due and step < schedule.steps:
        began = time.process_time()
        some = [groups[place] for place in draw.permutation(len(groups))[: schedule.groups]]
        one = episode(some, points, draw)
        x, targets = vectors[one.context.clamp_min(0)], vectors[one.targets.clamp_min(0)]
        means, log_stds = module(x, one.read, targets, one.context < 0)
        optimizer.zero_grad()
        schedule.loss(means, log_stds, one.said, one.questions).backward()
        optimizer.step()
        falling.step()
        spent, step = spent + time.process_time() - began, step + 1
        if spent >= due[0] or step == schedule.steps:
            due.pop(0)
            yield spent, step, module


def _halves(own: Mapping[int, Shares], draw: np.random.Generator) -> tuple[dict[int, Shares], dict[int, Shares]]:
    order = [list(own)[place] for place in draw.permutation(len(own))]
    return {number: own[number] for number in order[:READ]}, {number: own[number] for number in order[READ:]}
