"""Annotators by name: the world's judge, a function, people with a table; and what is refused."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluralign.annotation import AnnotatorConfig, EndpointConfig
from pluralign.annotators import AnnotatorError, Request, Verdict, annotator_of
from pluralign.annotators.function import FunctionAnnotator, WorldJudge
from pluralign.annotators.people import LabelsNeededError, PeopleAnnotator
from pluralign.annotators.protocol import checked
from pluralign.config import DataConfig, TrainConfig
from pluralign.errors import InputError
from pluralign.world import World


def requests(count: int = 3, responses: int = 2) -> list[Request]:
    return [
        Request(f"prompt {n}", tuple(f"answer {n}.{k}" for k in range(responses)), "ann", f"0/ann/{n}")
        for n in range(count)
    ]


def test_the_worlds_judge_wants_language_then_the_style_then_the_fact() -> None:
    world = World(0)
    user = world.users(1)[0]
    row = world.preferences([user], 12)[0]
    right, other = (row[side][-1]["content"] for side in ("chosen", "rejected"))
    wrong = next(item for item in world.items if item.topic == row["topic"] and item.say(user.style) != right)
    said = (right, other, wrong.say(user.style), "word word word word")
    (verdict,) = WorldJudge(world).annotate([Request(row["prompt"], said, user.id, "r")])
    assert verdict.scores is not None
    good, plain, false, noise = verdict.scores
    assert good > false >= plain > noise == 0 and not verdict.tie
    with pytest.raises(AnnotatorError, match=r"row 'x': .*nobody-9"):
        WorldJudge(world).annotate([Request(row["prompt"], said, "nobody-999", "x")])


def test_a_function_by_its_import_path_says_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_taste.py").write_text(
        "from pluralign.annotators import Verdict\n"
        "def shortest(requests):\n"
        "    return [Verdict(scores=tuple(-float(len(text)) for text in one.responses)) for one in requests]\n"
        "def broken(requests):\n    raise KeyError('no such mood')\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("my_taste", None)
    found = annotator_of(AnnotatorConfig(function="my_taste:shortest"), TrainConfig())
    assert checked(found, [Request("p", ("long", "a"), None, "r")])[0].places() == [-4.0, -1.0]
    with pytest.raises(AnnotatorError, match=r"annotator my_taste:broken: it raised KeyError .'no such mood'"):
        FunctionAnnotator.of_path("my_taste:broken").annotate(requests(1))
    for path in ("my_taste:nothing", "no_such:thing", "my_taste", "my_taste:number"):
        with pytest.raises(InputError, match=f"annotator.function '{path}'"):
            FunctionAnnotator.of_path(path)


@given(st.permutations(range(4)))
def test_a_ranking_and_scores_in_its_order_are_the_same_order(ranking: list[int]) -> None:
    places = Verdict(ranking=tuple(ranking)).places()
    assert sorted(range(4), key=lambda number: -places[number]) == list(ranking)
    assert Verdict(scores=tuple(places)).places() == places
    with pytest.raises(ValueError, match="abstention"):
        Verdict(abstained=True).places()


def fill(path: Path, choices: dict[str, str]) -> None:
    if path.suffix == ".csv":
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    else:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row["choice"] = choices.get(row["row"], row["choice"])
    if path.suffix == ".csv":
        with open(path, "w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.mark.parametrize("name", ["labels.csv", "labels.jsonl"])
def test_people_fill_in_a_table_and_the_run_goes_on(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    people, asked = PeopleAnnotator.of_path(str(path), "stop"), requests(3, responses=3)
    asked[1] = Request('first line\nsecond, "line"\t\x07', ("=1+1", "a\r\nb", "é"), None, "0/all/1")
    with pytest.raises(LabelsNeededError, match="3 of 3 comparisons wait for a choice"):
        people.annotate(asked)
    fill(path, {"0/ann/0": "2", "0/all/1": " TIE "})
    with pytest.raises(LabelsNeededError, match=r"1 of 3 comparisons wait.*Fill in the column"):
        people.annotate(asked)
    skipping = PeopleAnnotator.of_path(str(path), "skip").annotate(asked)
    assert [one.abstained for one in skipping] == [False, False, True] and skipping[1].tie
    fill(path, {"0/ann/2": "3"})
    assert [one.scores for one in people.annotate(asked)] == [(0, 1, 0), None, (0, 0, 1)]
    # A later phase is written below; what was filled in stays.
    with pytest.raises(LabelsNeededError, match="1 of 1"):
        people.annotate([Request("later", ("x", "y"), "ann", "1/ann/0")])
    assert [one.scores for one in people.annotate(asked)] == [(0, 1, 0), None, (0, 0, 1)]


@pytest.mark.parametrize(("choice", "message"), [("4", "from 1 to 2"), ("b", "the choice is 'b'"), ("0", "'0'")])
def test_a_choice_that_is_none_is_named(tmp_path: Path, choice: str, message: str) -> None:
    people = PeopleAnnotator.of_path(str(tmp_path / "labels.csv"), "stop")
    with pytest.raises(LabelsNeededError):
        people.annotate(requests())
    fill(people.path, {"0/ann/1": choice})
    with pytest.raises(InputError, match=f"labels.csv, row '0/ann/1': .*{message}"):
        people.annotate(requests())


def test_a_row_that_is_not_as_it_was_written_is_named(tmp_path: Path) -> None:
    people = PeopleAnnotator.of_path(str(tmp_path / "labels.jsonl"), "stop")
    with pytest.raises(LabelsNeededError):
        people.annotate(requests())
    people.path.write_text(people.path.read_text().replace("answer 1.0", "better answer"))
    with pytest.raises(InputError, match="row '0/ann/1': column 'response_1' is not as it was written"):
        people.annotate(requests())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "nobody says which response is better. Give one of annotator.function, annotator.reward"),
        ({"function": "a:b", "people": "x.csv"}, "annotator.function, annotator.people are given"),
        ({"type": "world", "function": "a:b"}, "annotator.type is world and annotator.function is given"),
        ({"type": "endpoint"}, "annotator.type is endpoint. Give annotator.endpoint.url"),
        ({"people": "labels.xlsx"}, "annotator.people is 'labels.xlsx'"),
        ({"endpoint": EndpointConfig(url="http://localhost:1/v1"), "taste": "x"}, "are given"),
    ],
)
def test_who_annotates_must_be_plain(settings: dict[str, Any], message: str) -> None:
    run = TrainConfig(data=DataConfig(path="table.jsonl"))
    with pytest.raises(InputError, match=message):
        annotator_of(AnnotatorConfig(**settings), run)


def test_the_world_is_judged_by_itself() -> None:
    assert isinstance(annotator_of(AnnotatorConfig(), TrainConfig()), WorldJudge)
