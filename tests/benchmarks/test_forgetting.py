"""What the forgetting benchmark makes of trainings: windows, fronts, intervals."""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

FOLDER = Path(__file__).parents[2] / "benchmarks" / "forgetting"
TEXT = ("text_cells", "sources", "tasks")


@pytest.fixture(scope="module", autouse=True)
def on_the_path() -> Iterator[None]:
    """The benchmark's modules import each other by their bare names."""
    before = list(sys.path)
    sys.path[:0] = [str(FOLDER), str(FOLDER.parent)]
    yield
    sys.path[:] = before
    for name in ("fronts", "intervals", "summary", "report", "recipes", "cells", "ground", "mixed", *TEXT):
        sys.modules.pop(name, None)


def module(name: str) -> Any:
    return importlib.import_module(name)


MARKS = (10, 20, 40, 80)


def track(style: list[float], kept: list[float], loss: list[float] | None = None) -> Any:
    return module("fronts").Track(MARKS, tuple(style), tuple(kept), tuple(loss or [1.0] * len(style)))


def test_a_window_is_as_long_as_both_hold() -> None:
    assert track([1, 1, 1, 1], [1, 1, 1, 1]).window == pytest.approx(math.log(8))
    assert track([0, 0, 1, 1], [1, 1, 1, 1]).window == pytest.approx(math.log(2) * 1.05, abs=0.04)
    assert track([1, 1, 1, 1], [1, 1, 0, 0]).window == pytest.approx(math.log(2) * 1.03, abs=0.04)
    assert track([0, 0, 0, 1], [1, 0, 0, 0]).window == 0


def test_the_front_keeps_the_best_of_what_serves() -> None:
    perfect = track([0, 1, 1, 1], [1, 1, 0.2, 0.1])
    assert perfect.area == pytest.approx(1, abs=0.03)
    assert track([0, 0, 0, 0], [1, 1, 1, 1]).area == 0
    # Served by a half at most, and then a half is lost.
    assert track([0, 0.5, 0.5, 0.5], [1, 0.5, 0.5, 0.5]).area == pytest.approx(0.375, abs=0.03)
    assert perfect.front(0) == pytest.approx(1, abs=0.03)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=4, max_size=4))
def test_serving_and_keeping_more_is_never_worse(points: list[tuple[float, float]]) -> None:
    style, kept = [list(values) for values in zip(*points, strict=True)]
    one = track(style, kept)
    better = track([min(1, value + 0.1) for value in style], [min(1, value + 0.1) for value in kept])
    assert 0 <= one.area <= better.area + 1e-9 and better.area <= 1 + 1e-9
    assert 0 <= one.window <= better.window + 1e-9


def test_knowledge_is_the_worst_way_of_asking() -> None:
    measures = {"style": [1.0] * 4, "told": [None] * 4, "base_prefix": [1.0, 0.9, 1.0, 1.0]}
    measures |= dict.fromkeys(("covered", "uncovered", "degenerate"), [0.0] * 4)
    measures |= {"own_prefix": [0.8, 1.0, None, 1.0], "loss": [3.0, 1.0, 2.0, None]}
    found = module("fronts").Track.of(MARKS, measures)
    assert found.kept == (0.8, 0.9, 1.0, 1.0)
    assert found.stopped == 1 and not found.well(1) and found.well(3)


def test_one_setting_is_the_same_mark_for_all() -> None:
    early, late = track([1, 1, 0, 0], [1] * 4), track([0, 1, 1, 1], [1] * 4)
    assert module("fronts").one_setting([early, late]) == (1.0, 20)
    assert module("fronts").one_setting([early, track([0, 0, 1, 1], [1] * 4)])[0] == 0.5


def test_intervals_are_over_worlds_and_pairs_cancel() -> None:
    intervals = module("intervals")
    values = {seed: {user: seed + user / 10 for user in range(5)} for seed in range(5)}
    found = intervals.over_people(values)
    low, high = found.ends
    # Student's t with 4 degrees of freedom: 2.776 standard errors.
    assert found.mean == pytest.approx(2.2) and high - found.mean == pytest.approx(2.776 * math.sqrt(2.5 / 5))
    assert low < 2.2 and found.detectable > found.half
    shifted = {seed: {user: value + 0.3 for user, value in people.items()} for seed, people in values.items()}
    between = intervals.difference(shifted, values)
    assert between.mean == pytest.approx(0.3) and between.detectable == pytest.approx(0, abs=1e-9)


def cell(recipe: str, rate: float, seed: int, quality: float) -> dict[str, Any]:
    """Everybody is served as well as the quality says from the second mark on, and keeps everything."""
    one = {"style": [0.0] + [quality] * 3, **dict.fromkeys(("told", "base_prefix", "own_prefix"), [1.0] * 4)}
    rest = {"covered": [1.0] * 4, "uncovered": [1.0] * 4, "degenerate": [0.0] * 4, "loss": [3.0, 2.0, 1.0, 2.0]}
    likes = {**one, **rest, "style": [1.0] * 4}
    people = {"formal-000": {**one, **rest}, "cheerful-001": {**one, **rest}, "plain-005": likes}
    return {"recipe": recipe, "learning_rate": rate, "seed": seed, "marks": list(MARKS), "people": people}


def test_who_goes_on_is_decided_by_people_who_must_move() -> None:
    summary, recipes = module("summary"), module("recipes").RECIPES
    good = {"dpo b1": 1.0, "hinge0.3 general": 1.0}
    cells = [
        cell(name, rate, seed, good.get(name, 0.5) * (1 if rate == 1e-3 else 0.5))
        for name in recipes
        for rate in (5e-4, 1e-3)
        for seed in (1, 2)
    ]
    rows = summary.rows(cells)
    chosen = summary.finalists(rows, ("hinge0.3", "hinge0.3 general", "hinge0.1"))
    assert chosen[0].recipe == "dpo b0.1" and chosen[1].recipe == "dpo b1" and len(chosen) == 10
    assert {recipes[row.recipe].family for row in chosen[1:7]} == set(summary.BASELINES)
    assert [row.recipe for row in chosen[7:]] == ["hinge0.3", "hinge0.3 general", "hinge0.1"]
    assert {row.learning_rate for row in chosen} == {1e-3}
    lost = next(row for row in rows if row.recipe == "hinge0.1")
    assert lost.window == 0 and lost.windows["likes the base"] > 0
    assert "hinge0.3 general" in summary.markdown(chosen)
    assert "| general prompts | hinge0.3, hinge0.3 general | 1.00x, 4." in summary.changes(rows)


def test_reported_tables_compare_ours_with_every_baseline() -> None:
    report = module("report")
    found = report.by_recipe(
        [
            cell(name, 1e-3, seed, 1.0 if name == "hinge0.3" else 0.6)
            for seed in (1, 2)
            for name in ("dpo b0.1", "hinge0.3")
        ]
    )
    assert "| hinge0.3 | 4." in report.windows(found)
    compared = report.against_others(found)
    assert "window, as a factor: against | hinge0.3 |" in compared and "| dpo b0.1 | 4." in compared
    assert "1.000 [1.000, 1.000]" in report.ends(found)
    errors = {"formal-000": 0.0, "cheerful-001": 0.2, "plain-005": 0.0}
    people = {user: SimpleNamespace(distance=error * 5, noise=error, share=1.0) for user, error in errors.items()}
    shown = report.population(found, people)
    assert "| no errors | 20% wrong | like the base | style in all topics | worst" in shown
    assert "| hinge0.3 | 80 | 1.000 [1.000, 1.000] |" in shown
    # Of three people only the one who likes the base is served by the other.
    assert "| dpo b0.1 | 80 | 0.333 [0.333, 0.333] | 0.500 [0.500, 0.500] | 0.000 [0.000, 0.000] |" in shown
    assert "| dpo b0.1 | 0.667 [0.667, 0.667] (0.000) |" in report.population_against_others(found)


def test_a_changed_recipe_is_another_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    cells, recipes = module("cells"), module("recipes")
    one = cells.Cell("hinge0.3", 5e-4, 1, (0, 1))
    before = one.digest
    assert cells.Cell("hinge0.3", 5e-4, 1, (0, 2)).digest != before
    monkeypatch.setitem(recipes.RECIPES, "hinge0.3", recipes.RECIPES["hinge0.1"])
    assert one.digest != before


def test_general_prompts_leave_alone_what_is_probed(tmp_path: Path) -> None:
    ground = module("ground").Ground(3, tmp_path)
    world = ground.world
    asked = [world.find(probe.question) for probe in ground.probes]
    rows = [json.loads(line) for line in ground.general_prompts.read_text(encoding="utf-8").splitlines()]
    general = [world.find(row["prompt"]) for row in rows]
    assert {item.topic for item in general} == set(ground.covered) and not set(world.inside) & set(ground.covered)
    assert not {item.id for item in general} & {item.id for item in asked}
    assert not {item.entity for item in general if item.entity} & {item.entity for item in asked if item.entity}
    topics = {(probe.scope, item.topic) for probe, item in zip(ground.probes, asked, strict=True)}
    assert {topic for scope, topic in topics if scope == "covered"} == set(ground.covered)


def test_general_questions_on_real_text_are_not_those_that_are_asked(tmp_path: Path) -> None:
    cells = module("text_cells")
    topics = ("art", "birds", "chess", "dance")
    facts = [
        {
            "id": f"{topic}-{number}",
            "question": f"{topic} {number}?",
            "options": ["a", "b"],
            "answer": "a",
            "topic": topic,
        }
        for number in range(60)
        for topic in topics
    ]
    (tmp_path / "learned.jsonl").write_text("".join(json.dumps(fact) + "\n" for fact in facts))
    texts = cells.Texts(tmp_path, tmp_path, tmp_path)
    asked, general = texts.facts()
    assert {fact.topic for fact in asked["covered"]} == {"art", "chess"}
    assert {fact.topic for fact in asked["uncovered"]} == {"birds", "dance"}
    assert general and not set(general) & {fact.question for some in asked.values() for fact in some}
    assert {question.split()[0] for question in general} == {"art", "chess"}
    rows = [json.loads(line)["prompt"] for line in texts.general().read_text().splitlines()]
    assert rows == general


def test_loss_is_drawn_over_distance(tmp_path: Path) -> None:
    report = module("report")
    found = report.by_recipe([cell("dpo b0.1", 1e-3, seed, quality) for seed, quality in ((1, 1.0), (2, 0.6))])
    places = {"formal-000": 1.0, "cheerful-001": 0.3, "plain-005": 0.0}
    people = {user: SimpleNamespace(distance=distance) for user, distance in places.items()}
    bands = report._by_distance(found["dpo b0.1"], people, lambda track: track.style[-1])
    assert [band for band, _ in bands] == [0.0, 0.5, 1.0]
    assert [value.mean for _, value in bands] == [1.0, 0.8, 0.8]


def test_real_text_is_shown_by_manner() -> None:
    report = module("report")
    cells = [cell("dpo b0.1", 1e-3, seed, 0.6) for seed in (1, 2)]
    shown = report.on_text(cells)
    assert "| recipe | learning rate | area under the front | told at manner 0.3 |" in shown
    # Everything is told where the manner is there six times in ten, and nothing where it never is.
    assert "| 1.000 [1.000, 1.000] | 1.000 [1.000, 1.000] | 0.333 [" in shown
    ours = [cell("hinge0.3", 1e-3, seed, quality) for seed, quality in ((1, 1.0), (2, 0.8))]
    against = report.on_text_against_others([*cells, *ours])
    assert "| area under the front, difference: against | hinge0.3 |" in against and "| hinge0.3 |  |" in against
    # By a third in one draw, and hardly in the other: two draws tell nothing.
    assert "| dpo b0.1 | 0.200 [-0.647, 1.047] (0.939) |" in against
    assert "| dpo b0.1 | 0.000 [0.000, 0.000] (0.000) |" in against


def test_one_learning_rate_and_one_moment_are_chosen_for_all() -> None:
    mixed = module("mixed")

    def people(numbers: Sequence[int], style: list[float]) -> dict[str, Any]:
        knows = {name: [1.0, 1.0, 0.9, 0.5] for name in ("told", "base_prefix", "own_prefix")}
        rest = {name: [0.0] * 4 for name in ("covered", "uncovered", "degenerate", "loss")}
        return {f"formal-{number:03d}": {"style": style, **knows, **rest} for number in numbers}

    def made(rate: float, numbers: Sequence[int], style: list[float]) -> dict[str, Any]:
        return {"recipe": "sft", "learning_rate": rate, "marks": list(MARKS), "people": people(numbers, style)}

    harder = [made(rate, (40, 41, 80, 81, 10, 21), [0.0, 0.2, top, top]) for rate, top in ((1e-3, 0.8), (2e-3, 0.6))]
    screen = [made(rate, (0, 1, 7, 5), [0.0, 1.0, 1.0, 1.0]) for rate in (1e-3, 2e-3, 4e-3)]
    (found,) = mixed.settings(screen, harder)
    # At the second mark people without errors are well, and the others not yet; at the third everybody has most.
    assert (found.learning_rate, found.mark) == (1e-3, MARKS[2])
    assert found.least == pytest.approx((4 * 0.9 + 6 * 0.8) / 10) and found.well == 0
    assert found.kinds["no errors"] == (pytest.approx(0.9), 0) and found.kinds["20% wrong"][0] == pytest.approx(0.8)
    assert f"| sft | 0.001 | {MARKS[2]} | 0.840 (0%) | 0.90 (0%) |" in mixed.markdown([found])
    names = ("sft hinge0.01 sampled", "hinge0.3 general", "hinge0.1", "hinge0.3")
    several = [found, *(replace(found, recipe=name) for name in names)]
    assert mixed.preset(several) == "hinge0.1", "it compares pairs, and needs no general prompts"
    assert mixed.best_beside(several, ("hinge0.1", "sft hinge0.01 sampled")) == "hinge0.3 general"
