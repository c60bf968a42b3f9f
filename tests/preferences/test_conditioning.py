"""Conditioning: the person in the prompt, rows that cannot be, what is cut, and other people's identities."""

import json
import pickle
import re
import warnings
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pluralign.config import ConditioningConfig, TrainConfig
from pluralign.errors import InputError
from pluralign.models import Encoder
from pluralign.preferences import Place, Preference, Preferences
from pluralign.preferences.conditioning import Conditioner, original_of, overflow_of
from pluralign.preferences.keys import data_hash
from pluralign.resolve import preset, resolve

COMPO = "<|domain|>\n{group}\n<|user|>\n{prompt}\n<|assistant|>\n"
MARKERS = ["<|user|>", "<|assistant|>", "<eos>", "</s>", "[INST]", "Human:"]


def row(prompt="Why?", *, number=1, user=None, group=None, **columns):
    fields = {"chosen": "yes", "rejected": "no", "place": Place("t.jsonl", number)}
    return Preference(prompt, user=user, group=group, columns=columns, **fields)


def turns(*contents, roles=("user", "assistant")):
    return [{"role": roles[at % 2], "content": content} for at, content in enumerate(contents)]


def conditioned(template="", system="", rows=(), *, absent=None, markers=MARKERS, **arguments):
    conditioner = Conditioner(ConditioningConfig(template, system, absent), markers)
    return conditioner.condition(Preferences(list(rows), name="t.jsonl"), **arguments)


def prompts(*arguments, **keywords):
    return [one.prompt for one in conditioned(*arguments, **keywords)]


# -- templates and rows -------------------------------------------------------------------------------------------


def test_text_becomes_the_template_with_its_fields():
    rows = [
        row(user="ann", group="law", age=34, note="{prompt}"),
        row("{group}?", user="b", group="g", age=1.5, note="x"),
    ]
    made = prompts("{{{user}}} {group}, {age}: {note} | {prompt}", rows=rows)
    assert made == ["{ann} law, 34: {prompt} | Why?", "{b} g, 1.5: x | {group}?"]


def test_messages_get_a_system_message_and_keep_their_own_below_it():
    own = {"role": "system", "content": "Be brief.", "name": "s"}
    parts = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    given = [
        turns("Hi"),
        [own, *turns("Hi")],
        [parts, *turns("Hi")],
        [{"role": "system", "content": None}, *turns("Hi")],
    ]
    before = json.dumps(given)
    made = prompts("", "You serve {group}.\n", [row(prompt, group="law") for prompt in given])
    ours = "You serve law."
    assert [prompt[0]["content"] for prompt in made] == [
        ours,
        f"{ours}\n\nBe brief.",
        [{"type": "text", "text": f"{ours}\n\n"}, {"type": "text", "text": "Be brief."}],
        ours,
    ]
    assert [[message["role"] for message in prompt] for prompt in made] == [["system", "user"]] * 4
    assert made[1][0]["name"] == "s"
    assert json.dumps(given) == before


def test_a_conditioned_row_is_the_row_but_for_prompt_and_base_response():
    original = row(user="ann", group="law", weight=2.0)
    original.base, original.base_finished = "what the base said to another prompt", False
    (made,) = conditioned(COMPO, rows=[original])
    assert (made.chosen, made.rejected, made.user, made.group) == ("yes", "no", "ann", "law")
    assert (made.columns, made.place, made.base, made.base_finished) == ({"weight": 2.0}, original.place, None, True)
    assert original_of(made) is original and original_of(original) is original
    assert original.prompt == "Why?" and original.base is not None
    assert pickle.loads(pickle.dumps(made)) == made
    # What is conditioned already is conditioned anew, not twice.
    assert prompts(COMPO, rows=[made]) == [made.prompt]


def test_without_templates_rows_are_left_as_they_are():
    table = Preferences([row()])
    conditioner = Conditioner(ConditioningConfig())
    assert not conditioner.active and conditioner.condition(table) is table
    assert conditioner.under_others(table.rows, {}, seed=0) == {}
    conditioner.check(table)
    with pytest.raises(InputError, match=r"conditioning\.absent is set"):
        Conditioner(ConditioningConfig(absent="x"))


@pytest.mark.parametrize(
    ("template", "system", "named"),
    [
        ("{user.__class__}{prompt}", "", r"conditioning\.template: \{user\.__class__\} is no plain field"),
        ("{a[0]}{prompt}", "", r"\{a\[0\]\} is no plain field"),
        ("{group:>10}{prompt}", "", r"\{group:>10\} is no plain field"),
        ("{group!r}{prompt}", "", r"\{group!r\} is no plain field"),
        ("{}{prompt}", "", r"\{\} is no plain field"),
        ("{ group}{prompt}", "", r"is no plain field"),
        ("", "{group", r"conditioning\.system: the template is broken"),
        ("a } b {prompt}", "", r"conditioning\.template: the template is broken"),
        ("{group}", "", r"conditioning\.template: the template does not say where the prompt goes"),
        ("", "{group} {prompt}", r"conditioning\.system: a system message has no \{prompt\}"),
    ],
)
def test_templates_that_cannot_be_used_name_their_key(template, system, named):
    with pytest.raises(InputError, match=named):
        Conditioner(ConditioningConfig(template, system))


def test_a_column_that_no_row_has_is_an_error_before_any_row_is_conditioned():
    table = Preferences([row(group="law", tone="dry"), row(user="ann")], name="t.jsonl")
    named = (
        r"t\.jsonl: conditioning\.template names \{tome\}, and no row has such a column\. Columns are: group, tone, "
    )
    with pytest.raises(InputError, match=named):
        Conditioner(ConditioningConfig("{tome}{prompt}", absent="?")).check(table)
    Conditioner(ConditioningConfig("{tone}{user}{group}{prompt}", "{tome}")).check(table)
    with pytest.raises(InputError, match=r"\{group\}"):
        Conditioner(ConditioningConfig(COMPO)).check(Preferences([row()]))
    with pytest.raises(
        InputError, match=r"the prompt is text, and only conditioning\.system is set\. Set conditioning\.temp"
    ):
        Conditioner(ConditioningConfig(system="{group}")).check(table)
    Conditioner(ConditioningConfig(COMPO)).check(Preferences([]))


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (None, "the row has no value, and conditioning.template shows it"),
        ("", "the row has no value"),
        (" \n", "the row has no value"),
        (float("nan"), "the row has no value"),
        (True, "the cell holds True, not text or a number"),
        (["a"], "the cell holds ['a'], not text or a number"),
        ("a\ud800", "lone surrogate"),
    ],
)
def test_a_row_without_a_usable_value_is_left_out_with_its_place(value, found):
    table = conditioned("{tone}{prompt}", rows=[row(tone="dry"), row(number=7, user="ben", tone=value)])
    assert len(table) == 1
    (problem,) = table.problems
    assert str(problem).startswith("t.jsonl, row 7, column 'tone': ") and found in str(problem)
    assert problem.user == "ben"


def test_what_is_absent_has_a_stand_in_where_one_is_given():
    rows = [row(tone="dry"), row(tone=""), row()]
    assert prompts("[{tone}] {prompt}", rows=rows, absent="<eos>") == ["[dry] Why?", "[<eos>] Why?", "[<eos>] Why?"]
    # Nothing at all to say is no system message.
    assert prompts("", "{tone}\n{prompt_info}", [row(turns("Hi"))], absent="") == [turns("Hi")]
    assert prompts("", "{tone}\n{info}", [row(turns("Hi"), info="a")], absent="")[0][0]["content"] == "a"


def test_rows_of_the_kind_without_a_template_are_left_out_with_their_place():
    table = conditioned("", "{group}", [row(turns("Hi"), group="g"), row(number=3, group="g")])
    assert len(table) == 1
    assert str(table.problems[0]).startswith("t.jsonl, row 3, column 'prompt': the prompt is text, and only")


def test_earlier_problems_and_ties_stay():
    table = Preferences([row()], problems=[], ties={"ann": 2}, name="n")
    made = Conditioner(ConditioningConfig(COMPO)).condition(table)
    assert (made.ties, made.name, len(made.problems), len(table.problems)) == ({"ann": 2}, "n", 1, 0)
    assert data_hash(table) == data_hash(Preferences([row()], ties={"ann": 2}))


@pytest.mark.parametrize("method", ["compo", "metaalign"])
def test_pages_of_methods_write_their_presets_out(method):
    page = Path(__file__).parents[2] / "docs" / "methods" / f"{method}.md"
    (written,) = re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert yaml.safe_load(written) == preset(method)


def test_the_code_of_the_page_runs():
    page = (Path(__file__).parents[2] / "docs" / "conditioning.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = {}
    exec(code, names)
    assert names["row"].prompt.startswith("For a reader of 9")


@pytest.mark.parametrize("method", ["compo", "metaalign"])
@pytest.mark.parametrize("prompt", ["Why?", turns("Why?")])
def test_presets_condition_text_and_messages(method, prompt):
    config = resolve(TrainConfig, {"method": method})
    one = row(prompt, group="law", user_info="I keep bees.", system_info="Be safe.")
    (made,) = Conditioner(config.conditioning).condition(Preferences([one]))
    told = {"compo": ["law"], "metaalign": ["Be safe.", "I keep bees."]}[method]
    assert all(word in str(made.prompt) for word in (*told, "Why?"))
    assert (config.parameters.per, config.loss.type, config.loss.beta) == ("none", "sigmoid", 0.1)


# -- room ---------------------------------------------------------------------------------------------------------


def over(limit):
    """A measure in words: how many the prompt has too many, a message's role among them."""

    def overflow(rows):
        texts = [
            one.prompt if isinstance(one.prompt, str) else " ".join(f"r {m['content']}" for m in one.prompt)
            for one in rows
        ]
        return [max(len(text.split()) - limit, 0) for text in texts]

    return overflow


def test_a_long_prompt_gives_way_and_the_person_stays():
    long = " ".join(f"w{number}" for number in range(1000))
    rows = [row(long, group="law"), row("short", group="law")]
    with pytest.warns(
        UserWarning, match="of 2 rows, 1 had a prompt cut on the left, behind what stands for the person"
    ):
        made = prompts("As {group}: {prompt} So:", rows=rows, overflow=over(50))
    assert made[1] == "As law: short So:"
    assert made[0].startswith("As law: ") and made[0].endswith("w998 w999 So:")
    assert 45 <= len(made[0].split()) <= 50


def test_of_messages_early_turns_go_first_and_a_question_stands_in_front():
    prompt = [{"role": "system", "content": "Own."}, *turns("q " * 40, "a " * 40, "p " * 40, "b " * 4, "last one")]
    with pytest.warns(UserWarning, match="1 had a prompt cut"):
        (made,) = prompts("", "For {group}.", [row(prompt, group="law")], overflow=over(30))
    assert made[0] == {"role": "system", "content": "For law.\n\nOwn."}
    assert [message["role"] for message in made[1:]] == ["user", "assistant", "user"]
    assert set(made[1]["content"].split()) == {"p"} and made[-1]["content"] == "last one"
    assert over(30)([row(made)]) == [0]
    with pytest.warns(UserWarning, match="1 had a prompt cut"):
        (made,) = prompts("", "For {group}.", [row(prompt, group="law")], overflow=over(9))
    assert made[1:] == [{"role": "user", "content": "last one"}]


def test_a_value_that_leaves_the_prompt_no_room_is_a_problem_of_its_row_and_column():
    rows = [row(group="law", info="w " * 60, number=4, user="ann"), row(group="law", info="brief")]
    table = conditioned("{group} {info} {prompt}", rows=rows, overflow=over(50))
    assert [one.prompt for one in table] == ["law brief Why?"]
    (problem,) = table.problems
    assert str(problem).startswith(
        "t.jsonl, row 4, column 'info': what stands for the person leaves the prompt no room"
    )
    assert "120 characters" in str(problem) and problem.user == "ann"


def test_with_the_encoder_what_stands_for_the_person_is_never_cut(byte_tokenizer):
    encoder = Encoder(byte_tokenizer, max_prompt_length=64, max_response_length=8, context_length=72)
    overflow = overflow_of(encoder, ("chosen", "rejected"))

    rows = [row(prompt, group="the law") for prompt in ("x" * length for length in (1, 30, 40, 500))]
    rows += [row(turns("x" * 300, "y", "z" * 20), group="the law"), row(group="l" * 100)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        table = conditioned("[{group}] {prompt}", "{group}", rows, overflow=overflow)
    assert "of 6 rows, 2 had a prompt cut" in str(caught[0].message)
    assert overflow(table.rows) == [0] * 5
    assert all("the law" in byte_tokenizer.decode(encoder.prompt_ids(one.prompt)) for one in table)
    assert len(encoder.prompt_ids(table[3].prompt)) > 55
    assert [problem.column for problem in table.problems] == ["group"]


def test_a_row_that_cannot_be_measured_is_left_to_whoever_turns_it_into_tokens():
    def overflow(rows):
        if any(one.prompt.startswith("odd") for one in rows):
            raise InputError("the chat template refuses the messages")
        return [0] * len(rows)

    assert prompts("{group} {prompt}", rows=[row(group="odd"), row(group="g")], overflow=overflow) == [
        "odd Why?",
        "g Why?",
    ]


# -- identities ---------------------------------------------------------------------------------------------------


def listening(rows, *, absent=None, seed=0, template=COMPO, system="{group}", **arguments):
    conditioner = Conditioner(ConditioningConfig(template, system, absent))
    table = conditioner.condition(Preferences(list(rows)))
    return table, conditioner.under_others(table.rows, conditioner.identities(rows), seed=seed, **arguments)


def told(one):
    return one.prompt.split("\n")[1]


@given(st.lists(st.sampled_from("abcd"), min_size=2, max_size=12), st.integers(0, 5))
def test_another_identity_is_never_the_rows_own_and_follows_seed_and_content(groups, seed):
    rows = [row(f"q{number}", group=group) for number, group in enumerate(groups)]
    table, found = listening(rows, seed=seed)
    if len(set(groups)) == 1:
        assert found.keys() == {"missing"}
        return
    drawn = [told(one) for one in found["random"]]
    assert all(other != group and other in groups for other, group in zip(drawn, groups, strict=True))
    assert [one.group for one in found["random"]] == groups
    assert [one.chosen for one in found["random"]] == [one.chosen for one in table]
    _, backwards = listening(rows[::-1], seed=seed)
    assert [told(one) for one in backwards["random"]] == drawn[::-1]


def test_other_identities_are_drawn_with_like_chances_and_another_seed_draws_others():
    rows = [row(f"q{number}", group="abcd"[number % 4]) for number in range(400)]
    _, found = listening(rows)
    counts = [sum(told(one) == other for one in found["random"][::4]) for other in "bcd"]
    assert sum(counts) == 100 and min(counts) > 15
    assert [told(one) for one in listening(rows, seed=1)[1]["random"]] != [told(one) for one in found["random"]]


def test_no_identity_is_the_bare_prompt_or_what_stands_for_an_absent_value():
    rows = [row("one", group="a"), row(turns("two"), group="b")]
    assert [one.prompt for one in listening(rows)[1]["missing"]] == ["one", turns("two")]
    _, found = listening(rows, absent="anyone")
    assert [told(found["missing"][0]), found["missing"][1].prompt[0]["content"]] == ["anyone", "anyone"]


def test_an_identity_is_all_of_the_values_that_are_shown():
    rows = [row("q", user="u", system_info=s, user_info=i) for s, i in (("s", "a"), ("s", "b"), ("t", "a"))]
    _, found = listening(rows, template="{system_info}/{user_info}/{prompt}", system="")
    shown = {one.prompt for one in found["random"]}
    assert shown <= {"s/a/q", "s/b/q", "t/a/q"}
    assert all(
        one.prompt != f"{r.columns['system_info']}/{r.columns['user_info']}/q"
        for one, r in zip(found["random"], rows, strict=True)
    )


def test_a_longer_identity_makes_the_prompt_give_way():
    rows = [row("w " * 40, group="a"), row("w " * 40, group="b c d e f g h i j k")]
    conditioner = Conditioner(ConditioningConfig("{group} {prompt}"))
    found = conditioner.under_others(rows, conditioner.identities(rows), seed=0, overflow=over(45))
    assert found["random"][0].prompt.startswith("b c d") and over(45)(found["random"]) == [0, 0]


def test_bare_prompts_with_given_values():
    conditioner = Conditioner(ConditioningConfig("{group}, {tone}: {prompt}", "{group}"), MARKERS)
    assert conditioner.needed([row()]) == ["group", "tone"] and conditioner.needed([row(turns("Hi"))]) == ["group"]
    (made,) = conditioner.prompts([row(tone="own")], {"group": "law<eos>", "tone": "dry"})
    assert made.prompt == "law< eos>, dry: Why?"
    with pytest.raises(InputError, match=r"t\.jsonl, row 1, column 'tone': the row has no value"):
        conditioner.prompts([row(tone="own")], {"group": "law", "tone": ""})
