"""Which question to ask next: the closed form's own order against a random one, on people who taught nothing.

The order is made for the questions that are to be known (`fewshot ask --targets`), or for the pool itself, as it is
where nobody says what is to be known. Either way the same questions are predicted, none of them of the pool.
"""

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
ORDERS = {"for the targets": True, "for the pool": False}
"""What is made surest -> whether it is known what will be predicted."""
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
    """How many questions of either order reach the random order's score, a mean over splits with its interval."""
    by_seed: dict[int, list[dict[str, Any]]] = {}
    for group in found["groups"]:
        by_seed.setdefault(group["seed"], []).append(group)
    orders = [order for order in ORDERS if order in found["groups"][0]]
    titles = [column for order in orders for column in (f"asked {order}", "fewer")]
    lines = [f"| random questions | their alignment | {' | '.join(titles)} |", "| --- " * (2 + len(titles)) + "|"]
    curves = [_curves(some, orders) for some in by_seed.values()]
    for asked in (5, 10, 15, 20):
        scores, cells = [one["random"][asked] for one in curves], []
        for order in orders:
            reached = [_reached(one[order], score) for one, score in zip(curves, scores, strict=True)]
            cells += [f"{mean(reached):.1f}", _interval([1 - one / asked for one in reached])]
        lines.append(f"| {asked} | {mean(scores):.4f} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _curves(groups: Sequence[Mapping[str, Any]], orders: Sequence[str]) -> dict[str, list[float]]:
    """Mean alignment of a split's groups after every question, by order."""
    return {order: [mean(one[order][n] for one in groups) for n in range(ASKED + 1)] for order in ("random", *orders)}


def _scores(
    view: Views, answers: Answers, own: Mapping[int, Shares], pool: Sequence[int], targets: Sequence[int]
) -> dict[str, list[float]]:
    def score(context: Mapping[int, Shares]) -> float:
        said = view.read(context).shares(targets)
        return mean(alignment(answers.questions[n], one, own[n]) for n, one in zip(targets, said, strict=True))

    found = {"random": [score({n: own[n] for n in pool[:size]}) for size in range(ASKED + 1)]}
    for order, wanted in ORDERS.items():
        context: dict[int, Shares] = {}
        left, found[order] = list(pool), [score({})]
        for _ in range(ASKED):
            number = next_question(view, context, left, targets if wanted else None)
            left.remove(number)
            context[number] = own[number]
            found[order].append(score(context))
    return found


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
