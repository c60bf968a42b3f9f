"""What the forgetting benchmark makes of trainings: windows, fronts, intervals."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

FOLDER = Path(__file__).parents[2] / "benchmarks" / "forgetting"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"forgetting_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


fronts, bootstrap = load("fronts"), load("bootstrap")
MARKS = (10, 20, 40, 80)


def track(style: list[float], kept: list[float], loss: list[float] | None = None) -> Any:
    return fronts.Track(MARKS, tuple(style), tuple(kept), tuple(loss or [1.0] * len(style)))


def test_a_window_is_as_long_as_both_hold() -> None:
    assert track([1, 1, 1, 1], [1, 1, 1, 1]).window == pytest.approx(math.log(8))
    assert track([0, 0, 1, 1], [1, 1, 1, 1]).window == pytest.approx(math.log(2) * 1.05, abs=0.04)
    assert track([1, 1, 1, 1], [1, 1, 0, 0]).window == pytest.approx(math.log(2) * 1.03, abs=0.04)
    assert track([0, 0, 0, 1], [1, 0, 0, 0]).window == 0


def test_the_front_keeps_the_best_of_what_serves() -> None:
    perfect = track([0, 1, 1, 1], [1, 1, 0.2, 0.1])
    assert perfect.area == pytest.approx(1, abs=0.03)
    assert track([0, 0, 0, 0], [1, 1, 1, 1]).area == 0
    # Served by a half at most, and then a half is lost.
    assert track([0, 0.5, 0.5, 0.5], [1, 0.5, 0.5, 0.5]).area == pytest.approx(0.375, abs=0.03)
    assert perfect.front([0, 0.9, 1.0])[0] == pytest.approx(1, abs=0.03)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=4, max_size=4))
def test_serving_and_keeping_more_is_never_worse(points: list[tuple[float, float]]) -> None:
    style, kept = [list(values) for values in zip(*points, strict=True)]
    one = track(style, kept)
    better = track([min(1, value + 0.1) for value in style], [min(1, value + 0.1) for value in kept])
    assert 0 <= one.area <= better.area + 1e-9 and better.area <= 1 + 1e-9
    assert 0 <= one.window <= better.window + 1e-9


def test_knowledge_is_the_worst_way_of_asking() -> None:
    measures = {"style": [1.0] * 4, "told": [None] * 4, "base_prefix": [1.0, 0.9, 1.0, 1.0]}
    found = fronts.Track.of(MARKS, {**measures, "own_prefix": [0.8, 1.0, None, 1.0], "loss": [3.0, 1.0, 2.0, 2.0]})
    assert found.kept == (0.8, 0.9, 1.0, 1.0)
    assert found.stopped == 1 and not found.well(1) and found.well(3)


def test_one_setting_is_the_same_mark_for_all() -> None:
    early, late = track([1, 1, 0, 0], [1] * 4), track([0, 1, 1, 1], [1] * 4)
    assert fronts.one_setting([early, late]) == (1.0, 20)
    assert fronts.one_setting([early, track([0, 0, 1, 1], [1] * 4)])[0] == 0.5


def test_intervals_hold_the_mean_and_pairs_cancel() -> None:
    values = {seed: {user: seed + user / 10 for user in range(5)} for seed in range(6)}
    found = bootstrap.estimate(values)
    assert found.low < found.mean < found.high and found.detectable > 0
    shifted = {seed: {user: value + 0.3 for user, value in people.items()} for seed, people in values.items()}
    between = bootstrap.difference(shifted, values)
    assert between.mean == pytest.approx(0.3) and between.detectable == pytest.approx(0, abs=1e-9)
    assert bootstrap.estimate(values) == found
