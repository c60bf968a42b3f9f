"""The few-shot benchmark's own arithmetic: questions saved, and its tables."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "fewshot"
NAMES = ("run", "active", "comparing", "ideas", "printing", "racing", "tables", "timing")


@pytest.fixture(scope="module", autouse=True)
def on_the_path() -> Iterator[None]:
    """The benchmark's modules import each other by their bare names."""
    before = list(sys.path)
    for name in NAMES:
        sys.modules.pop(name, None)
    sys.path[:0] = [str(FOLDER), str(FOLDER.parent)]
    yield
    sys.path[:] = before
    for name in NAMES:
        sys.modules.pop(name, None)


def module(name: str) -> Any:
    return import_module(name)


def test_questions_are_counted_until_the_score_is_reached() -> None:
    reached = module("active")._reached
    assert reached([0.5, 0.6, 0.7, 0.8], 0.7) == pytest.approx(2)
    assert reached([0.5, 0.6, 0.7, 0.8], 0.65) == pytest.approx(1.5)
    assert reached([0.5, 0.6, 0.7, 0.8], 0.9) == 3
    assert reached([0.5, 0.9, 0.7, 0.8], 0.8) == pytest.approx(0.75)
    assert reached([0.5, 0.6, 0.7, 0.8], 0.4) == 0, "nothing need be asked"


def test_an_order_that_is_twice_as_quick_saves_half_of_the_questions() -> None:
    slow = [0.5 + 0.01 * number for number in range(21)]
    quick = [0.5 + 0.02 * number for number in range(21)]
    groups = [
        {"seed": seed, "group": "one", "random": slow, "for the targets": quick, "for the pool": slow}
        for seed in range(3)
    ]
    found = module("active").active_table({"groups": groups})
    assert "| 10 | 0.6000 | 5.0 | 50% [50%, 50%] | 10.0 | 0% [0%, 0%] |" in found


def test_the_worlds_people_answer_pairs() -> None:
    answers = module("tables").TABLES["world"].read(Path())
    assert len(answers.groups) == 60 and all(len(own) == 60 for own in answers.groups.values())
    assert {len(question.options) for question in answers.questions} == {2}
    assert all(sorted(shares) == [0.0, 1.0] for _, _, shares in answers)


def summary(method: str, size: int, alignment: float) -> dict[str, Any]:
    means = {"alignment": alignment, "accuracy": 0.5, "nll": 1.2, "coverage": 0.79, "width": 0.2}
    margins = {"alignment": 0.01, "coverage": 0.02, "width": 0.03}
    return {
        "protocol": "new questions",
        "size": size,
        "method": method,
        "splits": 5,
        "means": means,
        "margins": margins,
    }


def test_the_table_has_every_method_with_its_interval() -> None:
    rows = [summary("ridge", 5, 0.7), summary("ridge", 10, 0.75), summary("taste", 5, 0.8)]
    found = module("printing").compare_table({"summaries": rows})
    assert "| new questions | 5 answers | 10 answers |" in found
    assert "| ridge | 0.700 ± 0.010 (50%, 1.20) | 0.750 ± 0.010 (50%, 1.20) |" in found
    assert "| taste | 79.0% ± 2.0%, 0.200 ± 0.030 |  |" in module("printing").width_table({"summaries": rows})


def test_ours_is_held_against_the_best_other_that_has_all_splits() -> None:
    def cell(method: str, seed: int, nll: float) -> dict[str, Any]:
        groups = {"one": {"alignment": 1 - nll, "accuracy": 0.5, "nll": nll}}
        return {"rows": [{"protocol": "known questions", "size": 5, "method": method, "seed": seed, "groups": groups}]}

    cells = [cell("taste", seed, 0.5) for seed in (0, 1)] + [cell("mean", seed, 0.6) for seed in (0, 1)]
    found = module("printing").against_table({"cells": [*cells, cell("gpo", 0, 0.1)]})
    assert "| known questions | 5 | nll | mean | +0.1000 [+0.1000, +0.1000] | 0.0000 | 2 |" in found
    assert "| known questions | 5 | accuracy | mean | +0.0000 [+0.0000, +0.0000] | 0.0000 | 2 |" in found


def test_harder_predictions_are_of_the_same_option() -> None:
    ideas = module("ideas")
    found = {
        name: ideas._hardened(lambda *_: [(np.array([0.2, 0.5, 0.3]), None, None)], harden)({}, [0])
        for name, harden in ideas.HARDER.items()
    }
    assert found["taste, one option"][0][0].tolist() == [0.0, 1.0, 0.0]
    np.testing.assert_allclose(found["taste, to the power of 3"][0][0], np.array([8, 125, 27]) / 160)


def test_the_modules_training_is_looked_at_until_its_schedule_ends() -> None:
    racing = module("racing")
    short = racing.Schedule(1e-3, 3, 8, racing.SHORT.loss)
    answers = module("tables").world(4, 25)
    vectors = racing.hashed(answers.questions, 8)
    (found,) = racing._raced(
        answers, vectors, list(answers.groups)[:2], list(answers.groups)[2:], short, 1e6, np.random.default_rng(0)
    )
    assert found["groups"] == [2, 2] and [one["steps"] for one in found["module"]] == [3]
    assert 0 < found["module"][0]["alignment"] <= 1 and 0 < found["taste"]["alignment"] <= 1
