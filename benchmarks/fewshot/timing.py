"""Time of the module's forward, of fitting, and of predicting for many groups: seconds of one core.

Time is that of the process, one thread: what else a machine does adds to it by sharing caches and cores, so that of
short measurements the least one is taken.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from math import log
from typing import Any

import numpy as np
import torch
from tables import world

from pluralign.fewshot.answers import Answers, Question
from pluralign.fewshot.features import Points, points
from pluralign.fewshot.fitting import fit
from pluralign.fewshot.hashing import hashed
from pluralign.fewshot.module import ModuleConfig, PreferenceModule

DIMENSIONS, REPEATS = 384, 30
PEOPLE, PAIRS = 20, 500
QUESTIONS, KNOWN = 300, 280
"""Of 20 groups from which is learned how others are predicted, and how many of them they answered."""
WORDS = (20, 300)
FITTED, PREDICTED = (125, 250, 500, 1000, 2000), (1_000, 10_000, 100_000)
GROWING = ("fit", "fit, questions of their own", "predict")
"""Parts whose figures are by the number of groups."""


def speed(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Seconds, by what was done: after every part all there are, beginning with those found."""
    torch.set_num_threads(1)
    makers: dict[str, Callable[[], dict[str, float]]] = {
        "module": _module,
        "hashed words": lambda: {f"an option, {words} words in prompt and response": _hashed(words) for words in WORDS},
        "world": _fit_world,
        "predict": lambda: {str(groups): _predict(groups) for groups in PREDICTED},
        "fit": lambda: {str(groups): _fit(*_population(groups, 20)) for groups in FITTED},
        "fit, questions of their own": lambda: {str(groups): _fit(*_people(groups, 20)) for groups in FITTED},
    }
    made = {name: found[name] for name in makers if name in found}
    for name, make in makers.items():
        if name not in made:
            made[name] = make()
            yield made


def speed_table(found: Mapping[str, Any]) -> str:
    """One line a figure, and the powers of the number of groups that time grows with."""
    lines = ["| what | seconds of one core |", "| --- | --- |"]
    there = [kind for kind in ("module", "hashed words", "world", *GROWING) if kind in found]
    for kind in there:
        lines += [f"| {kind}: {name} | {value:.4g} |" for name, value in found[kind].items()]
    for kind in (kind for kind in there if kind in GROWING):
        taken = [(int(groups), value) for groups, value in found[kind].items()]
        powers = [log(more / less) / log(many / few) for (few, less), (many, more) in pairwise(taken)]
        lines.append(f"| {kind}: grows with groups to the power of | {', '.join(f'{one:.2f}' for one in powers)} |")
    return "\n".join(lines) + "\n"


def _fit_world() -> dict[str, float]:
    answers = world(PEOPLE, PAIRS)
    found = hashed(answers.questions, DIMENSIONS)
    return {f"{PEOPLE} people, {PAIRS} questions, {DIMENSIONS} dimensions": _seconds(lambda: fit(answers, found), 1)}


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


def _people(count: int, pairs: int) -> tuple[Answers, Points]:
    """People who chose between pairs that nobody else was asked about."""
    draw, answers, vectors = np.random.default_rng(0), Answers(), []
    for person in range(count):
        liked = draw.normal(size=DIMENSIONS)
        for number in range(pairs):
            pair = draw.normal(size=(2, DIMENSIONS)) / np.sqrt(DIMENSIONS)
            chosen = float(pair[0] @ liked > pair[1] @ liked)
            vectors.append(pair)
            answers.add(f"p{person}", Question(f"{person} {number}?", ("a", "b")), np.array([chosen, 1 - chosen]))
    return answers, points(answers.questions, np.concatenate(vectors))


def _module() -> dict[str, float]:
    """1,000 options from 20 answers of four options, the context read once, and 1,000 options more."""
    module = PreferenceModule(ModuleConfig(dim_x=DIMENSIONS)).eval()
    x, y, targets = torch.randn(1, 80, DIMENSIONS), torch.rand(1, 80), torch.randn(1, 1000, DIMENSIONS)
    with torch.no_grad():
        context = module.encode(x, y)
        module(x, y, targets)
        return {
            "20 answers read and 1,000 options predicted": _seconds(lambda: module(x, y, targets)),
            "1,000 options more": _seconds(lambda: module.predict(context, targets)),
        }


def _hashed(words: int) -> float:
    draw = np.random.default_rng(0)
    texts = [" ".join(f"word{number}" for number in draw.integers(0, 10_000, words)) for _ in range(3)]
    question = Question(texts[0], (texts[1], texts[2]))
    return _seconds(lambda: hashed([question])) / 2


def _fit(answers: Answers, found: Points) -> float:
    return _seconds(lambda: fit(answers, found), 1)


def _predict(groups: int) -> float:
    """For groups with 5 answers each, a question that training groups answered and a new one."""
    answers, found = _population(20, QUESTIONS)
    known, new = KNOWN, QUESTIONS - 1
    views = fit(answers.without(range(known, QUESTIONS)), found).tastes.view(answers.questions, found)
    context = {number: answers.groups["g0"][number] for number in range(5)}

    def run() -> None:
        for _ in range(groups):
            views.read(context).shares((known - 1, new))

    return _seconds(run, 1)


def _seconds(run: Callable[[], object], repeats: int = REPEATS) -> float:
    taken = []
    for _ in range(repeats):
        began = time.process_time()
        run()
        taken.append(time.process_time() - began)
    return min(taken)
