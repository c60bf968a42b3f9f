"""What columns mean: TRL's formats, ids, and rows that cannot be used."""

import json

import pytest

from pluralign.config import DataConfig
from pluralign.preferences import load_preferences


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


PAIR = {"prompt": "p", "chosen": "c", "rejected": "r"}


@pytest.fixture
def load(tmp_path):
    def write_and_load(*rows, source="auto"):
        path = tmp_path / "t.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        return load_preferences(DataConfig(path=str(path), source=source))

    return write_and_load


def sides(row):
    return row.prompt, row.chosen, row.rejected


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (PAIR, ("p", "c", "r")),
        # Text with the prompt inside: the space before the difference goes with the responses.
        (
            {"chosen": "The sky is blue.", "rejected": "The sky is green."},
            ("The sky is", " blue.", " green."),
        ),
        ({"chosen": "Q: a\nA: yes", "rejected": "Q: a\nA: no"}, ("Q: a\nA:", " yes", " no")),
        ({"chosen": "12345abc", "rejected": "12345xyz"}, ("12345", "abc", "xyz")),
        # Messages.
        (
            {"prompt": [user("a")], "chosen": [assistant("b")], "rejected": [assistant("c")]},
            ([user("a")], [assistant("b")], [assistant("c")]),
        ),
        (
            {"chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("c")]},
            ([user("a")], [assistant("b")], [assistant("c")]),
        ),
        (
            {
                "chosen": [user("a"), assistant("b"), user("c"), assistant("d")],
                "rejected": [user("a"), assistant("b")],
            },
            ([user("a")], [assistant("b"), user("c"), assistant("d")], [assistant("b")]),
        ),
        # A text prompt beside whole conversations, or beside responses as messages; and the reverse.
        (
            {"prompt": "a", "chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("c")]},
            ([user("a")], [assistant("b")], [assistant("c")]),
        ),
        (
            {"prompt": "a", "chosen": [assistant("b")], "rejected": [assistant("c")]},
            ([user("a")], [assistant("b")], [assistant("c")]),
        ),
        (
            {"prompt": [user("a")], "chosen": "b", "rejected": "c"},
            ([user("a")], [assistant("b")], [assistant("c")]),
        ),
        # Completions.
        ({"prompt": "p", "completion": "c"}, ("p", "c", None)),
        ({"prompt": "p", "chosen": "c"}, ("p", "c", None)),
        ({"prompt": [user("p")], "completion": [assistant("c")]}, ([user("p")], [assistant("c")], None)),
        ({"prompt": [user("p")], "completion": "c"}, ([user("p")], [assistant("c")], None)),
        (
            {"messages": [user("a"), assistant("b"), user("c"), assistant("d")]},
            ([user("a"), assistant("b"), user("c")], [assistant("d")], None),
        ),
    ],
)
def test_formats(load, row, expected):
    preferences = load(row)
    assert not preferences.problems
    assert sides(preferences[0]) == expected


@pytest.mark.parametrize("length", [1, 2, 7, 64, 1000])
def test_implicit_prompt_is_the_longest_common_prefix(load, length):
    shared = ("abcdefg" * length)[:length]
    (row,) = load({"chosen": f"{shared}Xtail", "rejected": f"{shared}Ytail"})
    assert sides(row) == (shared, "Xtail", "Ytail")


def test_base_and_other_columns_are_carried(load):
    row = {
        **PAIR,
        "user": "u",
        "group": "g",
        "base": "b",
        "base_finished": False,
        "ref_chosen_logps": -1.5,
        "weight": 2,
    }
    (found,) = load({**row, "tags": ["x"], "nothing": None})
    assert (found.user, found.group, found.base, found.base_finished) == ("u", "g", "b", False)
    assert found.columns == {"ref_chosen_logps": -1.5, "weight": 2, "tags": ["x"]}
    assert list(found.responses) == ["chosen", "rejected", "base"]


def test_base_responses_stay_as_the_model_said_them(load):
    silent, spoken = load({"prompt": [user("p")], "base": ""}, {"prompt": [user("q")], "base": "b"})
    assert (silent.base, spoken.base) == ("", "b")


def test_rows_with_a_base_response_and_no_pair_are_legal(load):
    preferences = load(
        {**PAIR, "base": "b"},
        {"prompt": "p", "chosen": None, "rejected": None, "base": "b"},
        {"prompt": "p", "base": "b"},
    )
    assert not preferences.problems
    assert [list(row.responses) for row in preferences] == [["chosen", "rejected", "base"], ["base"], ["base"]]


@pytest.mark.parametrize(
    ("row", "column", "found"),
    [
        ({**PAIR, "prompt": ""}, "prompt", "the cell is empty"),
        ({**PAIR, "prompt": " \n"}, "prompt", "the cell is empty"),
        ({**PAIR, "prompt": None}, "prompt", "the row has no prompt"),
        ({**PAIR, "chosen": ""}, "chosen", "the cell is empty"),
        ({**PAIR, "rejected": "\t"}, "rejected", "the cell is empty"),
        ({**PAIR, "rejected": None}, "rejected", "the pair has one side only"),
        ({"prompt": "p", "rejected": "r"}, "chosen", "the pair has one side only"),
        ({"prompt": "p"}, "chosen", "the row has no response"),
        ({**PAIR, "chosen": "r"}, "rejected", "chosen and rejected are equal"),
        ({**PAIR, "chosen": 3}, "chosen", "the cell holds 3, not text"),
        ({**PAIR, "prompt": {"a": 1}}, "prompt", "the cell holds {'a': 1}, not text"),
        ({**PAIR, "rejected": True}, "rejected", "the cell holds True, not text"),
        ({**PAIR, "prompt": []}, "prompt", "the list of messages is empty"),
        ({**PAIR, "prompt": ["a"]}, "prompt", "message 1 is 'a'"),
        ({**PAIR, "prompt": [{"content": "a"}]}, "prompt", "message 1 is {'content': 'a'}"),
        ({**PAIR, "prompt": [user("a"), {"role": "user"}]}, "prompt", "message 2 has no content"),
        ({**PAIR, "prompt": [user(3)]}, "prompt", "message 1 has the content 3, not text"),
        ({**PAIR, "prompt": [user(" ")]}, "prompt", "no turn of the prompt has content"),
        ({**PAIR, "prompt": [user("a")], "chosen": [assistant("")]}, "chosen", "the response is empty"),
        (
            {**PAIR, "prompt": [user("a")], "chosen": [user("b")]},
            "chosen",
            "the response begins with a turn of role 'user'",
        ),
        ({**PAIR, "base": [assistant("b")]}, "base", "the base response is messages, the prompt is text"),
        ({**PAIR, "base_finished": "maybe"}, "base_finished", "the cell holds 'maybe'"),
        ({**PAIR, "chosen": "a\ud800"}, "chosen", "character 2 is the lone surrogate U+D800, which is no text"),
        ({**PAIR, "prompt": [user("é\udfff")]}, "prompt", "character 2 is the lone surrogate U+DFFF, which is no text"),
        ({**PAIR, "user": ""}, "user", "the id is empty"),
        ({**PAIR, "user": None}, "user", "the row names no user, others do"),
        ({**PAIR, "user": 1.5}, "user", "the id is 1.5, not text"),
        ({**PAIR, "user": False}, "user", "the id is False, not text"),
        ({**PAIR, "user": ["a"]}, "user", "the id is ['a'], not text"),
    ],
)
def test_rows_that_cannot_be_used_are_problems_with_their_place(load, row, column, found):
    good = {**PAIR, "user": "ann"}
    preferences = load(good, {"user": "bob", **row}, good)
    (problem,) = preferences.problems
    assert len(preferences) == 2
    assert (problem.place.row, problem.column) == (2, column)
    assert problem.found.startswith(found)
    assert problem.user == (None if column == "user" else "bob")
    assert str(problem).startswith(f"{problem.place.file}, row 2, column {column!r}: {found}")
    assert problem.fix


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"chosen": "abc", "rejected": "xyz"}, "chosen and rejected do not begin alike"),
        ({"chosen": "  ab", "rejected": "  cd"}, "chosen and rejected do not begin alike"),
        ({"chosen": "abc", "rejected": "abcd"}, "it is where the other side begins"),
        (
            {"chosen": [user("a"), assistant("b")], "rejected": [user("x"), assistant("c")]},
            "begin with no turn in common",
        ),
        ({"base": "b"}, "the row has no prompt"),
    ],
)
def test_implicit_prompts_that_are_not_there(load, row, found):
    preferences = load({"chosen": "Q: a", "rejected": "Q: b"}, row)
    assert len(preferences) == 1
    assert found in preferences.problems[0].found


@pytest.mark.parametrize(
    ("messages", "found"),
    [
        ([user("a")], "the last turn is of role 'user', not assistant"),
        ([assistant("a")], "no prompt before its only turn"),
        ("a", "not a list of messages"),
        (None, "not a list of messages"),
    ],
)
def test_conversations_without_a_completion(load, messages, found):
    preferences = load({"messages": [user("a"), assistant("b")]}, {"messages": messages})
    assert found in preferences.problems[0].found


def test_unpaired_preferences(load):
    good, bad = (
        {"prompt": "p", "completion": "good", "label": True},
        {"prompt": "p", "completion": "bad", "label": False},
    )
    preferences = load({**good, "user": "ana"}, {**bad, "user": "ana"})
    assert [(row.chosen, row.rejected, row.columns) for row in preferences] == [("good", None, {}), (None, "bad", {})]


def test_a_verdict_that_is_none(load):
    row = {"prompt": "p", "completion": "good"}
    preferences = load({**row, "label": True}, {**row, "label": "maybe"}, {**row, "label": None})
    assert [(problem.place.row, problem.column, problem.found) for problem in preferences.problems] == [
        (2, "label", "the label is 'maybe'"),
        (3, "label", "the row has no label"),
    ]


@pytest.mark.parametrize(("good", "bad"), [(1, 0), (1.0, 0.0), ("1", "0"), ("true", "false"), (True, False)])
def test_every_way_to_write_a_verdict(load, good, bad):
    rows = [{"prompt": "p", "completion": text, "label": label} for text, label in (("y", good), ("n", bad))]
    assert [(row.chosen, row.rejected) for row in load(*rows)] == [("y", None), (None, "n")]


def test_labels_that_are_no_verdicts_are_carried_through(load):
    for label in ("sports", 2):
        preferences = load(
            {"prompt": "p", "completion": "good", "label": label}, {"prompt": "p", "completion": "x", "label": 1}
        )
        assert (preferences[0].chosen, preferences[0].columns) == ("good", {"label": label})


HOSTILE = ["a/b", "../..", ".", "a.b", "🙂", "x" * 10_000, " ", "_all", "CON", "a\nb", "[red]", "%2e", "nul\0"]


def test_any_id_that_is_not_empty_is_legal(load):
    preferences = load(*({**PAIR, "user": name, "group": name} for name in HOSTILE))
    assert not preferences.problems
    assert list(preferences.by("user")) == HOSTILE
    assert list(preferences.by("group")) == HOSTILE


def test_whole_numbers_as_ids_are_their_decimal_text(load):
    preferences = load({**PAIR, "user": 7}, {**PAIR, "user": "7"}, {**PAIR, "user": -3})
    assert [row.user for row in preferences] == ["7", "7", "-3"]


def test_an_id_that_is_no_text_is_reported_in_printable_form(load):
    preferences = load({**PAIR, "user": "a\ud83d"}, {**PAIR, "user": "b"})
    (problem,) = preferences.problems
    assert problem.user == "a\\ud83d"
    str(problem).encode("utf-8")


def test_messages_are_printable_whatever_the_cell_holds(load):
    preferences = load({**PAIR, "chosen": {"a": "\ud800\x1b[2J" * 50}}, PAIR)
    text = str(preferences.problems[0])
    text.encode("utf-8")
    assert text.isprintable() and len(text) < 400


def test_people_by_seat(load):
    preferences = load({**PAIR, "user": "a", "group": "g"}, {**PAIR, "user": "b", "group": "g"})
    assert {per: list(preferences.by(per)) for per in ("user", "group", "none")} == {
        "user": ["a", "b"],
        "group": ["g"],
        "none": ["_all"],
    }
    assert list(load(PAIR).by("user")) == ["_all"]
