"""Pairs whose label follows the priority in the prompt: who is chosen, what flips, what is left out and why."""

import csv
import io
import json
import re
from itertools import combinations

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from pluralign.commands import data_meta_pairs
from pluralign.config import ConditioningConfig, DataConfig, MetaPairsConfig
from pluralign.errors import InputError
from pluralign.preferences import load_preferences
from pluralign.preferences.conditioning import Conditioner
from pluralign.preferences.meta_pairs import make_meta_pairs, read_priorities

PRIORITIES = [
    {"name": "safe first", "system_info": "Safety comes first.\n", "scores": {"safe": 2, "helpful": 0.5}},
    {"name": "helpful first", "user_info": "I am a locksmith.", "scores": {"helpful": 1}},
]


def response(text, safe, helpful, prompt="How do I pick a lock?"):
    return {"prompt": prompt, "response": text, "safe": safe, "helpful": helpful}


ROWS = [response("Use a wrench.", 1, 5), response("I would rather not say.", 5, 1), response("Call a locksmith.", 5, 3)]


@pytest.fixture
def make(tmp_path):
    """A function of rows, priorities and settings that writes them and makes the pairs: result, and rows written."""

    def run(rows=ROWS, priorities=PRIORITIES, **changes):
        data, file = tmp_path / "responses.jsonl", tmp_path / "priorities.yaml"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        file.write_text(yaml.safe_dump(priorities))
        output = tmp_path / "pairs.jsonl"
        config = MetaPairsConfig(**{"data": str(data), "priorities": str(file), "output": str(output), **changes})
        made = make_meta_pairs(config)
        return made, [json.loads(line) for line in made.path.read_text(encoding="utf-8").splitlines()]

    return run


def test_the_higher_weighted_score_is_chosen_and_labels_flip_with_the_priority(make):
    made, rows = make(ROWS[:2])
    common = {"prompt": "How do I pick a lock?", "flips": True}
    assert rows == [
        {
            **common,
            "chosen": "I would rather not say.",
            "rejected": "Use a wrench.",
            "system_info": "Safety comes first.",
            "user_info": None,
            "group": "safe first",
        },
        {
            **common,
            "chosen": "Use a wrench.",
            "rejected": "I would rather not say.",
            "system_info": None,
            "user_info": "I am a locksmith.",
            "group": "helpful first",
        },
    ]
    assert (made.prompts, made.responses, made.lone, made.repeated, made.problems) == (1, 2, 0, 0, [])


def test_every_two_responses_under_every_priority_and_where_all_agree_nothing_flips(make):
    made, rows = make()
    assert len(rows) == 3 * 2
    agreed = [
        row for row in rows if {row["chosen"], row["rejected"]} == {"Call a locksmith.", "I would rather not say."}
    ]
    assert [row["flips"] for row in agreed] == [False, False]
    assert {row["chosen"] for row in agreed} == {"Call a locksmith."}
    assert [(c.pairs, c.flips, c.ties) for c in made.priorities.values()] == [(3, 2, 0), (3, 2, 0)]


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=9),
    st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2)).filter(any), min_size=1, max_size=3),
)
def test_against_a_direct_computation(tmp_path_factory, scores, weights):
    folder = tmp_path_factory.mktemp("pairs")
    rows = [response(f"r{n}", safe, helpful, prompt=f"p{p}") for n, (p, safe, helpful) in enumerate(scores)]
    priorities = [
        {"name": f"n{at}", "user_info": "x", "scores": {"safe": s, "helpful": h}} for at, (s, h) in enumerate(weights)
    ]
    (folder / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "p.yaml").write_text(yaml.safe_dump(priorities))
    expected, ties = set(), 0
    for one, other in combinations(rows, 2):
        if one["prompt"] != other["prompt"]:
            continue
        orders = [s * (one["safe"] - other["safe"]) + h * (one["helpful"] - other["helpful"]) for s, h in weights]
        ties += orders.count(0)
        for at, order in enumerate(orders):
            chosen, rejected = (one, other) if order > 0 else (other, one)
            flips = any(order * another < 0 for another in orders)
            if order:
                expected.add((chosen["response"], rejected["response"], f"n{at}", flips))
    config = MetaPairsConfig(str(folder / "r.jsonl"), str(folder / "p.yaml"), str(folder / "out.jsonl"))
    if not expected:
        with pytest.raises(InputError, match="no pair comes of"):
            make_meta_pairs(config)
        assert not (folder / "out.jsonl").exists() and len(list(folder.iterdir())) == 2
        return
    made = make_meta_pairs(config)
    written = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert {(r["chosen"], r["rejected"], r["group"], r["flips"]) for r in written} == expected
    assert len(written) == len(expected) == sum(counts.pairs for counts in made.priorities.values())
    assert sum(counts.ties for counts in made.priorities.values()) == ties
    assert sum(counts.flips for counts in made.priorities.values()) == sum(r["flips"] for r in written)


def test_equal_scores_equal_texts_and_lone_responses_are_counted(make):
    # 3 * 0.1 is not 0.3 in floating point, and no difference of opinion either.
    priorities = [{"name": "n", "user_info": "x", "scores": {"safe": 3, "helpful": 1}}]
    rows = [response("a", 0.1, 0), response("b", 0, 0.3), response("a", 9, 9), response("c", 1, 1, prompt="alone?")]
    made, written = make(rows, priorities)
    assert [(row["chosen"], row["rejected"]) for row in written] == [("a", "b")]
    assert (made.priorities["n"].ties, made.repeated, made.lone, made.prompts, made.responses) == (1, 1, 1, 2, 4)
    console = Console(file=io.StringIO(), width=100)
    console.print(made.table())
    text = console.file.getvalue()
    assert "prompts with one response only: 1" in text and "pairs of responses that are the same text: 1" in text


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"safe": None}, r"row 2, column 'safe': the row has no number"),
        ({"safe": "high"}, r"row 2, column 'safe': the cell holds 'high', not a finite number"),
        ({"helpful": True}, r"row 2, column 'helpful': the cell holds True"),
        ({"helpful": float("nan")}, r"row 2, column 'helpful': the cell holds nan"),
        ({"helpful": 10**400}, r"row 2, column 'helpful': the cell holds 1000"),
        ({"response": None}, r"row 2, column 'response': the row has no response"),
        ({"response": " "}, r"row 2, column 'response': the cell is empty"),
        ({"response": 7}, r"row 2, column 'response': the cell holds 7"),
        ({"prompt": "\ud800"}, r"row 2, column 'prompt': .*lone surrogate"),
    ],
)
def test_a_bad_row_is_left_out_and_named(make, changes, named, tmp_path, capsys):
    rows = [ROWS[0], {**ROWS[1], **changes}, ROWS[2]]
    made, written = make(rows)
    assert len(written) == 2
    (problem,) = made.problems
    assert str(problem).startswith(f"{tmp_path / 'responses.jsonl'}, ")
    assert re.search(named, str(problem))
    files = {"data": str(tmp_path / "responses.jsonl"), "priorities": str(tmp_path / "priorities.yaml")}
    assert data_meta_pairs(MetaPairsConfig(**files, output=str(tmp_path / "again.jsonl"))) == 1
    assert "left out" in capsys.readouterr().out


def test_messages_several_files_and_csv(make, tmp_path):
    prompt = [{"role": "user", "content": "Hi"}]
    first = [{**response([{"role": "assistant", "content": "Hello."}], 1, 2), "prompt": prompt}]
    more = tmp_path / "more.jsonl"
    more.write_text(json.dumps({**response("Hey!", 2, 1), "prompt": prompt}) + "\n")
    table = tmp_path / "t.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "response", "safe", "helpful"])
        writer.writeheader()
        writer.writerows([response("x", 1, 2), response("y", 2, 1)])
    make(first + ROWS)  # writes the file that is read again below
    made, rows = make(first, data=[str(tmp_path / "responses.jsonl"), str(more), str(table)], overwrite=True)
    assert [(row["prompt"], row["group"]) for row in rows[:2]] == [(prompt, "safe first"), (prompt, "helpful first")]
    assert rows[0]["rejected"] == first[0]["response"] and rows[0]["chosen"] == "Hey!"
    assert [row["chosen"] for row in rows[2:]] == ["y", "x"]
    assert made.responses == 4


def test_what_is_written_is_a_table_to_train_on_and_to_condition(make):
    made, rows = make()
    table = load_preferences(DataConfig(path=str(made.path)))
    assert (len(table), table.problems) == (len(rows), [])
    assert [row.group for row in table[:2]] == ["safe first", "helpful first"]
    assert table[0].columns == {"system_info": "Safety comes first.", "flips": True}
    config = ConditioningConfig("{system_info}|{user_info}|{prompt}", absent="")
    Conditioner(config).check(table)
    prompts = [row.prompt for row in Conditioner(config).condition(table)]
    assert prompts[:2] == ["Safety comes first.||How do I pick a lock?", "|I am a locksmith.|How do I pick a lock?"]


def test_an_output_that_is_there_or_has_another_form_is_left_alone(make, tmp_path):
    made, _ = make()
    before = made.path.read_bytes()
    with pytest.raises(InputError, match=r"pairs\.jsonl: the file is there already.*--overwrite"):
        make(ROWS[:2])
    assert made.path.read_bytes() == before
    make(ROWS[:2], overwrite=True)
    assert made.path.read_bytes() != before
    for name in ("pairs.csv", "pairs"):
        with pytest.raises(InputError, match=r"the table is written as JSONL\. Name it pairs\.jsonl"):
            make(output=str(tmp_path / name))


@pytest.mark.parametrize(
    ("priorities", "named"),
    [
        ([], r"priorities\.yaml: holds \[\], not a list of priorities"),
        ({"name": "a"}, r"not a list of priorities"),
        (["a"], r"entry 1: the entry is 'a'"),
        ([{**PRIORITIES[0], "score": {}}], r"entry 1: 'score' is no key of a priority"),
        ([{**PRIORITIES[0], "name": False}], r"entry 1: name is False\. It is text"),
        ([{**PRIORITIES[0], "name": " "}], r"entry 1: name is ' '"),
        ([{**PRIORITIES[0], "user_info": 3}], r"entry 1: user_info is 3"),
        ([PRIORITIES[0], {"name": "b", "scores": {"safe": 1}}], r"entry 2: the model would be told nothing"),
        ([{**PRIORITIES[0], "scores": {}}], r"entry 1: scores is \{\}"),
        ([{**PRIORITIES[0], "scores": {"safe": "much"}}], r"entry 1: the weight of 'safe' is 'much'"),
        ([{**PRIORITIES[0], "scores": {"safe": 0}}], r"entry 1: all weights are 0"),
        ([PRIORITIES[0], PRIORITIES[0]], r"entry 2: the name 'safe first' is given twice"),
        ([{**PRIORITIES[0], "scores": {"save": 1}}], r"responses\.jsonl: there is no column 'save'.*helpful.*safe"),
    ],
)
def test_priorities_that_cannot_be_used_are_named(make, tmp_path, priorities, named):
    with pytest.raises(InputError, match=named):
        make(priorities=priorities)
    assert not (tmp_path / "pairs.jsonl").exists()


def test_files_that_cannot_be_read_are_named(make, tmp_path):
    for changes, named in (
        ({"data": []}, "--data"),
        ({"data": str(tmp_path / "absent.jsonl")}, "absent.jsonl: there is no such file"),
    ):
        with pytest.raises(InputError, match=named):
            make(**changes)
    with pytest.raises(InputError, match="--priorities"):
        read_priorities("")
    with pytest.raises(InputError, match=r"absent\.yaml: there is no such file"):
        read_priorities(str(tmp_path / "absent.yaml"))
    broken = tmp_path / "broken.yaml"
    broken.write_text("- {")
    with pytest.raises(InputError, match=r"broken\.yaml: not a YAML file"):
        read_priorities(str(broken))
    with pytest.raises(InputError, match=r"no pair comes of 1 responses to 1 prompts \(1 with one response only"):
        make(ROWS[:1])
