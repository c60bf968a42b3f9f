"""How measures fall on people: exact small cases, and what holds of any values."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluralign.evaluation.over_people import (
    GINI,
    Measured,
    describe,
    describe_samples,
    measured,
    of_the_worst_in,
    over_people,
    resamples,
    tenth,
)
from pluralign.evaluation.results import HIGHER_IS_BETTER

shares = st.lists(st.floats(0, 1).map(lambda value: round(value, 6)), min_size=1, max_size=40)
drawn = shares.flatmap(
    lambda values: st.tuples(
        st.just(values), st.lists(st.integers(0, len(values) - 1), min_size=len(values), max_size=len(values))
    )
)


def test_small_cases() -> None:
    assert describe([0.0, 1.0, 1.0, 0.5]) == pytest.approx(
        {"mean": 0.625, "worst": 0, "worst_decile": 0, "best": 1, "gap": 1, "gap_90_10": 0.85, "gini": 0.35}
    )
    assert describe([3.0]) == {
        **{"mean": 3, "worst": 3, "worst_decile": 3, "best": 3},
        **{"gap": 0, "gap_90_10": 0, "gini": 0},
    }
    # Everything with one of four people: (n - 1) / n.
    assert describe([0.0, 0.0, 0.0, 5.0])["gini"] == 0.75
    assert describe([0.0, 0.0])["gini"] == 0
    assert describe([]) == {}


def test_the_worst_tenth_is_rounded_up_and_on_the_side_that_is_worse() -> None:
    values = [float(number) for number in range(21)]
    assert (tenth(1), tenth(10), tenth(11), tenth(21)) == (1, 1, 2, 3)
    assert describe(values)["worst_decile"] == 1
    assert describe(values, higher=False)["worst_decile"] == 19
    assert describe(values, higher=False)["worst"] == 20


def test_what_has_no_gini_coefficient() -> None:
    with pytest.raises(ValueError, match="negative"):
        describe([-1.0, 2.0])
    assert "gini" not in describe([-1.0, 2.0], gini=False)
    with pytest.raises(ValueError, match="no number"):
        describe([math.nan])


@given(shares)
def test_statistics_are_those_of_their_definitions(values: list[float]) -> None:
    found = describe(values)
    assert found["mean"] == pytest.approx(sum(values) / len(values))
    assert found["worst_decile"] == pytest.approx(np.mean(sorted(values)[: math.ceil(len(values) / 10)]))
    assert found["gap_90_10"] == pytest.approx(np.percentile(values, 90) - np.percentile(values, 10))
    distances = [abs(one - other) for one in values for other in values]
    assert found["gini"] == pytest.approx(sum(distances) / max(2 * len(values) * sum(values), 1e-300), abs=1e-9)


@given(shares, st.booleans())
def test_the_worst_the_worst_tenth_and_the_mean_are_in_order(values: list[float], higher: bool) -> None:
    found = describe(values, higher=higher)
    sign = 1 if higher else -1
    in_order = [sign * found[name] for name in ("worst", "worst_decile", "mean", "best")]
    assert all(one <= other + 1e-9 for one, other in itertools.pairwise(in_order))
    assert 0 <= found["gap_90_10"] <= found["gap"] + 1e-9


@given(shares, st.floats(1e-3, 1e3), st.permutations(range(40)))
def test_gini_is_a_share_of_no_scale_and_no_order(values: list[float], scale: float, order: list[int]) -> None:
    gini = describe(values)["gini"]
    assert 0 <= gini <= 1
    assert describe([value * scale for value in values])["gini"] == pytest.approx(gini, abs=1e-9)
    assert describe([values[place] for place in order if place < len(values)])["gini"] == pytest.approx(gini, abs=1e-9)
    assert describe([scale] * len(values))["gini"] == pytest.approx(0, abs=1e-9)


@given(drawn, st.booleans())
def test_counts_stand_for_people_drawn_several_times(case: tuple[list[float], list[int]], higher: bool) -> None:
    values, indices = case
    counts = np.bincount(indices, minlength=len(values)).astype(float)
    found = describe_samples(np.array(values), np.stack([counts, counts]), higher=higher)
    expected = describe([values[index] for index in indices], higher=higher)
    for name, value in expected.items():
        assert found[name] == pytest.approx([value, value], abs=1e-9)


@given(drawn, st.booleans())
def test_the_worst_of_one_run_in_another(case: tuple[list[float], list[int]], higher: bool) -> None:
    values, indices = case
    first = np.array(values)
    counts = np.bincount(indices, minlength=len(values)).astype(float)[None]
    (own,) = of_the_worst_in(first, first, counts, higher=higher)
    assert own == pytest.approx(describe([values[index] for index in indices], higher=higher)["worst_decile"])


def test_people_who_tie_at_the_edge_of_the_worst_tenth_share_its_place() -> None:
    first, second = np.array([0.5, 0.2, 0.2, 0.2]), np.array([9.0, 1.0, 2.0, 6.0])
    for order in ([0, 1, 2, 3], [3, 0, 2, 1]):
        assert of_the_worst_in(first[order], second[order], np.ones((1, 4))) == pytest.approx([3])
    # Whoever is drawn twice has two of the places.
    assert of_the_worst_in(first, second, np.array([[1.0, 0.0, 2.0, 1.0]])) == pytest.approx([(2 + 2 + 6) / 3])


def test_resamples_draw_as_many_people_as_there_are() -> None:
    blocks = list(resamples(1000, draws=700, seed=1))
    counts = np.concatenate(blocks)
    assert len(blocks) > 1 and counts.shape == (700, 1000)
    assert (counts.sum(axis=1) == 1000).all()
    assert counts.mean(axis=0) == pytest.approx(np.ones(1000), abs=0.25)
    assert (np.concatenate(list(resamples(1000, draws=700, seed=1))) == counts).all()


def test_who_has_no_value_is_named() -> None:
    people: dict[str, Any] = {
        "ann": {"pairs": {"n": 3, "accuracy": 0.5, "margin": None}},
        "bob": {"pairs": {"n": 0, "accuracy": None, "margin": None}},
        "cem": {"pairs": {"n": 3, "accuracy": math.nan, "margin": math.inf}},
        "dan": {"pairs": {"n": 3, "accuracy": "high", "margin": True}},
        "eve": {"pairs": None},
        "gus": {"pairs": {"n": 3}},
        "fay": {"pairs": {"n": 3, "accuracy": 10**400, "margin": -1}},
    }
    assert measured(people, "pairs.accuracy") == Measured({"ann": 0.5}, ["bob", "eve", "gus"], ["cem", "dan", "fay"])
    # A file has null for what is no number: three pairs were measured.
    assert measured(people, "pairs.margin") == Measured({"fay": -1.0}, ["bob", "eve", "gus"], ["ann", "cem", "dan"])
    kept = {"ann": {"retention": {"kept": None}}, "bob": {"retention": {"kept": 1}}}
    assert measured(kept, "retention.kept") == Measured({"bob": 1.0}, ["ann"], [])


def test_an_evaluation_over_its_people() -> None:
    people = {f"p{n}": {"pairs": {"n": 9, "accuracy": n / 20, "margin": n - 5.0}} for n in range(20)}
    found = over_people(people)
    assert found["pairs.accuracy.worst_decile"] == 0.025
    assert found["pairs.accuracy.gini"] == pytest.approx(0.35)
    assert found["pairs.margin.gap_90_10"] == pytest.approx(15.2)
    assert found["retention.kept.gini"] is None and "pairs.margin.gini" not in found
    assert set(GINI) <= set(HIGHER_IS_BETTER)
    broken = {"ann": {"pairs": {"n": 9, "accuracy": -1.0}}}
    assert over_people(broken)["pairs.accuracy.gini"] is None
