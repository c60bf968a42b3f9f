"""Intervals and means: what a reader of `evaluation.json` relies on."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluralign.evaluation.statistics import bootstrap_interval, mean, share, wilson_interval

numbers = st.floats(-1e6, 1e6)


def test_wilson_against_published_values() -> None:
    # Newcombe (1998), table I, method 3: 81/263 and 0/20.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(0, 0) is None


@given(st.integers(1, 10_000).flatmap(lambda trials: st.tuples(st.integers(0, trials), st.just(trials))))
def test_wilson_holds_the_share_and_stays_inside(counts: tuple[int, int]) -> None:
    successes, trials = counts
    interval = wilson_interval(successes, trials)
    assert interval is not None
    low, high = interval
    assert 0 <= low <= successes / trials <= high <= 1


@given(st.lists(numbers, min_size=2, max_size=30))
def test_bootstrap_is_repeatable_and_inside_the_values(values: list[float]) -> None:
    interval = bootstrap_interval(values, seed=3)
    assert interval is not None
    assert interval == bootstrap_interval(values, seed=3)
    slack = 1e-9 * max(map(abs, values))
    assert min(values) - slack <= interval[0] <= interval[1] <= max(values) + slack


def test_bootstrap_has_the_width_of_the_standard_error() -> None:
    values = [float(number % 10) for number in range(1000)]
    interval = bootstrap_interval(values)
    assert interval is not None
    error = math.sqrt(8.25 / 1000)
    assert interval[1] - interval[0] == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert bootstrap_interval([1.0]) is None


@given(st.lists(st.one_of(numbers, st.just(math.nan), st.just(math.inf), st.none())))
def test_what_is_no_number_is_left_out(values: list[float | None]) -> None:
    kept = [value for value in values if value is not None and math.isfinite(value)]
    assert mean(values) == (pytest.approx(math.fsum(kept) / len(kept)) if kept else None)


def test_share() -> None:
    assert share([True, False, True, True]) == 0.75
    assert share([]) is None
