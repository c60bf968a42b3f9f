"""Folder names: one a person, never outside the output folder."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pluralign.preferences import folder_name, shown

ANY_TEXT = st.text(st.characters(exclude_categories=[]), min_size=1, max_size=150)
SIMILAR = st.text("aA.%-_/é\ud800", min_size=1, max_size=130)


@given(st.one_of(ANY_TEXT, SIMILAR))
@example("..")
@example("../..")
@example("/etc/passwd")
@example("C:\\x")
@example("x" * 10_000)
@example("🙂" * 40)
@example("\ud800")
@example("a\0b")
def test_a_folder_name_is_one_plain_component(user):
    name = folder_name(user)
    assert re.fullmatch(r"[a-z0-9_%-]+", name)
    assert len(name) <= 255


@given(st.lists(st.one_of(ANY_TEXT, SIMILAR), unique=True, min_size=2, max_size=20))
@example(["ann", "Ann", "ANN"])
@example(["a.b", "a%2eb", "a%2Eb"])
@example(["x" * 120, "x" * 121, "x" * 122])
@example(["É" * 60, "é" * 60])
@example(["x" * 10_000, "x" * 9_999 + "y"])
def test_different_people_have_different_folders_on_a_disk_blind_to_case(users):
    assert len({folder_name(user).casefold() for user in users}) == len(users)


def test_the_shortened_name_of_one_person_is_nobody_elses_id():
    for long in ("x" * 121, "É" * 80):
        assert folder_name(folder_name(long)) != folder_name(long)


def test_plain_ids_are_their_own_folders():
    assert folder_name("user-7_b") == "user-7_b"


def test_an_empty_id_has_no_folder():
    with pytest.raises(ValueError, match="empty"):
        folder_name("")


@given(st.one_of(ANY_TEXT, SIMILAR))
@example("x" * 10_000)
@example("\x1b[31mred\nline")
def test_an_id_on_a_terminal_is_one_short_line_that_steers_nothing(user):
    text = shown(user)
    assert text.isprintable() and 1 <= len(text) <= 60


def test_an_id_that_prints_is_shown_as_it_is():
    assert [shown(user) for user in ("ann", "../..", "Ä 😀")] == ["ann", "../..", "Ä 😀"]
