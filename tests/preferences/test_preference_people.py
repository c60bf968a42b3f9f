"""Ids: as folder names, one a person and never outside the output folder; as typed; and what stands behind them."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pluralign.errors import InputError
from pluralign.preferences import Preference, folder_name, named_people, people_hashes, shown

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


@given(st.lists(ANY_TEXT, unique=True, min_size=1, max_size=5))
def test_a_list_names_ids_as_they_are(known):
    assert named_people([*known, *known], known, where="x") == known
    assert named_people(known[0], known, where="x") == known[:1]


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        ("ann,ben", ["ann", "ben"]),
        (" ben , ann,ben,", ["ben", "ann"]),
        ("a,b", ["a,b"]),
        ("", []),
        (None, []),
        ([], []),
    ],
)
def test_a_text_names_one_id_or_several(typed, named):
    assert named_people(typed, ["ann", "ben", "a,b"], where="x") == named


@pytest.mark.parametrize(
    ("typed", "known", "said"),
    [
        ("anne", ["ann", "zoe", "ann"], "x: nobody has the id 'anne'. Did you mean 'ann'?"),
        ("q", ["ann"], "There are 'ann'."),
        ("q", map(str, range(11)), "There are '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', ..."),
        ("q", [], "There is nobody."),
    ],
)
def test_an_unknown_id_is_refused_with_those_that_are_near(typed, known, said):
    with pytest.raises(InputError) as caught:
        named_people(typed, list(known), where="x")
    assert said in str(caught.value)


def test_a_persons_hash_is_of_their_own_rows_in_order():
    def row(user, text):
        return Preference(prompt="q", chosen=text, rejected="no", user=user)

    one, two, other = row("ann", "a"), row("ann", "b"), row("ben", "a")
    hashes = people_hashes([one, two, other], "user")
    assert people_hashes([other, one, two], "user") == hashes and set(hashes) == {"ann", "ben"}
    assert hashes["ann"] != hashes["ben"]
    assert people_hashes([two, one], "user")["ann"] != hashes["ann"]
    assert people_hashes([one], "user", held_out=[two])["ann"] != hashes["ann"]
    assert people_hashes([one], "user", held_out=[other]).keys() == {"ann"}
    assert set(people_hashes([one, other], "none")) == {"_all"}
