"""The table on a terminal of 100 columns."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from pluralign.evaluation.results import Evaluation, by_group, summarize


def result(accuracy: float | None, kept: float | None = 0.9) -> dict[str, Any]:
    behaviour = {"style": 0.5, "right": 0.75, "degenerate": 0.0}
    return {
        "adapter": "x",
        "group": "all",
        "pairs": {"accuracy": accuracy, "margin": -0.001},
        "cross": {"others_accuracy": 0.25, "people": {}},
        "base_responses": {"kl_per_token": 0.125},
        "retention": {"kept": kept, "kept_own": kept},
        "behaviour": {"person": behaviour, "base": behaviour},
    }


def printed(people: dict[str, Any], skipped: dict[str, str] | None = None, *, width: int = 100) -> str:
    skipped = skipped or {}
    evaluation = Evaluation({}, people, by_group(people), summarize(people, skipped), skipped)
    console = Console(file=io.StringIO(), width=width)
    console.print(evaluation.table())
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_worst_first_within_100_columns() -> None:
    text = printed({"the best person of them all": result(1.0), "worst": result(0.5), "less": result(1.0, 0.1)})
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert "…" not in text
    names = [line.split()[0] for line in lines if line.strip()]
    assert names.index("worst") < names.index("less") < names.index("the")
    assert "0.125" in text
    assert "-0.0" not in text
    assert "mean of 3" in text


def test_on_80_columns_names_give_way_and_numbers_do_not() -> None:
    person = result(1.0) | {"pairs": {"accuracy": 1.0, "margin": -12.345}}
    text = printed({"the best person of them all": person}, width=80)
    assert max(map(len, text.splitlines())) <= 80
    (line,) = [line for line in text.splitlines() if "the best" in line]
    assert line.split()[-9:] == ["1.00", "-12.3", "0.25", "0.90", "0.90", "0.125", "0.50", "0.75", "0.00"]


def test_many_people_are_cut_to_the_worst_twenty() -> None:
    text = printed({f"p{number:04d}": result(number / 1000) for number in range(1000)})
    assert "p0019" in text
    assert "p0020" not in text
    assert "980 more people" in text
    assert len(text.splitlines()) < 40


def test_one_person_needs_no_mean_and_undefined_columns_are_left_out() -> None:
    person = result(None, None) | {"behaviour": None}
    text = printed({"ann": person})
    assert "mean" not in text
    assert "acc." not in text
    assert "style" not in text
    assert "0.125" in text


def test_hostile_names_are_shown_on_one_line() -> None:
    names = ["[bold]x[/bold]", "line\nbreak", "half \ud800", "y" * 5000, "\x1b[31mred"]
    text = printed({name: result(0.5) for name in names}, {"[red]z": "because [b]"})
    assert "[bold]x[/bold]" in text
    assert "line\\nbreak" in text
    assert "half \\ud800" in text
    assert "\x1b" not in text
    assert "skipped [red]z: because [b]" in text
    assert max(map(len, text.splitlines())) <= 100


def test_answers_as_texts_stand_below_where_there_are_any() -> None:
    people = {name: result(0.5) for name in ("ann", "ben")}
    assert "answers as texts" not in printed(people)
    for name, perplexity in (("ann", 12.5), ("ben", 37.5)):
        texts = {"tokens": 10, "distinct_1": 0.5, "repetition": 0.25, "base_perplexity": perplexity}
        people[name] = people[name] | {"behaviour": {"person": texts, "base": texts | {"base_perplexity": 2.5}}}
    lines = printed(people, width=80).partition("answers as texts")[2].splitlines()
    rows = {line.split()[0]: line.split()[-1] for line in lines if line.strip()}
    assert (rows["mean"], rows["worst"], rows["base"]) == ("25.0", "37.5", "2.5")
    assert max(map(len, lines)) <= 80


def test_nothing_at_all() -> None:
    assert "nothing was measured" in printed({})
