"""Which question to ask next: the closed form's own order against a random one, on people who taught nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from tables import TABLES

from pluralign.config import EmbeddingConfig
from pluralign.fewshot.active import next_question
from pluralign.fewshot.answers import Answers, Shares
from pluralign.fewshot.embedding import embed
from pluralign.fewshot.fitting import fit
from pluralign.fewshot.kinds import Views
from pluralign.fewshot.metrics import alignment
from pluralign.fewshot.protocols import split

ASKED, SPLITS = 20, 5
POOL = 30
"""Questions that may be asked, at least: half of a group's answers. The other half is predicted."""


def active(name: str, data: Path) -> dict[str, Any]:
    """Alignment after every question, in either order, of every tested group with answers enough."""
    answers = TABLES[name].read(data)
    points, _ = embed(answers.questions, EmbeddingConfig())
    groups: list[dict[str, Any]] = []
    for seed in range(SPLITS):
        one = split(answers, TABLES[name].protocols[0], [1], least=2 * POOL, seed=seed)
        view = fit(one.training, points, seed=seed).tastes.view(answers.questions, points)
        draw = np.random.default_rng(seed)
        for trial in one.trials:
            own = answers.groups[trial.group]
            order = draw.permutation(list(own)).tolist()
            pool, targets = order[: len(order) // 2], order[len(order) // 2 :]
            scores = _scores(view, answers, own, pool, targets)
            groups.append({"seed": seed, "group": trial.group, **scores})
    return {"asked": ASKED, "groups": groups}


def active_table(found: Mapping[str, Any]) -> str:
    """How many questions of the active order reach the random order's score, a mean over splits with its interval."""
    by_seed: dict[int, list[dict[str, Any]]] = {}
    for group in found["groups"]:
        by_seed.setdefault(group["seed"], []).append(group)
    lines = ["| questions in random order | its alignment | questions in active order | fewer |", "| --- " * 4 + "|"]
    for asked in (5, 10, 15, 20):
        reached, scores = [], []
        for some in by_seed.values():
            curves = {
                kind: [mean(group[kind][n] for group in some) for n in range(ASKED + 1)]
                for kind in ("random", "active")
            }
            scores.append(curves["random"][asked])
            reached.append(_reached(curves["active"], scores[-1]))
        fewer = [1 - one / asked for one in reached]
        lines.append(f"| {asked} | {mean(scores):.4f} | {mean(reached):.1f} | {_interval(fewer)} |")
    return "\n".join(lines) + "\n"


def _scores(
    view: Views, answers: Answers, own: Mapping[int, Shares], pool: Sequence[int], targets: Sequence[int]
) -> dict[str, list[float]]:
    def score(context: Mapping[int, Shares]) -> float:
        said = view.read(context).shares(targets)
        return mean(alignment(answers.questions[n], one, own[n]) for n, one in zip(targets, said, strict=True))

    context: dict[int, Shares] = {}
    left, curve = list(pool), [score({})]
    for _ in range(ASKED):
        number = next_question(view, context, left, targets)
        left.remove(number)
        context[number] = own[number]
        curve.append(score(context))
    return {"random": [score({n: own[n] for n in pool[:size]}) for size in range(ASKED + 1)], "active": curve}


def _reached(curve: Sequence[float], score: float) -> float:
    """Questions until a score is reached, between two of them by a straight line; all where it never is."""
    if curve[0] >= score:
        return 0.0
    for number in range(1, len(curve)):
        if curve[number] >= score:
            before = curve[number - 1]
            return number - (curve[number] - score) / (curve[number] - before) if curve[number] > before else number
    return float(len(curve) - 1)


def _interval(values: Sequence[float]) -> str:
    half = 2.78 * stdev(values) / math.sqrt(len(values))
    return f"{mean(values):.0%} [{mean(values) - half:.0%}, {mean(values) + half:.0%}]"
