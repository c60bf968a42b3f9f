"""Time of the module's forward, of fitting, and of predicting for many groups; one thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import numpy as np
import torch

from pluralign.config import ModuleTrainingConfig
from pluralign.fewshot.answers import Answers, Question
from pluralign.fewshot.episodes import train_module
from pluralign.fewshot.features import Points, points
from pluralign.fewshot.fitting import fit
from pluralign.fewshot.module import ModuleConfig, PreferenceModule
from pluralign.fewshot.taste import Scales, taste

DIMENSIONS, REPEATS = 384, 5


def speed() -> dict[str, Any]:
    """Seconds, by what was done."""
    torch.set_num_threads(1)
    return {
        "module": _module(),
        "fit": {str(groups): _seconds(_fit(groups), 1) for groups in (20,)},
        "taste": {str(groups): _seconds(_taste(groups), 1) for groups in (125, 250, 500, 1000)},
        "predict": {str(groups): _predict(groups) for groups in (1_000, 10_000, 100_000)},
        "train": _train(),
    }


def speed_table(found: Mapping[str, Any]) -> str:
    """One line a figure."""
    lines = ["| what | seconds |", "| --- | --- |"]
    for kind, values in found.items():
        if isinstance(values, dict) and kind in ("module", "fit", "taste", "predict", "train"):
            lines += [f"| {kind}: {name} | {value:.4g} |" for name, value in values.items()]
    return "\n".join(lines) + "\n"


def _population(groups: int, questions: int) -> tuple[Answers, Points]:
    draw = np.random.default_rng(0)
    vectors = draw.normal(size=(questions * 4, DIMENSIONS)) / np.sqrt(DIMENSIONS)
    answers = Answers()
    for group in range(groups):
        logits = vectors @ draw.normal(size=DIMENSIONS) + draw.normal(size=len(vectors)) * 0.3
        shares = np.exp(logits).reshape(questions, 4)
        for number, row in enumerate(shares / shares.sum(1, keepdims=True)):
            answers.add(f"g{group}", Question(f"{number}?", ("a", "b", "c", "d")), row)
    return answers, points(answers.questions, vectors)


def _module() -> dict[str, float]:
    """1,000 options from 20 answers of four options, the context read once and both in one masked pass."""
    module = PreferenceModule(ModuleConfig(dim_x=DIMENSIONS)).eval()
    x, y, targets = torch.randn(1, 80, DIMENSIONS), torch.rand(1, 80), torch.randn(1, 1000, DIMENSIONS)
    with torch.no_grad():
        context = module.encode(x, y)
        return {
            "context and 1,000 options": _seconds(lambda: module(x, y, targets)),
            "1,000 options more": _seconds(lambda: module.predict(context, targets)),
        }


def _fit(groups: int) -> Callable[[], object]:
    answers, found = _population(groups, 500)
    return lambda: fit(answers, found)


def _taste(groups: int) -> Callable[[], object]:
    answers, found = _population(groups, 100)
    return lambda: taste(answers, found, Scales())


def _predict(groups: int) -> float:
    answers, found = _population(20, 100)
    view = taste(answers, found, Scales()).view(answers.questions, found)
    context = {number: answers.groups["g0"][number] for number in range(20)}
    targets = range(20, 30)

    def run() -> None:
        for _ in range(groups):
            view.read(context).shares(targets)

    return _seconds(run, 1)


def _train() -> dict[str, float]:
    answers, found = _population(20, 500)
    return {
        "100 steps of the module": _seconds(lambda: train_module(answers, found, ModuleTrainingConfig(steps=100)), 1)
    }


def _seconds(run: Callable[[], object], repeats: int = REPEATS) -> float:
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    return median(taken)
