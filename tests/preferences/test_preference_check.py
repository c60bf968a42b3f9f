"""The check says what is in a table, and what is wrong with it."""

import io
import json

from rich.console import Console

from pluralign.preferences import Preference, Preferences, Problem, check_preferences
from pluralign.preferences.schema import Place


def preference(user, prompt, chosen, rejected, **fields):
    return Preference(prompt, chosen, rejected, user=user, **fields)


def table():
    rows = [
        preference("a", "p", "x", "yy", group="g"),
        preference("a", "p", "yy", "x", group="g"),
        preference("a", "p", "x", "yy", group="g"),
        preference("b", "p", "x", "yy", group="g"),
        preference("b", "qqq", "x", "z", group="h"),
        preference("c", "qqq", "x", "z", group="h"),
        preference("c", "qqq", None, None, base="base", group="h"),
    ]
    problems = [
        Problem(Place("t.jsonl", 9), "rejected", "chosen and rejected are equal", "Leave it out.", "[red]d"),
        Problem(Place("t.jsonl", 10), None, "broken JSON"),
    ]
    return Preferences(rows, problems, {"a": 2}, "t.jsonl")


def test_counts():
    report = check_preferences(table())
    assert (report.rows, report.prompts) == (7, 2)
    assert report.kinds == {"pairs": 6, "completions": 0, "bad_completions": 0, "anchor_only": 1, "messages": 0}
    assert report.users == {"a": 3, "b": 2, "c": 2}
    assert report.groups == {"g": 4, "h": 3}
    assert (report.rows_per_user.min, report.rows_per_user.median, report.rows_per_user.max) == (2, 2, 3)
    assert report.unusable == ["[red]d"]
    assert report.duplicates == 1
    assert report.equal_sides == 1
    assert report.contradictions == {"a": 1}
    # a and b judged one pair, b and c another; only a's two verdicts differ from b's.
    assert (report.shared_pairs, report.disputed_pairs) == (2, 1)
    assert report.unit == "characters"
    assert (report.lengths["prompt"].min, report.lengths["prompt"].max) == (1, 3)
    assert (report.lengths["base"].min, report.lengths["base"].max) == (4, 4)


def test_the_same_comparison_without_users():
    rows = [preference(None, "p", "x", "y"), preference(None, "p", "y", "x")]
    report = check_preferences(Preferences(rows))
    assert report.users == {}
    assert report.contradictions == {"_all": 1}
    assert report.shared_pairs == 0


def test_messages_are_compared_by_content():
    def conversation(chosen, rejected):
        turns = ([{"role": "assistant", "content": text}] for text in (chosen, rejected))
        return Preference([{"role": "user", "content": "p"}], *turns, user="a")

    report = check_preferences(Preferences([conversation("x", "yyy"), conversation("yyy", "x")]))
    assert report.contradictions == {"a": 1}
    assert report.kinds["messages"] == 2
    assert report.lengths["chosen"].max == 3


def test_lengths_in_tokens():
    seen = []

    def tokenizer(texts, add_special_tokens):
        assert add_special_tokens is False
        seen.extend(texts)
        return {"input_ids": [text.split() for text in texts]}

    rows = [preference("a", "one two", "three", "four five six"), preference("b", "one two", "three", "seven")]
    report = check_preferences(Preferences(rows), tokenizer)
    assert report.unit == "tokens"
    assert report.lengths["rejected"].max == 3 and report.lengths["rejected"].median == 2
    assert len(seen) == len(set(seen)), "a text was tokenized twice"


def test_report_as_json_names_every_problem():
    found = json.loads(json.dumps(check_preferences(table()).as_dict()))
    assert found["schema_version"] == 1
    assert found["lengths"]["chosen"] == {"min": 1, "median": 1.0, "max": 2}
    assert found["problems"][0] == {
        "file": "t.jsonl",
        "row": 9,
        "column": "rejected",
        "user": "[red]d",
        "found": "chosen and rejected are equal",
        "fix": "Leave it out.",
    }
    assert len(found["problems"]) == 2


def shown(report, longest=20):
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(report.table(longest))
    return console.export_text()


def test_table_shows_ids_and_problems_as_they_are():
    text = shown(check_preferences(table()))
    assert "t.jsonl, row 9, column 'rejected': chosen and rejected are equal. Leave it out. (user [red]d)" in text
    assert "t.jsonl, row 10: broken JSON" in text
    assert "rows that cannot be used" in text


def test_table_is_bounded_and_safe_to_print():
    rows = [preference(f"user{number}", "p", "x", "y") for number in range(50)]
    hostile = preference("\x1b[2J" + "x" * 10_000, "p", "x", "y")
    text = shown(check_preferences(Preferences([hostile, *rows])), longest=3)
    assert "... and 48 more" in text
    assert "\x1b[2J" not in text and len(text) < 5_000


def test_an_empty_table_has_a_report():
    report = check_preferences(Preferences([], name="nothing"))
    assert (report.rows, report.rows_per_user.max, report.lengths) == (0, 0, {})
    assert "nothing" in shown(report)
