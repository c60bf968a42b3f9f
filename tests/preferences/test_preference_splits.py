"""Splits: disjoint, complete, fixed by seed and content; no prompt on both sides; a share of each person's rows."""

import json
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pluralign.config import DataConfig
from pluralign.errors import InputError
from pluralign.preferences import Preference, Preferences, Problem, split_preferences
from pluralign.preferences.keys import row_key, text_key
from pluralign.preferences.schema import Place


def split(preferences, share=0.1, by="prompt", per="user", seed=0):
    return split_preferences(preferences, validation=share, by=by, per=per, seed=seed, data=DataConfig())


def preference(user, prompt, chosen="c", **fields):
    return Preference(prompt, chosen, "r", user=user, **fields)


def counted(preferences):
    return Counter(map(row_key, preferences))


TABLES = st.lists(
    st.builds(
        preference,
        st.sampled_from("abcde"),
        st.one_of(st.sampled_from("pqrstuvw"), st.sampled_from("pqr").map(lambda p: [{"role": "user", "content": p}])),
        st.sampled_from(["c", "d"]),
        group=st.sampled_from("xy"),
    ),
    min_size=1,
    max_size=60,
).map(Preferences)

SHARES = st.floats(0.01, 0.99)


@settings(deadline=None)
@given(
    TABLES, SHARES, st.sampled_from(["row", "prompt"]), st.sampled_from(["user", "group", "none"]), st.integers(0, 9)
)
def test_sides_are_disjoint_complete_and_independent_of_order(table, share, by, per, seed):
    training, held_out = split(table, share, by, per, seed)
    assert counted(training) + counted(held_out) == counted(table)
    shuffled = random.Random(seed).sample(table.rows, len(table))
    again, held_again = split(Preferences(shuffled), share, by, per, seed)
    assert counted(again) == counted(training) and counted(held_again) == counted(held_out)
    # Both sides keep the order of the table.
    order = {id(row): index for index, row in enumerate(table)}
    for side in (training, held_out):
        assert [order[id(row)] for row in side] == sorted(order[id(row)] for row in side)


@settings(deadline=None)
@given(TABLES, SHARES, st.sampled_from(["user", "group", "none"]))
def test_no_prompt_is_on_both_sides_and_everybody_keeps_a_row(table, share, per):
    training, held_out = split(table, share, "prompt", per)
    assert not {text_key(row.prompt) for row in training} & {text_key(row.prompt) for row in held_out}
    assert training.by(per).keys() == table.by(per).keys()


@settings(deadline=None)
@given(TABLES, SHARES, st.sampled_from(["user", "group", "none"]))
def test_by_row_everybody_gets_the_nearest_number_and_keeps_a_row(table, share, per):
    training, held_out = split(table, share, "row", per)
    held = held_out.by(per)
    for owner, rows in table.by(per).items():
        assert training.by(per)[owner]
        if round(share * len(rows)):
            wanted = min(share * len(rows), len(rows) - 1)
            assert abs(len(held.get(owner, [])) - wanted) <= 0.5


@settings(deadline=None)
@given(TABLES, SHARES)
def test_by_user_people_are_whole(table, share):
    users = {row.user for row in table}
    if len(users) == 1:
        with pytest.raises(InputError, match="single user"):
            split(table, share, "user")
        return
    training, held_out = split(table, share, "user")
    assert {row.user for row in training} | {row.user for row in held_out} == users
    assert not {row.user for row in training} & {row.user for row in held_out}
    assert len(training) and len(held_out)


@pytest.mark.parametrize("shared", [True, False])
def test_by_prompt_the_share_is_met_for_each_person(shared):
    people = [f"user{number}" for number in range(20)]
    rows = [preference(user, f"{'' if shared else user} {number}") for user in people for number in range(50)]
    _, held_out = split(Preferences(rows))
    assert {len(rows) for rows in held_out.by("user").values()} == {5}
    assert len(held_out.by("user")) == 20


def test_by_prompt_the_share_is_near_where_people_share_some_prompts():
    draw = random.Random(0)
    rows = [preference(f"user{user}", str(prompt)) for user in range(40) for prompt in draw.sample(range(500), 100)]
    _, held_out = split(Preferences(rows), 0.2)
    held = held_out.by("user")
    assert abs(len(held_out) / len(rows) - 0.2) < 0.03
    assert all(10 <= len(held[f"user{user}"]) <= 30 for user in range(40))


def test_many_people_with_few_rows_meet_the_share_together():
    rows = [preference(f"user{user}", f"{user}-{number}") for user in range(1000) for number in range(3)]
    training, held_out = split(Preferences(rows))
    assert abs(len(held_out) / len(rows) - 0.1) < 0.02
    assert len(training.by("user")) == 1000


def test_a_person_alone_gets_the_split_it_gets_among_others():
    rows = [preference(user, f"{user} {number}") for user in "abc" for number in range(30)]
    _, together = split(Preferences(rows))
    for user in "abc":
        _, alone = split(Preferences([row for row in rows if row.user == user]))
        assert counted(alone) == counted(together.by("user")[user])


@pytest.mark.parametrize("by", ["row", "prompt", "user"])
def test_another_seed_is_another_split(by):
    table = Preferences([preference(f"u{number % 20}", str(number)) for number in range(200)])
    assert len({tuple(row.prompt for row in split(table, by=by, seed=seed)[1]) for seed in range(5)}) == 5


def test_problems_and_ties_stay_with_the_training_rows():
    problem = Problem(Place("t", 9), None, "broken")
    table = Preferences([preference("a", "p"), preference("a", "q")], [problem], {"a": 3}, "t")
    training, held_out = split(table, 0.5)
    assert (training.problems, training.ties, training.name) == ([problem], {"a": 3}, "t")
    assert (held_out.problems, held_out.ties) == ([], {})
    assert (len(training), len(held_out)) == (1, 1)


def test_nothing_held_out():
    table = Preferences([preference("a", "p")])
    assert [len(side) for side in split(table, 0)] == [1, 0]
    assert [len(side) for side in split(Preferences([]), 0.5)] == [0, 0]


def test_a_file_of_held_out_rows(tmp_path):
    path = tmp_path / "held.jsonl"
    path.write_text(json.dumps({"user": "a", "prompt": "x", "chosen": "y", "rejected": "z"}))
    table = Preferences([preference("a", "p")])
    training, held_out = split(table, str(path))
    assert training is table
    assert held_out[0].prompt == "x"


@pytest.mark.parametrize("share", [-0.1, 1, 1.5, float("nan")])
def test_a_share_out_of_range(share):
    with pytest.raises(InputError, match=r"data\.validation"):
        split(Preferences([preference("a", "p")]), share)


def test_unknown_ways_to_split():
    with pytest.raises(InputError, match=r"data\.split_by is 'colour'"):
        split(Preferences([preference("a", "p")]), by="colour")
    with pytest.raises(InputError, match="no user column"):
        split(Preferences([preference(None, "p"), preference(None, "q")]), by="user")
