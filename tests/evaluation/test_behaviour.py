"""What is said of generated answers."""

from __future__ import annotations

import pytest

from pluralign.evaluation.behaviour import Question, behaviour, is_degenerate, questions_of, verdict
from pluralign.evaluation.drift import Drift
from pluralign.models import Encoded, Generated
from pluralign.models.anchoring import Anchored
from pluralign.preferences import Preference
from pluralign.world import World


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n",
        "...",
        "go go go go",
        "I see. " * 4,
        "well, one two three four one two three four one two three four one two three four",
    ],
)
def test_degenerate(text: str) -> None:
    assert is_degenerate(text)


@pytest.mark.parametrize("text", ["yes", "no no no", "I see. " * 3, "one two three four", "a b a b a c a b a b"])
def test_not_degenerate(text: str) -> None:
    assert not is_degenerate(text)


def row(prompt: str, user: str | None = None) -> Preference:
    return Preference(prompt=prompt, chosen="yes", rejected="no", user=user)


def test_the_world_judges_its_own_prompts() -> None:
    world = World(0)
    item = world.facts[0]
    person = world.users(1)[0]
    style = world.wanted_style(person, item.topic)
    said = Generated(item.say(style), [1], finished=True)
    found = verdict(said, row(item.questions[0], person.id), world)
    assert (found.style, found.right, found.degenerate) == (True, True, False)
    wrong = next(option for option in item.options if option != item.answer)
    found = verdict(Generated(item.say("plain", wrong), [1], True), row(item.questions[0], person.id), world)
    assert (found.style, found.right) == (style == "plain", False)


def test_a_person_whom_the_world_does_not_know_has_no_style_but_facts() -> None:
    world = World(0)
    item = world.facts[0]
    found = verdict(Generated(item.say("plain"), [1], True), row(item.questions[0], "../stranger"), world)
    assert (found.style, found.right) == (None, True)


def test_other_prompts_are_judged_by_form() -> None:
    for world in (World(0), None):
        found = verdict(Generated("Words the world lacks.", [1], False), row("Unknown?"), world)
        assert (found.style, found.right, found.degenerate) == (None, None, False)


def test_shares_leave_out_what_nobody_can_tell() -> None:
    world = World(0)
    item = world.facts[0]
    questions = [Question((1,), row(item.questions[0])), Question((2,), row("Unknown?"))]
    answers = [Generated(item.say("declining"), [1, 2], True), Generated("", [], False)]
    drifts = [Drift(0.0, 0.0, 2, -1.0), Drift(0.0, 0.0, 1, -1.0)]
    found = behaviour(questions, answers, answers, world, base_logps=[-1.0, -1.0], drifts=drifts)
    assert found["person"].items() >= found["base"].items()
    assert found["person"]["right"] is None
    assert (found["person"]["right_of"], found["person"]["style"]) == (0, 0.0)
    assert (found["person"]["degenerate"], found["person"]["finished"], found["person"]["tokens"]) == (0.5, 0.5, 1.0)
    assert found["samples"][0]["prompt"] == item.questions[0]


def test_questions_are_distinct_prompts_fixed_by_the_seed() -> None:
    rows = [Anchored(row(str(number % 20)), Encoded([number % 20], {}), {}) for number in range(40)]
    assert len(questions_of(rows, limit=64, seed=0)) == 20
    few = [question.prompt[0] for question in questions_of(rows, limit=5, seed=0)]
    assert few == sorted(set(few))
    assert few == [question.prompt[0] for question in questions_of(rows, limit=5, seed=0)]
    assert few != [question.prompt[0] for question in questions_of(rows, limit=5, seed=1)]
    assert questions_of(rows, limit=0, seed=0) == []
