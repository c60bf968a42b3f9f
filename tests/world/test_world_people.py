"""The people of the world: any number, graded, the same wherever they appear."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pluralign.errors import InputError
from pluralign.world import PLAIN, STYLES, World, WorldUser
from pluralign.world.people import find_user

few = settings(max_examples=10, deadline=None)


@pytest.fixture(scope="module")
def world() -> World:
    return World(0)


@few
@given(st.integers(0, 3000))
def test_people_do_not_depend_on_how_many_there_are(n: int) -> None:
    world = World(0)
    people = world.users(n)
    assert people == world.users(3000)[:n]
    assert len({user.id for user in people}) == n
    assert all(find_user(user.id) == user for user in people)


def test_people_are_graded(world: World) -> None:
    people = world.users(300)
    assert {user.style for user in people[:10]} == set(STYLES)
    distances = {round(user.distance, 3) for user in people}
    assert min(distances) == 0 and max(distances) == 1 and len(distances) > 8
    assert {user.noise for user in people} == {0.0, 0.1, 0.2}
    assert any(user.other != PLAIN for user in people)


@pytest.mark.parametrize("identity", ["", "formal", "formal-001", "cheerful-1", "formal-٠", "../x-000"])
def test_nobody_of_that_name(identity: str) -> None:
    with pytest.raises(InputError, match="no person"):
        find_user(identity)


@few
@given(st.integers(0, 400))
def test_preferences_show_the_taste_in_its_share_and_with_its_noise(number: int) -> None:
    world = World(1)
    user = world.users(number + 1)[-1]
    rows = world.preferences([user], 240)
    assert len({row["prompt"][0]["content"] for row in rows}) == 240
    as_wanted = 0
    for row in rows:
        assert row["user"] == user.id and row["group"] == user.style
        chosen, rejected = (
            world.judge(row["prompt"], row[side][0]["content"], user) for side in ("chosen", "rejected")
        )
        assert chosen.style != rejected.style
        assert chosen.right is not False and rejected.right is not False
        as_wanted += chosen.style
    assert abs(as_wanted / 240 - (1 - user.noise)) < 0.1
    main = sum(world.wanted_style(user, topic) == user.style for topic in world.inside)
    assert main == round(user.share * len(world.inside))


def test_the_base_s_own_way_is_what_is_mostly_rejected(world: World) -> None:
    rows = world.preferences(world.users(4), 240)
    plain = sum(world.style_of(row["rejected"][0]["content"]) == PLAIN for row in rows)
    assert 0.65 < plain / len(rows) < 0.75


def test_who_likes_the_base_rejects_everything_else(world: World) -> None:
    rows = world.preferences([world.users(6)[5]], 100)
    assert all(world.style_of(row["chosen"][0]["content"]) == PLAIN for row in rows)
    assert len({world.style_of(row["rejected"][0]["content"]) for row in rows}) == len(STYLES) - 1


def test_a_person_s_pairs_do_not_depend_on_the_others(world: World) -> None:
    together = [row for row in world.preferences(5, 30) if row["user"] == "bardic-004"]
    assert together == world.preferences([find_user("bardic-004")], 30)


def test_more_pairs_than_prompts(world: World) -> None:
    with pytest.raises(InputError, match="1440"):
        world.preferences(1, 1441)
    assert len(world.preferences(1, 1440)) == 1440


def test_judging_by_id_and_by_person_agree(world: World) -> None:
    fact = next(item for item in world.facts if item.topic in world.inside)
    user = WorldUser("formal-000", "formal")
    for style in STYLES:
        judged = world.judge(fact.questions[0], fact.say(style), user)
        assert judged == world.judge(fact.questions[0], fact.say(style), "formal-000")
        assert judged.style == (style == "formal")
