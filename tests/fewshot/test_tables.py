"""Tables in and out of the few-shot commands: whose answers they are, what is said of them, what is not replaced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pluralign.errors import InputError
from pluralign.fewshot.answers import answers_of
from pluralign.fewshot.running import ask_fewshot, evaluate_fewshot, fit_fewshot, predict_fewshot
from pluralign.fewshot.tables import load_answers, load_questions
from pluralign.preferences import Preferences


def pairs(user: str | None, numbers: range, more: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """Who likes what is short."""
    whose = {} if user is None else {"user": user}
    return [
        {**whose, "prompt": f"Question {n}?", "chosen": f"{n}.", "rejected": f"{n}, at length.", **(more or {})}
        for n in numbers
    ]


def write(path: Path, lines: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def test_several_people_are_told_apart_or_refused(tmp_path: Path) -> None:
    named = write(tmp_path / "named.jsonl", [*pairs("ann", range(3)), *pairs("ben", range(3))])
    nobodys = write(tmp_path / "nobodys.jsonl", pairs(None, range(6)))
    out = str(tmp_path / "p.safetensors")
    with pytest.raises(InputError, match=r"named\.jsonl, row 1: there is no column 'group', which says whose"):
        fit_fewshot({"data": named, "group": "group", "output": out})
    for run in (fit_fewshot, evaluate_fewshot):
        with pytest.raises(InputError, match=r"nobodys\.jsonl, row 1: there is no column 'user', which says whose"):
            run({"data": nobodys, "output": out})
    path = fit_fewshot({"data": named, "output": out}).path
    # One person's answers need no name.
    asked = write(tmp_path / "asked.jsonl", pairs(None, range(6, 8)))
    keys = {"predictor": str(path), "answers": nobodys, "questions": asked, "output": str(tmp_path / "said.jsonl")}
    assert len(predict_fewshot(keys)) == 2


def test_what_is_read_is_not_replaced(tmp_path: Path) -> None:
    people = write(tmp_path / "people.jsonl", [*pairs("ann", range(4)), *pairs("ben", range(4))])
    path = str(fit_fewshot({"data": people, "output": str(tmp_path / "p.safetensors")}).path)
    mine, asked, wanted = (write(tmp_path / f"{n}.jsonl", pairs("me", range(n, n + 2))) for n in (10, 20, 30))
    keys = {"predictor": path, "answers": [mine], "questions": asked}
    for run in (predict_fewshot, ask_fewshot):
        for read in (path, mine, asked, *([wanted] if run is ask_fewshot else [])):
            before = Path(read).read_bytes()
            with pytest.raises(InputError, match="the file is read, and would be replaced"):
                targets = {"targets": wanted} if run is ask_fewshot else {}
                run({**keys, **targets, "output": f"{tmp_path}/./{Path(read).name}"})
            assert Path(read).read_bytes() == before


@pytest.mark.parametrize("end", [".jsonl", ".svg"])
def test_what_is_read_is_not_replaced_by_its_own_results(end: str, tmp_path: Path) -> None:
    people = write(tmp_path / f"people{end}", [*pairs("ann", range(4)), *pairs("ben", range(4))])
    before = Path(people).read_bytes()
    runs = [(evaluate_fewshot, "people.json" if end == ".svg" else "people.jsonl")]
    if end == ".jsonl":
        runs.append((fit_fewshot, "people.jsonl"))
    for run, name in runs:
        with pytest.raises(InputError, match="the file is read, and would be replaced"):
            run({"data": people, "output": str(tmp_path / name), "overwrite": True})
        assert Path(people).read_bytes() == before


def test_who_has_answers_in_one_table_only_is_not_left_out(tmp_path: Path) -> None:
    paths = []
    for number, (oman, fiji) in enumerate((([], []), ([0.5, 0.5], []))):
        row = {"question": f"{number}?", "options": ["a", "b"]}
        said = {"Chad": [1, 0], "Oman": oman, "Fiji": fiji}
        paths.append(write(tmp_path / f"{number}.jsonl", [{**row, "selections": str(said)}]))
    with pytest.warns(UserWarning) as said_of:
        assert load_answers(paths).silent == ("Fiji",)
    assert "groups without any answer, which are left out: 1 (Fiji)" in str(said_of[-1].message)
    with pytest.raises(InputError, match="there are no answers"), pytest.warns(UserWarning, match="2 \\(Oman, Fiji\\)"):
        nobody = {"question": "?", "options": ["a", "b"], "selections": "{'Oman': [], 'Fiji': []}"}
        load_answers(write(tmp_path / "nobody.jsonl", [nobody]))


def test_rows_that_decide_nothing_are_counted(tmp_path: Path) -> None:
    one = {"prompt": "Question 0?", "user": "ann", "base": "as it would be"}
    path = write(tmp_path / "people.jsonl", [*pairs("ann", range(3)), one])
    with pytest.warns(UserWarning, match=r"people\.jsonl: rows that say nothing of which response is better: 1"):
        assert len(load_answers(path)) == 3
    with pytest.warns(UserWarning, match=r"rows that say nothing of which response is better: 1"):
        assert len(load_questions(path)) == 3
    tie = Preferences([], ties={"ann": 2})
    assert answers_of(tie).undecided == 2
