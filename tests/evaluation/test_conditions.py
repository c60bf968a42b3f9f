"""Conditions: what is read, what is refused, and that nothing missing is passed over."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pluralign.errors import InputError
from pluralign.evaluation.conditions import OPERATORS, Condition, Term, parse_condition

keys = st.from_regex(r"[a-z_][a-z0-9_]{0,8}(\.[a-z0-9_]{1,8}){0,3}", fullmatch=True).filter(
    lambda key: key not in ("and", "or")
)
terms = st.builds(Term, keys, st.sampled_from(sorted(OPERATORS)), st.floats(allow_nan=False, allow_infinity=False))
conditions = st.lists(st.lists(terms, min_size=1, max_size=3).map(tuple), min_size=1, max_size=3).map(
    lambda found: Condition(tuple(found))
)


@given(conditions)
def test_what_is_written_is_read_back(condition: Condition) -> None:
    assert parse_condition(str(condition)) == condition


@given(
    st.one_of(
        st.text(), st.lists(st.sampled_from(["a", "<", "and", "or", "1", "=", "(", "-", "nan", " "])).map("".join)
    )
)
@example("a < 1 and")
@example("")
def test_anything_else_is_an_input_error(text: str) -> None:
    try:
        assert parse_condition(str(parse_condition(text))) == parse_condition(text)
    except InputError as error:
        assert all(character.isprintable() for character in str(error))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "it ends where a key such as retention.kept.mean is expected"),
        ("a", "it ends where one of <= >= == != < > is expected"),
        ("a <", "it ends where a number is expected"),
        ("a < 1 and", "it ends where a key such as"),
        ("a < b", "'b' stands at character 5, where a number is expected"),
        ("a < nan", "'nan' stands"),
        ("a < inf", "'inf' stands"),
        ("a < 1_000", "'1_000' stands"),
        ("a < ٣", "stands at character 5"),
        ("a < 1e999", "1e999 is too large for a number"),
        ("a = 1", "'=' stands at character 3"),
        ("a < 1 & b < 2", "'&' stands at character 7, where `and`, `or` or the end is expected"),
        ("(a < 1)", r"'\(a' stands at character 1, where a key"),
        ("and < 1", "'and' stands at character 1"),
        ("__import__('os').system('x') < 1", "stands at character 1, where a key"),
        ("a < 1 b < 2", "'b' stands at character 7"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(text: str, named: str) -> None:
    with pytest.raises(InputError, match=named):
        parse_condition(text)


def test_and_binds_tighter_and_spaces_may_be_left_out() -> None:
    figures = {"a": 1.0, "b": 2, "c.d_e": -3.0}
    for text, holds in {
        "a<2": True,
        "a >= 1 and b != 2": False,
        "a == 5 or a == 1 and b == 2": True,
        "a == 1 or a == 5 and b == 5": True,
        "a == 5 and b == 2 or c.d_e>-.5e1": True,
        "c.d_e <= -3.": True,
        "b > 2": False,
    }.items():
        assert parse_condition(text).holds(figures) is holds, text
    assert str(parse_condition("a<2 and b>=1e-5")) == "a < 2 and b >= 1e-05"
    assert parse_condition("a<2 or a>1 and b<0").keys == ["a", "b"]


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (None, "a.b has no value"),
        (math.nan, "a.b is 'nan', which is no number"),
        (math.inf, "a.b is 'inf'"),
        ("ann", "a.b is 'ann'"),
        (True, "a.b is 'True'"),
        (10**400, "a.b is '1000"),
    ],
)
@pytest.mark.parametrize("text", ["a.b < 1", "c > 0 or a.b < 1", "c < 0 and a.b < 1"])
def test_a_figure_that_is_no_number_is_an_error_even_where_another_decides(text: str, value: Any, named: str) -> None:
    with pytest.raises(InputError, match=named):
        parse_condition(text).holds({"a.b": value, "c": 1.0})


def test_an_unknown_figure_is_an_error_with_near_ones() -> None:
    with pytest.raises(InputError, match=r"no figure retention.kept.meen. Did you mean retention.kept.mean\?"):
        parse_condition("retention.kept.meen < 1").holds({"retention.kept.mean": 1.0})
    with pytest.raises(InputError, match=r"docs/compare.md"):
        parse_condition(f"{'q' * 500_000} < 1").holds({"retention.kept.mean": 1.0})
