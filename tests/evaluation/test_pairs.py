"""Held-out pairs by hand-made log-probs, and who is tried on whose pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluralign.evaluation.drift import Drift
from pluralign.evaluation.pairs import (
    CROSS_NEAREST,
    CROSS_SAMPLE,
    Pair,
    cross_plan,
    cross_results,
    drift_results,
    pair_results,
    scored_pairs,
    taste_profile,
)


def pair(number: int, chosen: float = -3.0, rejected: float = -2.0) -> Pair:
    return Pair(((number,), (1, 2)), ((number,), (3, 4, 5, 6)), chosen, rejected)


def taste(likes: int, dislikes: int) -> list[Pair]:
    return [Pair(((0,), (7, likes)), ((0,), (7, dislikes)), -1.0, -1.0)]


def test_results_are_those_of_the_definitions() -> None:
    pairs = [pair(0), pair(1), pair(2), pair(3, chosen=-1.0)]
    policy = [(-1.0, -4.0), (-5.0, -3.0), (-3.0, -2.0), (-0.5, -2.5)]
    logps = {
        request: value
        for item, values in zip(pairs, policy, strict=True)
        for request, value in zip(item.requests, values, strict=True)
    }
    scored = scored_pairs(pairs, logps)
    assert [item.margin for item in scored] == [4.0, -1.0, 0.0, 1.0]
    found = pair_results(scored)
    assert (found["n"], found["accuracy"], found["ties"], found["undefined"]) == (4, 0.5, 1, 0)
    assert found["margin"] == 1.0
    assert (found["ranking_accuracy"], found["base_ranking_accuracy"]) == (0.5, 0.25)
    assert found["chosen_log_ratio"] == pytest.approx((2 - 2 + 0 + 0.5) / 4)
    assert found["rejected_log_ratio"] == pytest.approx((-2 - 1 + 0 - 0.5) / 4)
    assert found["chosen_log_ratio_per_token"] == pytest.approx((2 - 2 + 0 + 0.5) / 8)
    assert found["rejected_log_ratio_per_token"] == pytest.approx((-2 - 1 + 0 - 0.5) / 16)
    assert found["accuracy_interval"][0] < 0.5 < found["accuracy_interval"][1]
    assert found["margin_interval"][0] < 1.0 < found["margin_interval"][1]
    assert cross_results(scored) == {"n": 4, "accuracy": 0.5, "margin": 1.0}


def test_what_is_no_number_is_wrong_and_out_of_the_means() -> None:
    scored = scored_pairs([pair(0), pair(1)], {((0,), (1, 2)): math.nan, ((0,), (3, 4, 5, 6)): -1.0, **_good(1)})
    found = pair_results(scored)
    assert (found["accuracy"], found["margin"], found["undefined"]) == (0.5, 2.0, 1)
    ruined = pair_results(scored[:1])
    assert (ruined["accuracy"], ruined["margin"], ruined["margin_interval"]) == (0.0, None, None)


def _good(number: int) -> dict[tuple[tuple[int, ...], tuple[int, ...]], float]:
    return {((number,), (1, 2)): -2.0, ((number,), (3, 4, 5, 6)): -3.0}


def test_no_pairs_give_nulls() -> None:
    found = pair_results([])
    assert found["n"] == 0
    assert [found[key] for key in ("accuracy", "accuracy_interval", "margin", "ranking_accuracy")] == [None] * 4
    assert drift_results([])["kl_per_token"] is None


def test_drift_is_per_token_over_all_tokens() -> None:
    found = drift_results([Drift(-1.0, 0.5, 2), Drift(-3.0, 1.5, 6), Drift(math.nan, 1.0, 3)])
    assert (found["n"], found["tokens"], found["undefined"]) == (3, 8, 1)
    assert (found["log_ratio"], found["log_ratio_per_token"], found["kl_per_token"]) == (-2.0, -0.5, 0.25)


def test_everybody_meets_everybody_up_to_the_limit() -> None:
    pairs = {"a": [pair(0)], "b": [], "c": [pair(1)]}
    assert cross_plan(pairs, limit=3, seed=0) == {"a": ["a", "c"], "b": ["a", "c"], "c": ["c", "a"]}
    assert cross_plan(pairs, limit=0, seed=0) == {"a": [], "b": [], "c": []}


def test_beyond_the_limit_the_nearest_and_a_fixed_sample() -> None:
    # Ten kinds of taste, five people of each.
    pairs = {f"{kind}-{number}": taste(100 + kind, 200 + kind) for number in range(5) for kind in range(10)}
    plan = cross_plan(pairs, limit=10, seed=0)
    fixed = set.intersection(*(set(others) for others in plan.values()))
    assert len(fixed) == CROSS_SAMPLE
    for person, others in plan.items():
        assert others[0] == person
        assert {other for other in pairs if other.split("-")[0] == person.split("-")[0]} <= set(others)
        assert len(others) <= 1 + CROSS_NEAREST + CROSS_SAMPLE
    assert plan == cross_plan(pairs, limit=10, seed=0)
    assert plan != cross_plan(pairs, limit=10, seed=1)


@given(
    st.dictionaries(st.text(min_size=1, max_size=3), st.integers(0, 3), max_size=30),
    st.integers(0, 8),
    st.integers(0, 3),
)
def test_a_plan_names_only_people_with_pairs(people: dict[str, int], limit: int, seed: int) -> None:
    pairs = {name: [pair(number) for number in range(count)] for name, count in people.items()}
    plan = cross_plan(pairs, limit=limit, seed=seed)
    assert list(plan) == list(pairs)
    for person, others in plan.items():
        assert len(set(others)) == len(others)
        assert all(pairs[other] for other in others)
        assert limit == 0 or not pairs[person] or others[0] == person


def test_taste_is_a_unit_vector_without_the_topic() -> None:
    profile = taste_profile(taste(100, 200))
    assert np.linalg.norm(profile) == pytest.approx(1)
    assert set(np.flatnonzero(profile)) == {100, 200}
    assert float(profile @ taste_profile(taste(200, 100))) == pytest.approx(-1)
    assert not taste_profile([]).any()
