"""The published module on its published schedule, for a stated time of one core, against the closed form.

Both learn from the same groups of the table; both are scored on groups that teach neither, predicted from 20 of their
answers, at moments of the module's training.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from tables import TABLES

from pluralign.config import EmbeddingConfig
from pluralign.fewshot.answers import Answers, Shares
from pluralign.fewshot.embedding import embed
from pluralign.fewshot.episodes import episode, predict
from pluralign.fewshot.features import Points
from pluralign.fewshot.fitting import fit
from pluralign.fewshot.metrics import alignment
from pluralign.fewshot.module import ModuleConfig, PreferenceModule, gaussian_nll

RATE, STEPS, GROUPS = 3e-4, 200_000, 32
"""Of the published schedule: Adam, along a cosine to 0 in so many steps; a step has all training groups up to 32."""
READ, LEAST, SHARE = 20, 60, 0.4
"""Answers that are read; answers that a group needs; share of those groups that teach, as published."""
MOMENTS = 12
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
    taught, kept = answers.of(order[:cut]), [_halves(answers.groups[group], draw) for group in order[cut:]]

    def score(say: Say) -> float:
        return mean(_aligned(answers, said, say(read, list(said))) for read, said in kept)

    began = time.process_time()
    views = fit(taught, points).tastes.view(answers.questions, points)
    spent = time.process_time() - began
    ours = {"seconds": spent, "alignment": score(lambda read, targets: views.read(read).shares(targets))}
    trace = []
    for spent, step, module in _trained(taught, points, seconds):
        found = score(partial(predict, module, points))
        trace.append({"seconds": spent, "steps": step, "alignment": found})
        yield {"table": name, "groups": [cut, len(kept)], "seconds": seconds, "module": trace, "taste": ours}


def race_table(found: Mapping[str, Any]) -> str:
    """The module's curve, and when it reached what."""
    ours = found["taste"]
    lines = ["| method | seconds of one core | steps | alignment |", "| --- " * 4 + "|"]
    lines.append(f"| taste | {ours['seconds']:.1f} | | {ours['alignment']:.4f} |")
    for one in found["module"]:
        lines.append(f"| gpo, published schedule | {one['seconds']:.0f} | {one['steps']} | {one['alignment']:.4f} |")
    return "\n".join(lines) + "\n"


def _aligned(answers: Answers, said: Mapping[int, Shares], predicted: Sequence[Shares]) -> float:
    pairs = zip(said, predicted, strict=True)
    return float(np.nanmean([alignment(answers.questions[number], one, said[number]) for number, one in pairs]))


def _trained(taught: Answers, points: Points, seconds: float) -> Iterator[tuple[float, int, PreferenceModule]]:
    """The module at moments of its training; time for scoring it does not count."""
    draw, vectors = np.random.default_rng(0), torch.tensor(points.vectors, dtype=torch.float32)
    torch.manual_seed(0)
    module = PreferenceModule(ModuleConfig(dim_x=vectors.shape[1]))
    optimizer = torch.optim.Adam(module.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    groups = list(taught.groups.values())
    spent, step, due = 0.0, 0, [seconds * number / MOMENTS for number in range(1, MOMENTS + 1)]
    while due:
        began = time.process_time()
        some = [groups[place] for place in draw.permutation(len(groups))[:GROUPS]]
        one = episode(some, points, draw)
        x, targets = vectors[one.context.clamp_min(0)], vectors[one.targets.clamp_min(0)]
        means, log_stds = module(x, one.read, targets, one.context < 0)
        optimizer.zero_grad()
        gaussian_nll(means, log_stds, one.said, one.questions).backward()
        optimizer.step()
        schedule.step()
        spent, step = spent + time.process_time() - began, step + 1
        if spent >= due[0]:
            due.pop(0)
            yield spent, step, module


def _halves(own: Mapping[int, Shares], draw: np.random.Generator) -> tuple[dict[int, Shares], dict[int, Shares]]:
    order = [list(own)[place] for place in draw.permutation(len(own))]
    return {number: own[number] for number in order[:READ]}, {number: own[number] for number in order[READ:]}
