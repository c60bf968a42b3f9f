"""Published formats: who the users are, what they preferred, what cannot be used."""

import json

import pytest

from pluralign.config import DataConfig
from pluralign.errors import InputError
from pluralign.preferences import check_preferences, load_preferences
from pluralign.preferences.sources import RATINGS, WEIGHTINGS


def write(folder, name, rows):
    path = folder / name
    path.write_text(json.dumps(rows) if name.endswith(".json") else "\n".join(map(json.dumps, rows)))
    return str(path)


def load(path, source="auto"):
    return load_preferences(DataConfig(path=path, source=source))


def triples(preferences, user):
    return [(row.prompt, row.chosen, row.rejected) for row in preferences if row.user == user]


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


LONG = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant:"
SHORT = "\n\nHuman: Who?\n\nAssistant:"


def test_hh_both_layouts_give_the_same_rows(tmp_path):
    pairs = [(f"{LONG} Because.", f"{LONG} No:\n\nidea"), (f"{SHORT} You.", f"{SHORT} Me.")]
    packaged = [{"text": list(pairs[0]), "score": [1.0, 0.0]}, {"text": list(pairs[1][::-1]), "score": [0.0, 1.0]}]
    (tmp_path / "hub").mkdir()
    first = load(write(tmp_path, "helpful.test.json", packaged))
    second = load(write(tmp_path / "hub", "helpful.jsonl", [{"chosen": c, "rejected": r} for c, r in pairs]))
    expected = [
        ([user("Hi"), assistant("Hello."), user("Why?")], [assistant("Because.")], [assistant("No:\n\nidea")]),
        ([user("Who?")], [assistant("You.")], [assistant("Me.")]),
    ]
    assert triples(first, "helpful") == triples(second, "helpful") == expected


def test_hh_files_are_people(tmp_path):
    row = {"text": [f"{SHORT} a", f"{SHORT} b"], "score": [1, 0]}
    paths = [write(tmp_path, name, [row]) for name in ("helpful.test.json", "harmless.test.json")]
    assert list(load_preferences(DataConfig(path=paths)).by("user")) == ["helpful", "harmless"]


def test_two_files_of_one_name_are_not_silently_one_person(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    paths = [
        write(tmp_path / folder, "train.jsonl", [{"chosen": f"{SHORT} a", "rejected": f"{SHORT} b"}]) for folder in "ab"
    ]
    with pytest.raises(InputError, match="the user is named after the file"):
        load_preferences(DataConfig(path=paths))


def test_hh_rows_that_cannot_be_used(tmp_path):
    good = {"text": [f"{SHORT} a", f"{SHORT} b"], "score": [1, 0]}
    bad = [
        {**good, "score": [1, 1]},
        {**good, "text": ["one"]},
        {**good, "text": ["no marker", f"{SHORT} b"]},
        {**good, "score": None},
        {**good, "text": [f"{SHORT} a", SHORT]},
        {**good, "text": [f"{SHORT} a", "\n\nHuman: Else?\n\nAssistant: b"]},
    ]
    preferences = load(write(tmp_path, "helpful.jsonl", [good, *bad]))
    assert len(preferences) == 1
    assert preferences.ties == {"helpful": 1}
    assert [(problem.place.row, problem.user) for problem in preferences.problems] == [
        (3, "helpful"),
        (4, "helpful"),
        (5, "helpful"),
        (6, "helpful"),
        (7, "helpful"),
    ]


def test_pairs_of_plain_text_are_no_transcripts(tmp_path):
    row = {"chosen": "Q: a? yes", "rejected": "Q: a? no"}
    assert triples(load(write(tmp_path, "t.jsonl", [row])), None) == [("Q: a?", " yes", " no")]
    transcript = {"chosen": f"{SHORT} a", "rejected": f"{SHORT} b"}
    assert triples(load(write(tmp_path, "t.jsonl", [transcript]), "table"), None) == [(SHORT, " a", " b")]


def test_dsp_a_domain_prefers_its_response_to_all_others(tmp_path):
    responses = {"academy": "A", "business": "B", "entertainment": "E", "literature": "L", "normal": "N"}
    preferences = load(write(tmp_path, "dsp.json", [{"query": "q", "responses": responses}]))
    assert sorted(preferences.by("user")) == ["academy", "business", "entertainment", "literature"]
    assert {row.rejected for row in preferences.by("user")["business"]} == {"A", "E", "L", "N"}
    assert {row.chosen for row in preferences.by("user")["business"]} == {"B"}
    report = check_preferences(preferences)
    assert (report.shared_pairs, report.disputed_pairs) == (6, 6)
    assert not report.contradictions


def test_personas_a_folder_of_files_is_its_people(tmp_path):
    row = {"question": "Do you?", "answer_matching_behavior": " Yes", "answer_not_matching_behavior": " No"}
    write(tmp_path, "openness.jsonl", [{**row, "label_confidence": 0.9}])
    write(tmp_path, "risk-averse.jsonl", [row, {"question": "Do you?"}])
    preferences = load(str(tmp_path))
    assert triples(preferences, "openness") == [("Do you?", " Yes", " No")]
    assert preferences[0].columns == {"label_confidence": 0.9}
    assert [problem.user for problem in preferences.problems] == ["risk-averse"]


def ratings(**given):
    return {rating: given.get(rating, 0.5) for rating in RATINGS}


def test_helpsteer2_users_are_weightings(tmp_path):
    labels = [ratings(verbosity=0.0, helpfulness=1.0), ratings(verbosity=1.0)]
    row = {"prompt": "p", "responses": ["short", "long"], "labels": labels}
    preferences = load(write(tmp_path, "t.json", [row]))
    chosen = {row.user: row.chosen for row in preferences}
    assert chosen["brief"] == "short" and chosen["thorough"] == "long" and chosen["balanced"] == "short"
    assert preferences.ties == {"exact": 1, "expert": 1}
    assert chosen.keys() | preferences.ties.keys() == WEIGHTINGS.keys()
    assert next(row for row in preferences if row.user == "brief").columns == {"rating_margin": 2.5}


def test_helpsteer2_as_on_the_hub_pairs_rows_that_follow_each_other(tmp_path):
    def row(prompt, response, helpfulness):
        return {"prompt": prompt, "response": response, **dict.fromkeys(RATINGS, 2), "helpfulness": helpfulness}

    rows = [row("p", "a", 4), row("p", "b", 1), row("alone", "c", 1), row("q", "d", 1), row("q", "e", 3)]
    preferences = load(write(tmp_path, "t.jsonl", rows))
    assert triples(preferences, "balanced") == [("p", "a", "b"), ("q", "e", "d")]
    assert [problem.place.row for problem in preferences.problems] == [3]


def test_helpsteer2_ratings_that_are_none(tmp_path):
    good = {"prompt": "p", "responses": ["a", "b"], "labels": [ratings(helpfulness=1.0), ratings()]}
    bad = [{**good, "labels": [ratings(), {"helpfulness": 1}]}, {**good, "labels": None}, {**good, "responses": ["a"]}]
    preferences = load(write(tmp_path, "t.jsonl", [good, *bad]))
    assert [(problem.place.row, problem.column) for problem in preferences.problems] == [
        (2, "labels"),
        (3, "labels"),
        (4, "responses"),
    ]


def test_pandalm_annotators_are_users_and_ties_are_counted(tmp_path):
    row = {"instruction": "Do", "input": "this", "response1": "x", "response2": "y"}
    rows = [
        {**row, "annotator1": 1, "annotator2": 2, "annotator3": 0},
        {**row, "input": "", "annotator1": 1, "annotator2": 1, "annotator3": 0},
        {**row, "annotator1": 1, "annotator2": 7, "annotator3": 1},
    ]
    preferences = load(write(tmp_path, "t.json", rows))
    assert triples(preferences, "annotator1") == [("Do\n\nthis", "x", "y"), ("Do", "x", "y")]
    assert triples(preferences, "annotator2") == [("Do\n\nthis", "y", "x"), ("Do", "x", "y")]
    assert preferences.ties == {"annotator3": 2}
    (problem,) = preferences.problems
    assert (problem.user, problem.column, problem.found) == ("annotator2", "annotator2", "the verdict is 7")


def test_nothing_but_ties_is_an_empty_table_that_says_so(tmp_path):
    row = {"text": [f"{SHORT} a", f"{SHORT} b"], "score": [1, 1]}
    preferences = load(write(tmp_path, "helpful.json", [row]))
    assert len(preferences) == 0 and preferences.ties == {"helpful": 1}


def test_sources_that_do_not_fit(tmp_path):
    path = write(tmp_path, "t.jsonl", [{"prompt": "p", "chosen": "c", "rejected": "r"}])
    with pytest.raises(InputError, match=r"t\.jsonl: the columns are .*Source 'dsp' has \(query, responses\)"):
        load(path, "dsp")
    with pytest.raises(InputError, match=r"data\.source is 'hhh'\. It is auto, table, dsp, helpsteer2"):
        load(path, "hhh")
