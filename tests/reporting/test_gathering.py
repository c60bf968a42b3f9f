"""Runs read from their folders, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pluralign.errors import InputError
from pluralign.reporting.gather import cautions, differences, read_runs
from pluralign.reporting.measures import ACCURACY, KEPT, WIN_RATE, mean_interval
from pluralign.reporting.provenance import origins
from pluralign.reporting.selection import fixed_sample, front, selected

Make = Callable[..., Path]


def test_people_stand_worst_first_and_those_without_accuracy_last(make_run: Make, change: Any) -> None:
    def unmeasured(content: dict[str, Any]) -> None:
        content["people"]["terse-002"]["pairs"]["accuracy"] = None

    folder = make_run(people=8)
    change(folder, unmeasured)
    (run,) = read_runs([str(folder)])
    accuracies = [person.values.get(ACCURACY) for person in run.people.values()]
    assert list(run.people)[-1] == "terse-002" and accuracies[-1] is None
    assert accuracies[:-1] == sorted(accuracies[:-1])
    assert run.config["method"] == "bapo" and run.config["anchor.base.weight"] > 0
    assert len(run.made_with["data_hash"]) == 64 and run.finished and not run.unmeasured


def test_a_missing_part_is_a_missing_value(make_run: Make, change: Any) -> None:
    def without(content: dict[str, Any]) -> None:
        content["people"]["polite-003"] |= {"retention": None, "behaviour": None, "cross": None, "group": None}

    folder = make_run()
    change(folder, without)
    (run,) = read_runs([str(folder)])
    person = run.people["polite-003"]
    assert KEPT not in person.values and not person.samples and not person.cross and person.group is None
    assert ACCURACY in person.values and KEPT in run.people["formal-000"].values


@pytest.mark.parametrize(
    ("break_it", "named"),
    [
        (lambda run: (run / "evaluation.json").unlink(), "pluralign evaluate --run"),
        (lambda run: (run / "config.yaml").unlink(), "there is no config.yaml"),
        (lambda run: (run / "evaluation.json").write_text("{"), "not JSON"),
        (lambda run: (run / "evaluation.json").write_text('{"schema_version": 99}'), "schema_version is 99"),
    ],
)
def test_a_folder_that_is_no_evaluated_run_is_refused(
    make_run: Make, break_it: Callable[[Path], None], named: str
) -> None:
    folder = make_run(people=2)
    break_it(folder)
    with pytest.raises(InputError, match=named) as error:
        read_runs([str(folder)])
    assert str(folder) in str(error.value)


def test_no_run_the_same_twice_and_too_many_are_refused(make_run: Make) -> None:
    folder = str(make_run(people=2))
    for runs, named in (([], "no run is given"), ([folder, f"{folder}/."], "given twice"), (["x"] * 9, "9 runs")):
        with pytest.raises(InputError, match=named):
            read_runs(runs)


def test_runs_of_one_name_are_told_apart_by_their_folders(make_run: Make) -> None:
    runs = read_runs([str(make_run("a/run", people=2)), str(make_run("b/run", people=2))])
    assert [run.name for run in runs] == ["a/run", "b/run"]


def test_other_data_and_another_base_are_differences_another_seed_is_a_caution(make_run: Make, change: Any) -> None:
    same, other = make_run("same"), make_run("other", data="another table")
    seed, base = make_run("seed", seed=1, people=4), make_run("base")
    change(base, lambda content: content["base"].update(fingerprint="f" * 64))
    first, data, seed_run, base_run = read_runs([str(one) for one in (same, other, seed, base)])
    assert not differences([first, seed_run]) and not differences([first])
    (said,) = differences([first, data])
    assert "the data is not the same" in said and data.made_with["data_hash"][:12] in said and "other" in said
    assert "base model" in differences([first, base_run])[0]
    assert any("Seeds differ" in one for one in cautions([first, seed_run]))
    assert any("held out of 4 of 4 people" in one for one in cautions([first, seed_run]))
    assert any("4 people were" in one for one in cautions([first, seed_run]))
    assert not cautions([first, base_run])


def test_one_policy_for_everybody_leaves_nobody_unmeasured(make_run: Make) -> None:
    folder = make_run(people=3)
    index = folder / "adapters" / "index.json"
    index.write_text(json.dumps({"schema_version": 1, "people": {"_all": "_all"}, "skipped": {}}))
    assert read_runs([str(folder)])[0].unmeasured == 0
    people = {"formal-000": "formal-000", "new": "new"}
    index.write_text(json.dumps({"schema_version": 1, "people": people, "skipped": {}}))
    assert read_runs([str(folder)])[0].unmeasured == 1


def test_the_front_is_where_nobody_has_more_of_one_without_less_of_the_other(make_run: Make) -> None:
    (run,) = read_runs([str(make_run(people=80, forgets=0.1))])
    points = {user: (person.values[KEPT], person.values[ACCURACY]) for user, person in run.people.items()}
    for user in front(run):
        mine = points[user]
        assert not any(
            other != mine and all(a >= b for a, b in zip(other, mine, strict=True)) for other in points.values()
        )
    best = {points[user] for user in front(run)}
    for point in set(points.values()) - best:
        assert any(all(a >= b for a, b in zip(other, point, strict=True)) for other in best)


def test_of_too_many_people_the_worst_the_front_and_a_fixed_sample_are_chosen(make_run: Make) -> None:
    one, other = read_runs([str(make_run("a", people=60)), str(make_run("b", people=60, method="dpo", forgets=0.1))])
    assert selected([one, other], 120) == set(one.people)
    chosen = selected([one, other], 60)
    assert len(chosen) == 30
    assert {*list(one.people)[:4], *list(other.people)[:4], *front(one), *front(other)} <= chosen
    assert fixed_sample(one.people, 5) == fixed_sample(reversed(list(one.people)), 5)
    assert set(fixed_sample([*one.people, "new"], 5)) >= set(fixed_sample(one.people, 4)) - {"new"}


def test_the_interval_of_a_mean_adds_the_squares_of_the_arms() -> None:
    assert mean_interval([0.5], [(0.2, 0.7)]) == (0.2, 0.7)
    low, high = mean_interval([0.4, 0.8], [(0.1, 0.5), (0.4, 1.0)])
    assert low == pytest.approx(0.6 - 0.5 / 2) and high == pytest.approx(0.6 + (0.01 + 0.04) ** 0.5 / 2)


def test_made_up_runs_have_the_documented_keys(make_run: Make) -> None:
    documents = [Path(__file__).parents[2] / "docs" / name for name in ("evaluation.md", "training.md")]
    words = set(
        "".join(one.read_text(encoding="utf-8") for one in documents).replace("`", " ").replace(".", " ").split()
    )
    folder = make_run(people=2)
    content = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    (person, *_) = content["people"].values()
    found = {key for part in (person, *(one for one in person.values() if isinstance(one, dict))) for key in part}
    found |= {key for sample in person["behaviour"]["samples"] for key in sample} | set(content["base"])
    line = json.loads((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])
    missing = [key for key in (*found, *line) if not any(key in word for word in words)]
    assert not missing


def test_win_rates_stand_beside_what_else_is_known_of_a_person(make_run: Make) -> None:
    run = make_run(people=2)
    user, other = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))["people"]
    verdicts = {"n": 4, "raw": 0.75, "raw_interval": [0.3, 0.95], "length_controlled": None}
    content: dict[str, Any] = {name: {} for name in ("base", "groups", "summary", "skipped")}
    content["people"] = {user: {"win_rate": verdicts}, "nobody": {"win_rate": verdicts}}
    content["win_rate"] = {"annotator": {"name": "a judge", "temperature": 0.5}}
    (run / "winrate").mkdir()
    (run / "winrate" / "base.json").write_text(json.dumps({"schema_version": 1, **content}))
    (found,) = read_runs([str(run)])
    assert found.people[user].values[WIN_RATE] == 0.75 and found.people[user].intervals[WIN_RATE] == (0.3, 0.95)
    assert set(found.people) == {user, other} and WIN_RATE not in found.people[other].values
    judges = [{row.key: row.values for row in origins([found], pseudonyms=hidden)} for hidden in (False, True)]
    assert [one["judge of win rates"] for one in judges] == [["a judge, temperature 0.5"], ["(withheld)"]]
    assert any("same judge" in one for one in cautions([found, *read_runs([str(make_run("other", people=2))])]))


def test_no_torch_is_needed() -> None:
    script = "import sys, pluralign.reporting; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
