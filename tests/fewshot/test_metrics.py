"""Alignment against the figures of the published evaluations (tests/golden/opinion_metrics.json)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pluralign.fewshot.answers import Question
from pluralign.fewshot.metrics import Targets, jensen_shannon_alignment, wasserstein_alignment
from pluralign.fewshot.metrics import alignment as alignment_of

CASES = json.loads((Path(__file__).parents[1] / "golden" / "opinion_metrics.json").read_text(encoding="utf-8"))["cases"]


def named(kind: str) -> list[Any]:
    return [pytest.param(case, id=case["name"]) for case in CASES if case["kind"] == kind]


def alignment(case: dict[str, Any], metric: str) -> float:
    if metric == "opinionqa":
        return wasserstein_alignment(case["predicted"], case["human"], case["ordinal"])
    return jensen_shannon_alignment(case["predicted"], case["human"])


@pytest.mark.parametrize("case", named("opinionqa"))
def test_wasserstein(case: dict[str, Any]) -> None:
    found, expected = alignment(case["inputs"], "opinionqa"), case["expected"]["alignment"]
    assert math.isnan(found) if expected is None else found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("case", named("globalopinionqa"))
def test_jensen_shannon(case: dict[str, Any]) -> None:
    """An undefined distance is no perfect score, as it is in the published code."""
    found, expected = alignment(case["inputs"], "globalopinionqa"), case["expected"]
    assert math.isnan(found) if expected["nan_replaced"] else found == pytest.approx(expected["alignment"], abs=1e-7)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6), st.integers(0, 1000))
def test_alignment_is_best_with_itself_and_takes_any_scale(shares: list[float], seed: int) -> None:
    other = np.random.default_rng(seed).dirichlet(np.ones(len(shares)))
    assume(sum(shares) == 0 or sum(shares) >= 1e-6)
    if sum(shares) == 0:
        assert math.isnan(jensen_shannon_alignment(other, shares))
        return
    places = range(len(shares))
    assert wasserstein_alignment(shares, shares, places) == pytest.approx(1)
    assert jensen_shannon_alignment(shares, shares) == pytest.approx(1, abs=1e-7)
    for metric in (jensen_shannon_alignment, lambda one, two: wasserstein_alignment(one, two, places)):
        assert metric(other, shares) == pytest.approx(metric(other * 7, shares), abs=1e-7)
        assert 0 <= metric(other, shares) <= 1 + 1e-9


@given(st.integers(0, 2**32 - 1))
def test_many_targets_are_scored_as_one_by_one(seed: int) -> None:
    draw = np.random.default_rng(seed)
    questions, said, predicted = [], [], []
    for number in range(6):
        size = int(draw.integers(2, 6))
        line = tuple(map(float, draw.permutation(size) * draw.integers(0, 3))) if number % 2 else None
        questions.append(Question(f"{number}?", tuple(map(str, range(size))), line))
        said.append(draw.dirichlet(np.ones(size)) if number % 3 else np.eye(size)[0])
        predicted.append(draw.dirichlet(np.ones(size)))
    targets = Targets.of(questions, said)
    found = targets.alignment(np.concatenate(predicted))
    np.testing.assert_allclose(found, list(map(alignment_of, questions, predicted, said)), atol=1e-12)
    nats = [-(one * np.log(np.maximum(other, 1e-3))).sum() for one, other in zip(said, predicted, strict=True)]
    np.testing.assert_allclose(targets.nll(np.concatenate(predicted)), nats, atol=0.01)
    np.testing.assert_allclose(targets.softmax(np.log(np.concatenate(predicted))), np.concatenate(predicted))
