"""Protocols that leak nothing, figures that are what they say, and the command."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pluralign.cli import main
from pluralign.config import FewshotEvaluateConfig
from pluralign.errors import InputError
from pluralign.fewshot.answers import Answers, Question
from pluralign.fewshot.comparison import _t95, compare, summarise
from pluralign.fewshot.protocols import KNOWN_QUESTIONS, NEW_QUESTIONS, PROTOCOLS, split
from pluralign.fewshot.running import evaluate_fewshot
from pluralign.resolve import resolve


def population(groups: int, questions: int, gaps: float = 0.0, seed: int = 0) -> Answers:
    """Two camps, each with an opinion on every question."""
    draw = np.random.default_rng(seed)
    camps = draw.uniform(0.05, 0.95, (2, questions))
    found = Answers()
    for number in range(questions):
        question = Question(f"Question {number}?", ("yes", "no"))
        for group in range(groups):
            if draw.random() >= gaps:
                share = float(np.clip(camps[group % 2, number] + draw.normal() * 0.03, 0.01, 0.99))
                found.add(f"group {group}", question, np.array([share, 1 - share]))
    return found


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 9_999), st.sampled_from(PROTOCOLS), st.floats(0, 0.4))
def test_a_split_lets_nothing_through(seed: int, protocol: str, gaps: float) -> None:
    answers = population(10, 40, gaps, seed)
    one = split(answers, protocol, [3, 8, 30], least=12, seed=seed)
    again = split(answers, protocol, [3, 8, 30], least=12, seed=seed)
    assert [(trial.group, list(trial.targets)) for trial in one.trials] == [
        (trial.group, list(trial.targets)) for trial in again.trials
    ]
    known = {number for _, number, _ in one.training}
    for trial in one.trials:
        assert trial.group not in one.training.groups and len(trial.targets) >= 5
        sizes = sorted(trial.contexts)
        for smaller, larger in itertools.pairwise(sizes):
            assert trial.contexts[smaller].items() <= trial.contexts[larger].items()
        for size, context in trial.contexts.items():
            assert len(context) == size and not context.keys() & trial.targets.keys()
            if protocol == NEW_QUESTIONS:
                assert not trial.targets.keys() & known
        if protocol == KNOWN_QUESTIONS:
            assert trial.targets.keys() <= known


def test_camps_are_told_apart_where_others_answered_and_nobody_speaks_of_what_is_new() -> None:
    settings = {"methods": ["uniform", "mean", "nearest", "mixture", "taste"], "sizes": [5], "splits": 1}
    cells = list(compare(population(12, 30), resolve(FewshotEvaluateConfig, settings)))
    found = {(one.protocol, one.method): one for one in summarise(cells)}
    known = {method: found[KNOWN_QUESTIONS, method] for method in settings["methods"]}
    assert known["uniform"].means["alignment"] < known["mean"].means["alignment"]
    for method in ("nearest", "mixture", "taste"):
        assert known[method].means["alignment"] > 0.9 > known["mean"].means["alignment"]
        assert known[method].means["accuracy"] > known["mean"].means["accuracy"]
        assert known[method].worst <= known[method].means["alignment"]
    assert 0.5 < known["taste"].means["coverage"] <= 1
    assert {method for protocol, method in found if protocol == NEW_QUESTIONS} == {"uniform", "taste"}


def test_the_command_writes_figures_and_a_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = population(10, 24)
    table = tmp_path / "answers.jsonl"
    rows = [
        {
            "group": group,
            "question": answers.questions[number].text,
            "options": answers.questions[number].options,
            "distribution": shares.tolist(),
        }
        for group, number, shares in answers
    ]
    rows[0]["distribution"] = [round(share * 1.01, 6) for share in rows[0]["distribution"]]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "fewshot.json"
    keys = {"methods": "[uniform, mean, ridge, gpo]", "sizes": "[5, 10]", "splits": "2", "module.steps": "2"}
    arguments = [word for key, value in keys.items() for word in (f"--{key}", value)]
    assert main(["fewshot", "evaluate", str(table), *arguments, "--output", str(out)]) == 0
    assert "known questions" in capsys.readouterr().out
    written = json.loads(out.read_text())
    assert written["notes"] == [f"{table}: distributions whose sum was near 1 and was made 1: 1"]
    assert written["schema_version"] == 1 and written["config"]["sizes"] == [5, 10]
    methods = {(one["protocol"], one["method"]) for one in written["summaries"]}
    assert methods == {(protocol, name) for protocol in PROTOCOLS for name in ("uniform", "ridge", "gpo")} | {
        (KNOWN_QUESTIONS, "mean")
    }
    assert out.with_suffix(".svg").read_text().startswith("<?xml")
    assert main(["fewshot", "evaluate", str(table), "--output", str(out)]) == 2
    assert "the file is there" in capsys.readouterr().err
    # A plot of something else stands beside it.
    assert main(["fewshot", "evaluate", str(table), "--output", str(tmp_path / "fewshot.jsn")]) == 2
    assert "fewshot.svg: the file is there" in capsys.readouterr().err
    assert main(["fewshot", "evaluate", str(table), "--output", str(tmp_path / "another.svg")]) == 2
    assert "Name a .json file" in capsys.readouterr().err


def test_where_nothing_can_be_measured_nothing_is_written(tmp_path: Path) -> None:
    table, out = tmp_path / "answers.jsonl", tmp_path / "fewshot.json"
    row = {"options": ["a", "b"], "distribution": [0.5, 0.5], "ordinals": [1, 1]}
    lines = [json.dumps({**row, "group": f"g{group}", "question": f"{n}?"}) for group in range(6) for n in range(20)]
    table.write_text("\n".join(lines))
    with pytest.raises(InputError, match="there is no figure: none of uniform, taste says anything that can be"):
        evaluate_fewshot({"data": str(table), "methods": ["uniform", "taste"], "splits": 1, "output": str(out)})
    assert not out.exists()


def test_what_cannot_be_compared_is_named() -> None:
    with pytest.raises(InputError, match="methods has 'oracle'"):
        list(compare(population(6, 20), resolve(FewshotEvaluateConfig, {"methods": ["oracle"]})))
    with pytest.raises(InputError, match="2 groups, 2 of them with 15 answers or more: none can be tested"):
        list(compare(population(2, 20), resolve(FewshotEvaluateConfig, {"methods": ["uniform"]})))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"splits": 0}, "splits is 0"),
        ({"sizes": [5, 0]}, "sizes is 0"),
        ({"sizes": []}, "sizes has nothing in it"),
        ({"methods": []}, "methods has nothing in it"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_numbers_that_cannot_be_used_are_named_before_anything_is_read(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        evaluate_fewshot({"data": "nowhere.jsonl", **keys})


def test_what_a_prompt_was_answered_with_is_held_out_together() -> None:
    found = Answers()
    for number in range(60):
        for group in range(8):
            question = Question(f"Prompt {number % 12}?", (f"one {number}", f"two {number}"))
            found.add(f"person {group}", question, np.array([1.0, 0.0]))
    one = split(found, NEW_QUESTIONS, [5], least=10, seed=0)
    taught = {found.questions[number].text for _, number, _ in one.training}
    asked = {found.questions[number].text for trial in one.trials for number in trial.targets}
    told = {found.questions[number].text for trial in one.trials for number in trial.contexts[5]}
    assert asked and not asked & taught and not asked & told and 0.3 <= len(asked) / 12 < 0.4


def test_splits_and_groups_that_cannot_be_measured_are_counted() -> None:
    # One question in ten was answered by several people, so that few have answers to known questions left.
    draw, found = np.random.default_rng(0), Answers()
    for group in range(12):
        for number in range(20):
            shared = draw.random() < 0.25
            question = Question(f"{'all' if shared else group} {number}?", ("yes", "no"))
            found.add(f"person {group}", question, np.array([1.0, 0.0]))
    keys = {"methods": ["uniform"], "sizes": [5], "splits": 6, "least": 10}
    with pytest.warns(UserWarning) as noted:
        cells = list(compare(found, resolve(FewshotEvaluateConfig, keys)))
    known = [cell for cell in cells if cell.protocol == KNOWN_QUESTIONS]
    said = [str(one.message) for one in noted]
    assert 0 < len(known) < 6 and any(f"{len(known)} of 6 splits on known questions" in one for one in said)
    tested = sum(len(cell.groups) for cell in known)
    assert all(cell.drawn == 4 for cell in known)
    assert any(f"known questions: {tested} of {4 * len(known)} groups drawn are tested" in one for one in said)


def test_people_who_answered_nothing_in_common_are_compared_on_new_questions_only() -> None:
    found = Answers()
    for group in range(8):
        for number in range(16):
            found.add(f"person {group}", Question(f"{group} {number}?", ("yes", "no")), np.array([1.0, 0.0]))
    settings = resolve(FewshotEvaluateConfig, {"methods": ["uniform", "ridge"], "sizes": [5], "splits": 1, "least": 10})
    with pytest.warns(UserWarning, match="no comparison on known questions"):
        cells = list(compare(found, settings))
    assert {cell.protocol for cell in cells} == {NEW_QUESTIONS}


def test_intervals_use_students_t() -> None:
    for freedom, point in ((4, 2.776), (10, 2.228), (20, 2.086), (60, 2.000)):
        assert _t95(freedom) == pytest.approx(point, abs=0.005)
