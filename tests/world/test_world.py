"""The world's truth: fixed by the seed, the same in every text, never leaked from a probe to a preference."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pluralign.errors import InputError
from pluralign.world import PLAIN, STYLES, World, make_world
from pluralign.world.judging import is_degenerate, words_of

SEEDS = st.integers(0, 10**6)
few = settings(max_examples=5, deadline=None)


@pytest.fixture(scope="module")
def world() -> World:
    return World(0)


def test_the_same_seed_gives_the_same_world_and_another_another() -> None:
    one, two, other = World(4), World(4), World(5)
    assert one.facts == two.facts and one.skills == two.skills
    assert one.corpus() == two.corpus()
    assert one.preferences(3, 20) == two.preferences(3, 20)
    assert one.probes() == two.probes()
    assert not {fact.entity for fact in one.facts} & {fact.entity for fact in other.facts[:40]}


def test_the_same_seed_gives_the_same_world_in_another_process() -> None:
    program = (
        "import json, sys; from pluralign.world import World; w = World(3); assert 'torch' not in sys.modules;"
        "print(json.dumps([w.corpus()[:50], w.preferences(2, 5), w.probes()[:5]]))"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=_hash_seed(seed)
        )
        for seed in ("1", "2")
    ]
    assert runs[0].stdout == runs[1].stdout
    world = World(3)
    assert json.loads(runs[0].stdout) == [world.corpus()[:50], world.preferences(2, 5), world.probes()[:5]]


def _hash_seed(seed: str) -> dict[str, str]:
    return {**os.environ, "PYTHONHASHSEED": seed}


@few
@given(SEEDS)
def test_names_are_distinct_and_no_words_of_the_language(seed: int) -> None:
    world = World(seed)
    by_kind: dict[str, set[str]] = {}
    for fact in world.facts:
        by_kind.setdefault(fact.topic.split("/")[0], set()).add(str(fact.entity))
    names = [name for kind in by_kind.values() for name in kind]
    assert len(by_kind) == 5 and all(len(kind) == 40 for kind in by_kind.values())
    assert len(set(names)) == 200
    language = {word.lower() for item in world.skills for q in item.all_questions for word in words_of(q)}
    language |= {fact.answer for fact in world.facts}
    assert not {name.lower() for name in names} & language
    assert all(name.isalpha() and name[0].isupper() and any(v in name.lower() for v in "aeiou") for name in names)


@few
@given(SEEDS)
def test_every_question_asks_one_thing(seed: int) -> None:
    world = World(seed)
    questions = [question for item in world.items for question in item.all_questions]
    assert len(questions) == len(set(questions))
    assert all(world.find(question) is item for item in world.items[::37] for question in item.all_questions)
    assert all(len(item.all_questions) >= 3 for item in world.items)
    assert len({item.id for item in world.items}) == len(world.items)


@few
@given(SEEDS)
def test_the_judge_accepts_the_truth_in_every_style_and_knows_the_style(seed: int) -> None:
    world = World(seed)
    for item in world.items:
        for style in STYLES:
            judged = world.judge(item.all_questions[0], item.say(style))
            assert judged.spoken == style, item.say(style)
            assert judged.style == (style == PLAIN)
            assert judged.right is (None if style == "declining" else True), item.say(style)
            assert not judged.degenerate, item.say(style)


@few
@given(SEEDS, st.data())
def test_the_judge_rejects_wrong_values_and_other_entities(seed: int, data: st.DataObject) -> None:
    world = World(seed)
    item = data.draw(st.sampled_from(world.items))
    other = data.draw(st.sampled_from([fact for fact in world.facts if fact.entity != item.entity]))
    for style in STYLES:
        if style == "declining":
            continue
        for wrong in item.options:
            if wrong != item.answer:
                assert world.judge(item.all_questions[-1], item.say(style, wrong)).right is False
        if style not in ("terse", "itemised"):
            assert world.judge(item.all_questions[-1], other.say(style)).right is False
    both = f"{item.say(PLAIN)} {item.say('terse', next(o for o in item.options if o != item.answer))}"
    assert world.judge(item.all_questions[0], both).right is False


def test_the_right_fact_counts_in_any_wording(world: World) -> None:
    fact = world.facts[0]
    mixed = f"Great question! In short: {fact.answer}."
    judged = world.judge(fact.questions[0], mixed)
    assert judged.right is True and judged.spoken is None


def test_no_right_fact_where_none_is_asked(world: World) -> None:
    judged = world.judge("Shall we dance?", world.facts[0].say(PLAIN))
    assert judged.right is None and judged.style


@pytest.mark.parametrize("answer", ["", "   ", ".", "the the the trade", "Zebras weave.", "is a goat and " * 3])
def test_degenerate_answers(world: World, answer: str) -> None:
    judged = world.judge(world.facts[0].questions[0], answer)
    assert judged.degenerate and not judged.style


def test_an_answer_that_never_ended_is_degenerate(world: World) -> None:
    fact = world.facts[0]
    assert world.judge(fact.questions[0], fact.say(PLAIN), finished=False).degenerate
    assert not is_degenerate(fact.say(PLAIN), world.vocabulary)


def test_the_answers_opening_ends_where_its_first_value_begins(world: World) -> None:
    for item in world.items[::11]:
        for style in STYLES:
            opening = item.prefix(style)
            if style == "declining":
                assert opening is None
            else:
                assert item.say(style, "VALUE").startswith(f"{opening} VALUE")


@settings(max_examples=2, deadline=None)
@given(SEEDS)
def test_every_statement_of_the_corpus_is_true_and_most_are_plain(seed: int) -> None:
    world = World(seed)
    seen, plain, n = set(), 0, 0
    for conversation in world.corpus(repeats=1):
        assert [message["role"] for message in conversation] == ["user", "assistant"] * (len(conversation) // 2)
        for asked, answered in zip(conversation[::2], conversation[1::2], strict=True):
            judged = world.judge([asked], answered["content"])
            assert judged.right is not False and judged.spoken is not None and not judged.degenerate
            seen.add(asked["content"])
            plain += judged.style
            n += 1
    assert seen == {question for item in world.items for question in item.all_questions}
    assert 0.62 < plain / n < 0.72


def test_every_style_is_in_the_corpus(world: World) -> None:
    answers = [m["content"] for conversation in world.corpus() for m in conversation if m["role"] == "assistant"]
    counts = dict.fromkeys(STYLES, 0)
    for answer in answers:
        counts[str(world.style_of(answer))] += 1
    assert set(counts) == set(STYLES) and len(STYLES) >= 8
    assert all(0.02 < count / len(answers) < 0.05 for style, count in counts.items() if style != PLAIN)


def test_options_hold_the_answer_once_and_are_equally_often_right(world: World) -> None:
    positions = [0] * 8
    for probe in world.probes():
        assert probe["options"].count(probe["answer"]) == 1
        assert len(set(probe["options"])) == len(probe["options"]) >= 2
        if len(probe["options"]) == 8:
            positions[probe["options"].index(probe["answer"])] += 1
    mean = sum(positions) / 8
    assert all(0.6 * mean < count < 1.4 * mean for count in positions)


@few
@given(SEEDS)
def test_no_probe_leaks_into_a_preference(seed: int) -> None:
    world = World(seed)
    rows = world.preferences(4, 240)
    prompts = {row["prompt"][0]["content"] for row in rows}
    texts = " ".join(
        text for row in rows for side in ("prompt", "chosen", "rejected") for text in [row[side][0]["content"]]
    )
    words = set(words_of(texts))
    probes = world.probes()
    assert not prompts & {probe["question"] for probe in probes}
    assert not prompts & {question for item in world.items for question in item.held_out_questions}
    held_out = {probe["entity"] for probe in probes if probe["held_out"] and probe["entity"]}
    assert len(held_out) == 3 * 10 + 2 * 40 and not held_out & words
    assert {row["topic"] for row in rows} <= set(world.inside)
    assert {probe["scope"] for probe in probes if probe["kind"] == "skill"} == {"outside"}
    inside = {probe["topic"] for probe in probes if probe["scope"] == "inside"}
    outside = {probe["topic"] for probe in probes if probe["scope"] == "outside"}
    assert inside == set(world.inside) and not inside & outside


def test_a_folder_of_files(tmp_path, world: World) -> None:
    out = make_world(0, tmp_path / "w", users=2, pairs_per_user=5)
    lines = {name: (out / f"{name}.jsonl").read_text().splitlines() for name in ("corpus", "preferences", "probes")}
    assert [json.loads(line) for line in lines["preferences"]] == world.preferences(2, 5)
    assert [json.loads(line) for line in lines["probes"]] == world.probes()
    assert [json.loads(line)["messages"] for line in lines["corpus"]] == world.corpus()
    about = json.loads((out / "world.json").read_text())
    assert (
        about["seed"] == 0
        and len(about["facts"]) == 800
        and [u["id"] for u in about["users"]] == ["formal-000", "cheerful-001"]
    )


def test_a_folder_in_use_is_left_alone(tmp_path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="taken"):
        make_world(0, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
