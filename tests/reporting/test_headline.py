"""The sentences above everything else say what the numbers are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from pluralign.reporting.gather import read_runs
from pluralign.reporting.headline import as_text, headline, percent
from pluralign.reporting.measures import ACCURACY, KEPT

Make = Callable[..., Path]


def said(*folders: Path, **changes: Any) -> tuple[str, list[str]]:
    runs = read_runs([str(folder) for folder in folders])
    found = headline(runs, lambda user: user, lambda run: run.name, **changes)
    return as_text(found.title), [as_text(sentence) for sentence in found.more]


def accuracies(*values: float | None) -> Callable[[dict[str, Any]], None]:
    """Gives the people of a run these accuracies, in order."""

    def edit(content: dict[str, Any]) -> None:
        for person, value in zip(content["people"].values(), values, strict=True):
            person["pairs"]["accuracy"] = value

    return edit


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0%"), (1, "100%"), (0.998, "99.8%"), (0.9999, "99.9%"), (0.5, "50%"), (0.001, "0.1%")]
)
def test_percent_never_says_all_or_none_of_what_is_not(share: float, text: str) -> None:
    assert percent(share) == text


def test_one_run_says_how_many_how_well_what_was_kept_and_who_is_worst_off(make_run: Make) -> None:
    folder = make_run(people=20)
    (run,) = read_runs([str(folder)])
    title, more = said(folder)
    worst, person = next(iter(run.people.items()))
    middle = percent(median(one.values[ACCURACY] for one in run.people.values()))
    kept = percent(median(one.values[KEPT] for one in run.people.values()))
    assert title == (
        f"20 people: the median adapter judges {middle} of held-out pairs as its person did and keeps {kept} of what "
        f"the base knew; worst off is {worst} with {percent(person.values[ACCURACY])}."
    )
    assert more[0].startswith(f"{worst} is served worst: ") and f"of {person.pairs} pairs (95% interval" in more[0]
    assert "of 20 the 95% interval of the accuracy lies above one half" in more[1]


def test_one_person_is_neither_best_nor_worst(make_run: Make) -> None:
    title, more = said(make_run(people=["anna"]))
    assert title.startswith("One person, anna: the adapter judges ") and "worst" not in title + " ".join(more)
    assert more[0].startswith("The accuracy's 95% interval is ")


def test_nobody_is_called_worst_where_all_are_the_same(make_run: Make, change: Any) -> None:
    folder = make_run(people=3)
    change(folder, accuracies(1.0, 1.0, 1.0))
    title, _ = said(folder)
    assert "; all have one accuracy, and " in title and " kept least, " in title
    folder = make_run("bare", people=3, probes=False)
    change(folder, accuracies(1.0, 1.0, 1.0))
    assert said(folder)[0].endswith("what it kept was not measured; nobody is worse off than another.")


def test_a_shared_last_place_is_said(make_run: Make, change: Any) -> None:
    folder = make_run(people=4)
    change(folder, accuracies(0.5, 0.5, 0.5, 0.9))
    assert "2 more have the same accuracy" in said(folder)[1][0]


def test_people_without_a_result_are_counted(make_run: Make, change: Any) -> None:
    folder = make_run(people=4)
    change(folder, accuracies(0.5, None, 0.7, 0.9))
    change(folder, lambda content: content["skipped"].update(dora="no pairs"))
    title, more = said(folder)
    assert title.startswith("3 people: ")
    assert "1 more person could not be trained" in more[-1] and "1 more person has no held-out pairs" in more[-1]
    change(folder, accuracies(None, None, None, None))
    assert said(folder)[0] == "4 people measured, nobody on held-out pairs."
    change(folder, lambda content: content["people"].clear())
    assert said(folder)[0].startswith("0 people measured")


def test_several_runs_are_told_apart_by_what_they_are_best_in(make_run: Make) -> None:
    bapo, dpo = make_run("bapo", people=40), make_run("dpo", people=40, method="dpo", forgets=0.15)
    title, more = said(bapo, dpo)
    runs = {run.name: run for run in read_runs([str(bapo), str(dpo)])}
    mean = {name: sum(p.values[KEPT] for p in run.people.values()) / 40 for name, run in runs.items()}
    assert title.startswith("Two runs: ")
    assert f"keeps most of what the base knew ({percent(mean['bapo'])} against {percent(mean['dpo'])})" in title
    assert "serves the worst off best" in title and "which may be chance" in title
    assert [sentence.partition(":")[0] for sentence in more] == ["bapo", "dpo"]
    assert said(bapo, dpo, comparable=False)[0] == "Two runs on different data or bases, beside each other."


def test_runs_that_are_level_share_the_place(make_run: Make, change: Any) -> None:
    folders = [make_run(name, people=3) for name in "ab"]
    title, _ = said(*folders)
    assert "a and b agree with people most often" in title and "against" not in title
    for folder, last in zip(folders, (0.9, 0.912), strict=True):
        change(folder, accuracies(0.9, 0.9, last))
    assert "b agrees with people most often (90.4% against 90.0%, too few people to tell)" in said(*folders)[0]


def test_a_lead_that_chance_may_make_is_called_so(make_run: Make, change: Any) -> None:
    folders = [make_run(name, people=12) for name in "ab"]
    change(folders[0], accuracies(*(0.6, 0.9) * 6))
    change(folders[1], accuracies(*(0.91, 0.6) * 6))
    assert "b agrees with people most often (76% against 75%, which may be chance)" in said(*folders)[0]
    change(folders[1], accuracies(*(0.61, 0.91) * 6))
    assert "b agrees with people most often (76% against 75%)" in said(*folders)[0]


def test_of_many_runs_the_ends_of_the_others_are_said(make_run: Make, change: Any) -> None:
    folders = [make_run(name, people=2) for name in "abcd"]
    for folder, accuracy in zip(folders, (0.6, 0.9, 0.7, 0.8), strict=True):
        change(folder, accuracies(accuracy, accuracy))
    assert "b agrees with people most often (90% against 60% to 80%, too few people to tell)" in said(*folders)[0]


def test_a_judge_is_quoted_where_there_is_one(make_run: Make, change: Any) -> None:
    folders = [make_run(name, people=3) for name in "ab"]
    assert "win" not in " ".join(said(folders[0])[1])
    for folder, won in zip(folders, (0.5, 0.75), strict=True):

        def judge(content: dict[str, Any], won: float = won) -> None:
            for person in content["people"].values():
                person["win_rate"] = {"raw": won}

        change(folder, judge)
    assert "the median person's win 50%" in " ".join(said(folders[0])[1])
    assert "b wins against the base most often (75% against 50%, too few people to tell)" in said(*folders)[0]
