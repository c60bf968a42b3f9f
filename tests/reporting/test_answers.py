"""Two answers as pieces from which both can be read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluralign.reporting.answers import LONGEST, answers_of, difference
from pluralign.reporting.gather import read_runs
from pluralign.reporting.names import Names, visible

WORDS = st.lists(st.sampled_from(["the", " ", "\n", "gem", "是", "宝石", ".", "é"]), max_size=12).map("".join)


@given(WORDS, WORDS)
def test_both_texts_can_be_read_from_the_pieces(base: str, person: str) -> None:
    pieces = difference(base, person)
    assert "".join(text for kind, text in pieces if kind in "=-") == base
    assert "".join(text for kind, text in pieces if kind in "=+") == person
    assert all(text for _, text in pieces)


def test_words_are_compared_and_a_change_of_several_is_one_piece() -> None:
    assert difference("The gem is red.", "The gem is red.") == [("=", "The gem is red.")]
    assert difference("The old gem", "The new stone") == [("=", "The "), ("-", "old gem"), ("+", "new stone")]
    assert difference("", "a b") == [("+", "a b")] and difference("", "") == []
    assert ("=", "宝石") in difference("宝石是红的", "宝石红")


def test_a_budget_of_characters_is_kept(make_run: Callable[..., Path]) -> None:
    folder = make_run(people=10)
    (run,) = read_runs([str(folder)])
    everybody = answers_of(run, run.people, 1_000_000)
    assert list(everybody) == list(run.people) and all(len(own) == 4 for own in everybody.values())
    few = answers_of(run, run.people, 2_500)
    assert 0 < len(few) < 10 and list(few) == list(run.people)[: len(few)]
    assert answers_of(run, ["nobody"], 1_000) == {}


def test_long_texts_are_cut_and_what_does_not_print_is_seen() -> None:
    assert visible("x" * (LONGEST + 5), LONGEST) == "x" * LONGEST + "…"
    assert visible("a\x00b\n\tc\u202ed\u2028e 👩\u200d🚀", 99) == "a\\x00b\n\tc\\u202ed\\u2028e 👩\u200d🚀"


def test_names_are_one_line_each_and_no_two_the_same() -> None:
    names = Names([])
    ids = ["a\nb", "a\\nb", "x" * 200, "x" * 100 + "y" + "x" * 99, "", "\ud800"]
    labels = [names.label(one) for one in ids]
    assert len(set(labels)) == len(ids) and not any("\n" in label for label in labels)
    assert [names.label(one) for one in ids] == labels
    assert [names.index(one) for one in (ids[2], ids[0], ids[2])] == [0, 1, 0]
    assert names.labels == [labels[2], labels[0]] and names.fresh().labels == []


@pytest.mark.parametrize("count", [3, 12])
def test_pseudonyms_are_numbers_by_place(count: int) -> None:
    names = Names([f"id {number}" for number in range(count)], "person")
    assert names.label("id 2") == ("person 3" if count < 10 else "person 03")
    assert names.fresh().label("unknown") == f"person {count + 1}"
