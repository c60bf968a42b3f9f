"""Tables of answers: the library's own rows, the published ones, and what cannot be read."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pluralign.errors import InputError
from pluralign.fewshot.answers import answers_of
from pluralign.fewshot.reading import COUNTRIES, read_answers
from pluralign.fewshot.tables import load_answers
from pluralign.preferences import Preference, Preferences

ROW = {"group": "Chad", "question": "Is it so?", "options": ["Yes", "No"], "distribution": [0.25, 0.75]}


def table(tmp_path: Path, *rows: dict[str, Any]) -> Path:
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_rows_of_ones_own(tmp_path: Path) -> None:
    other = {**ROW, "group": "Peru", "distribution": [0.5, 0.51]}
    placed = {
        **ROW,
        "question": "How much?",
        "options": [1, 2.5, "all"],
        "distribution": [0, 1, 0],
        "ordinals": [1, 2, 3],
    }
    found = read_answers(table(tmp_path, ROW, other, placed))
    assert list(found.groups) == ["Chad", "Peru"] and len(found) == 3
    assert [question.text for question in found.questions] == ["Is it so?", "How much?"]
    assert found.questions[1].options == ("1", "2.5", "all") and found.questions[1].ordinals == (1, 2, 3)
    assert found.groups["Peru"][0].tolist() == pytest.approx([0.5 / 1.01, 0.51 / 1.01]) and found.rescaled == 1
    assert list(found.of(["Peru"]).groups) == ["Peru"] and found.of(["Peru"]).questions is found.questions


@pytest.mark.parametrize("form", ["json", "python"])
def test_a_csv_has_lists_in_its_cells(form: str, tmp_path: Path) -> None:
    path, written = tmp_path / "answers.csv", json.dumps if form == "json" else repr
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["country", "question", "options", "distribution"])
        rows.writerow(["Chad", "Is it so?", written(["Yes", "No, it isn't"]), written([0.25, 0.75])])
    found = read_answers(path, group="country")
    assert found.questions[0].options == ("Yes", "No, it isn't") and found.groups["Chad"][0].tolist() == [0.25, 0.75]


def test_the_published_table_of_countries(tmp_path: Path) -> None:
    path = tmp_path / "global_opinions.csv"
    selections = (
        "defaultdict(<class 'list'>, {'Chad': [0.25, 0.75], 'Peru': [1.0, 0.0], 'Oman': [], 'Fiji': [0.0, 0.0]})"
    )
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["question", "selections", "options", "source"])
        rows.writerow(["Is it so?", selections, "['Yes', 'No']", "WVS"])
    found = read_answers(path)
    assert {group: own[0].tolist() for group, own in found.groups.items()} == {"Chad": [0.25, 0.75], "Peru": [1, 0]}
    with pytest.warns(UserWarning) as said:
        assert load_answers(str(path)).silent == found.silent == ("Oman", "Fiji")
    assert [str(one.message).removeprefix(f"{path}: ") for one in said] == [
        "cells without an answer, where nobody was asked: 2",
        "groups without any answer, which are left out: 2 (Oman, Fiji)",
    ]


def test_a_published_folder_of_us_groups(tmp_path: Path) -> None:
    folder = tmp_path / "opinions_qa" / "distributions"
    folder.mkdir(parents=True)
    name = "Pew_American_Trends_Panel_disagreement_500_default_{}.csv"
    with (folder / name.format("human")).open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["qkey", "attribute", "group", "D_H"])
        rows.writerow(["SAFE_W26", "RACE", "Asian", "[0.2, 0.8]"])
        rows.writerow(["SAFE_W26", "SEX", "Male", "[0.6, 0.4]"])
        rows.writerow(["SAFE_W26", "RACE", "Other", "[0.3, 0.7]"])
        rows.writerow(["SAFE_W26", "RELIG", "Other", "[0.1, 0.9]"])
    with (folder / name.format("model")).open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["qkey", "question_raw", "mapping", "ordinal", "ordinal_refs", "refusal_refs"])
        mapping = "{'A': 'Very safe', 'B': 'Not safe', 'C': 'Refused'}"
        # Along the line in another order than by the letters.
        line = ["[1.0, 2.0]", "['Not safe', 'Very safe']"]
        rows.writerow(["SAFE_W26", "How safe is it?", mapping, *line, "['Refused']"])
    found = read_answers(tmp_path)
    (question,) = found.questions
    assert (question.options, question.ordinals) == (("Not safe", "Very safe"), (1.0, 2.0))
    said = {group: own[0].tolist() for group, own in found.groups.items()}
    assert said == {"Asian": [0.2, 0.8], "Male": [0.6, 0.4], "RACE: Other": [0.3, 0.7], "RELIG: Other": [0.1, 0.9]}
    model = folder / name.format("model")
    model.write_text(model.read_text().replace("['Not safe', 'Very safe']", "['Not safe', 'Quite safe']"))
    with pytest.raises(InputError, match=r"row 1.*column 'ordinal_refs': group 'Asian': it orders"):
        read_answers(tmp_path)


@pytest.mark.parametrize("distribution", [[0.48, 0.5], [0.51, 0.51], [0.49, 0.49]])
def test_sums_as_far_from_one_as_may_be_are_scaled(distribution: list[float], tmp_path: Path) -> None:
    found = read_answers(table(tmp_path, {**ROW, "distribution": distribution}))
    assert found.groups["Chad"][0].sum() == pytest.approx(1) and found.rescaled == 1


def test_a_question_is_the_same_in_whatever_order_its_options_stand(tmp_path: Path) -> None:
    turned = {**ROW, "options": ["No", "Yes"], "distribution": [0.9, 0.1]}
    found = read_answers(table(tmp_path, ROW, {**turned, "group": "Peru"}))
    assert len(found.questions) == 1 and found.groups["Peru"][0].tolist() == [0.1, 0.9]
    with pytest.raises(InputError, match=r"row 2: group 'Chad' has answered the same question in row 1"):
        read_answers(table(tmp_path, ROW, turned))
    placed = {**turned, "group": "Peru", "ordinals": [1, 2]}
    with pytest.raises(InputError, match=r"row 2, column 'ordinals': group 'Peru': the same question has other"):
        read_answers(table(tmp_path, ROW, placed))
    assert len(read_answers(table(tmp_path, {**ROW, "ordinals": [2, 1]}, placed)).questions) == 1
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps(ROW) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"other\.jsonl, row 1: group 'Chad': 'Is it so\?' has other ordinals"):
        load_answers([str(table(tmp_path, placed)), str(other)])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"distribution": [0.2, 0.2]}, "column 'distribution': group 'Chad': the shares sum to 0.4"),
        ({"distribution": [0, 0]}, "the shares sum to 0"),
        ({"distribution": [1.2, -0.2]}, "a share is -0.2"),
        ({"distribution": [float("nan"), 1]}, "a share is nan"),
        ({"distribution": [0.2, 0.3, 0.5]}, "3 shares for 2 options"),
        ({"distribution": ["many", "few"]}, "not a list of numbers"),
        ({"options": ["Yes"], "distribution": [1]}, "1 option"),
        ({"options": ["Yes", "Yes"]}, "option 'Yes' stands there twice"),
        ({"ordinals": [1]}, "1 ordinals for 2 options"),
        ({"ordinals": ["low", "high"]}, "column 'ordinals': group 'Chad': the cell holds ['low', 'high'], not a list"),
        ({"options": "Yes or no"}, "neither JSON nor a list"),
        ({"question": None}, "column 'question': group 'Chad': there is no such cell"),
        ({"question": "Half of \ud800?"}, "column 'question': group 'Chad': character 9 is the lone surrogate U+D800"),
        ({"options": ["Yes", "\ud800"]}, "column 'options': group 'Chad': character 1 is the lone surrogate U+D800"),
        ({"question": " "}, "column 'question': group 'Chad': the cell is empty"),
        ({"group": ""}, "column 'group': the cell is empty"),
        ({"group": float("nan")}, "column 'group': the cell holds nan, not a name"),
        ({"group": "Cha\ud800"}, "column 'group': character 4 is the lone surrogate U+D800"),
        ({"group": ["Chad"]}, "column 'group': the cell holds ['Chad'], not a name"),
        ({"options": ["Yes", None]}, "column 'options': group 'Chad': an option is empty"),
    ],
)
def test_what_cannot_be_used_is_named(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = table(tmp_path, {**ROW, "group": "Peru"}, {**ROW, **change})
    with pytest.raises(InputError) as error:
        read_answers(path)
    assert f"{path}, row 2" in str(error.value) and said in str(error.value)


def test_groups_are_taken_by_name(tmp_path: Path) -> None:
    path = str(table(tmp_path, *({**ROW, "group": group} for group in (*COUNTRIES, "Chad", "Peru"))))
    assert list(load_answers(path, groups=["paper_countries"]).groups) == list(COUNTRIES)
    assert list(load_answers(path, groups=["Peru", "Japan"]).groups) == ["Peru", "Japan"]
    with pytest.raises(InputError, match=r"groups has 'Chat', whose answers are not there.*Did you mean 'Chad'"):
        load_answers(path, groups=["Chat"])
    with pytest.raises(InputError, match="groups has 'Northeast'"):
        load_answers(path, groups=["paper_groups"])


def test_an_answer_is_given_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"row 2.*'Chad' has answered the same question"):
        read_answers(table(tmp_path, ROW, ROW))


def test_pairs_are_questions_with_two_options() -> None:
    def chose(user: str, chosen: str, rejected: str) -> Preference:
        prompt = [{"role": "user", "content": "Say hello."}]
        return Preference(prompt, [{"role": "assistant", "content": chosen}], rejected, user=user)

    rows = [
        chose("ann", "Hi", "Hello"),
        chose("ben", "Hello", "Hi"),
        chose("ann", "Hi", "Hello"),
        chose("ann", "Hello", "Hi"),
    ]
    rows.append(Preference("p", "same", "same", user="ann"))
    rows.append(Preference("p", None, None, base="alone", user="cem"))
    found = answers_of(Preferences(rows))
    (question,) = found.questions
    assert question.text == "Say hello." and question.options == ("Hello", "Hi")
    assert list(found.groups) == ["ann", "ben"]
    np.testing.assert_allclose(found.groups["ann"][0], [1 / 3, 2 / 3])
    assert found.groups["ben"][0].tolist() == [1, 0]
