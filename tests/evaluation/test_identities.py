"""Does the model listen: held-out pairs under the right identity, under another one, under none."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from pluralign.config import ConditioningConfig
from pluralign.evaluation import read_evaluation
from pluralign.evaluation.identities import Listening
from pluralign.evaluation.results import merged, without
from pluralign.models.adapters import detach_adapter, load_adapter
from pluralign.preferences import ALL, Preference, Preferences
from pluralign.preferences.conditioning import Conditioner

Rows = Callable[..., list[Preference]]


def variants(population: Any, rows: list[Preference], **settings: Any) -> tuple[list[Any], dict[str, list[Any]]]:
    """Held-out rows and the same under other identities, anchored, as the end of a run makes them."""
    conditioner = Conditioner(ConditioningConfig("[{group}] {prompt}", **settings))
    table = conditioner.condition(Preferences(rows))
    others = conditioner.under_others(table.rows, conditioner.identities(rows), seed=0)
    return population.anchored(table.rows), {name: population.anchored(some) for name, some in others.items()}


def margins(policy: Any, rows: list[Any]) -> list[float]:
    """By one forward a response, without the batches of the code under test."""

    def ratio(row: Any, side: str) -> float:
        prompt, response = row.encoded.prompt_ids, row.encoded.response_ids[side]
        with torch.no_grad():
            logits = policy(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        return float(logits.log_softmax(-1)[range(len(response)), response].sum()) - row.reference[side]

    return [ratio(row, "chosen") - ratio(row, "rejected") for row in rows]


@pytest.mark.parametrize("per", ["none", "user"])
def test_figures_are_those_of_a_direct_computation(population: Any, make_rows: Rows, per: str) -> None:
    users = ["ann", "ben", "cem"]
    held_out, others = variants(population, make_rows(users))
    owners = [ALL] if per == "none" else users
    adapters = {one: population.adapter(one, 0.5, seed=number) for number, one in enumerate(owners)}
    found = population.evaluate(adapters, held_out, per=per, other_identities=others, generate=False).identities
    direct: dict[str, list[float]] = {"right": [], "random": [], "missing": []}
    groups = []
    for owner, folder in adapters.items():
        policy = load_adapter(population.base, folder)
        for name, rows in {"right": held_out, **others}.items():
            own = [row for row in rows if row.preference.owner(per) == owner]
            direct[name] += margins(policy, own)
        groups += [row.preference.group for row in held_out if row.preference.owner(per) == owner]
        detach_adapter(policy)
    assert found["reason"] is None
    assert found["groups"].keys() == {"group-0", "group-1"}
    for part, mine in (("all", None), ("group-0", "group-0"), ("group-1", "group-1")):
        figures = found["all"] if part == "all" else found["groups"][part]
        chosen = {
            name: [value for value, group in zip(values, groups, strict=True) if mine in (None, group)]
            for name, values in direct.items()
        }
        assert figures["n"] == len(chosen["right"]) > 0
        for name, values in chosen.items():
            assert figures[name]["accuracy"] == sum(value > 0 for value in values) / len(values)
            assert figures[name]["margin"] == pytest.approx(sum(values) / len(values), abs=1e-3)
        gained = [float(a > 0) - float(b > 0) for a, b in zip(chosen["right"], chosen["random"], strict=True)]
        assert figures["accuracy_difference"] == pytest.approx(sum(gained) / len(gained))
        low, high = figures["accuracy_difference_interval"]
        assert low <= figures["accuracy_difference"] <= high
        low, high = figures["margin_difference_interval"]
        assert low <= figures["margin_difference"] <= high
        assert figures["margin_difference"] == pytest.approx(figures["right"]["margin"] - figures["random"]["margin"])


def test_other_figures_do_not_change_with_identities(population: Any, make_rows: Rows) -> None:
    held_out, others = variants(population, make_rows(["ann", "ben"]))
    adapters = {ALL: population.adapter(ALL, 0.3)}
    plain = population.evaluate(adapters, held_out, per="none").as_dict()
    listened = population.evaluate(adapters, held_out, per="none", other_identities=others).as_dict()
    identities = listened.pop("identities")
    assert "identities" not in plain
    for person, results in plain["people"].items():
        for part, key in (("pairs", "margin"), ("pairs", "accuracy"), ("base_responses", "kl_per_token")):
            assert listened["people"][person][part][key] == pytest.approx(results[part][key], rel=1e-4, abs=1e-5)
        assert listened["people"][person]["behaviour"]["samples"] == results["behaviour"]["samples"]
    assert identities["all"]["n"] == sum(person["pairs"]["n"] for person in plain["people"].values())
    right = [person["pairs"]["accuracy"] * person["pairs"]["n"] for person in plain["people"].values()]
    assert identities["all"]["right"]["accuracy"] == pytest.approx(sum(right) / identities["all"]["n"])


def test_a_fresh_adapter_listens_to_nobody(population: Any, make_rows: Rows) -> None:
    held_out, others = variants(population, make_rows(["ann", "ben"]))
    found = population.evaluate(
        {ALL: population.adapter(ALL)}, held_out, per="none", other_identities=others
    ).identities
    for name in ("right", "random", "missing"):
        assert found["all"][name]["margin"] == pytest.approx(0, abs=1e-4)
    assert found["all"]["margin_difference"] == pytest.approx(0, abs=1e-4)


def test_with_a_single_identity_the_difference_is_not_measured_and_that_is_said(
    population: Any, make_rows: Rows
) -> None:
    held_out, others = variants(population, make_rows(["ann", "ben"], group="law"))
    assert others.keys() == {"missing"}
    evaluation = population.evaluate({ALL: population.adapter(ALL, 0.3)}, held_out, per="none", other_identities=others)
    found = evaluation.identities
    assert found["all"]["random"] is None and found["all"]["missing"]["accuracy"] is not None
    assert (found["all"]["accuracy_difference"], found["all"]["margin_difference_interval"]) == (None, None)
    assert "single identity" in found["reason"]
    console = Console(file=io.StringIO(), width=100)
    console.print(evaluation.table())
    assert "single identity" in console.file.getvalue()  # type: ignore[attr-defined]


def test_rows_without_pairs_and_without_groups(population: Any, make_rows: Rows) -> None:
    rows = make_rows(["ann", "ben"], pairs=2)
    rows[0].rejected = rows[4].rejected = None
    held_out, others = variants(population, rows)
    for row in (*held_out, *others["random"], *others["missing"]):
        row.preference.group = None
    found = population.evaluate(
        {ALL: population.adapter(ALL, 0.3)}, held_out, per="none", other_identities=others
    ).identities
    assert (found["all"]["n"], found["groups"]) == (4, {})
    nothing = population.evaluate({ALL: population.adapter(ALL)}, [], per="none", other_identities={}).identities
    assert nothing["all"]["n"] == 0 and nothing["all"]["right"] is None and nothing["reason"] is None


def test_a_person_who_cannot_be_loaded_is_in_no_figure(population: Any, make_rows: Rows) -> None:
    held_out, others = variants(population, make_rows(["ann", "ben"]))
    adapters = {"ann": population.adapter("ann", 0.3), "ben": population.folder / "nowhere"}
    found = population.evaluate(adapters, held_out, other_identities=others)
    assert list(found.skipped) == ["ben"]
    assert found.identities["all"]["n"] == 7
    some = population.evaluate(
        {**adapters, "ben": population.adapter("ben")}, held_out, other_identities=others, only=["ben"]
    )
    assert some.identities["all"]["n"] == 7


def test_weights_that_are_no_numbers_are_wrong_everywhere(population: Any, make_rows: Rows, tmp_path: Path) -> None:
    held_out, others = variants(population, make_rows(["ann", "ben"]))
    adapters = {ALL: population.adapter(ALL, math.nan)}
    evaluation = population.evaluate(adapters, held_out, per="none", other_identities=others, generate=False)
    path = evaluation.write(tmp_path / "evaluation.json")
    found = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))["identities"]
    assert (found["all"]["right"]["accuracy"], found["all"]["right"]["margin"]) == (0.0, None)
    assert (found["all"]["accuracy_difference"], found["all"]["margin_difference"]) == (0.0, None)


def test_it_is_read_back_and_left_out_where_people_come_or_go(population: Any, make_rows: Rows, tmp_path: Path) -> None:
    held_out, others = variants(population, make_rows(["ann", "ben"]))
    adapters = {user: population.adapter(user, 0.3) for user in ("ann", "ben")}
    found = population.evaluate(adapters, held_out, other_identities=others)
    again = read_evaluation(found.write(tmp_path / "evaluation.json"))
    assert json.dumps(again.identities) == json.dumps(found.as_dict()["identities"])
    assert without(again, ["ann"]).identities is None
    assert merged(again, found, order=["ann", "ben"]).identities is None
    assert "identities" not in without(again, ["ann"]).as_dict()


def test_rows_that_do_not_fit_the_held_out_ones_are_no_measurement(population: Any, make_rows: Rows) -> None:
    held_out, others = variants(population, make_rows(["ann", "ben"]))
    others["random"] = others["random"][1:]
    with pytest.raises(ValueError, match="zip"):
        population.evaluate({ALL: population.adapter(ALL)}, held_out, per="none", other_identities=others)


def test_the_table_shows_groups_least_attentive_first_within_its_width(population: Any, make_rows: Rows) -> None:
    held_out, others = variants(population, make_rows(["ann", "ben"]))
    evaluation = population.evaluate({ALL: population.adapter(ALL, 0.5)}, held_out, per="none", other_identities=others)
    parts = evaluation.identities
    parts["groups"] = {
        f"group [b]{number:02d}": {**parts["all"], "accuracy_difference": -number / 100} for number in range(25)
    }
    shown = {}
    for width in (80, 100):
        console = Console(file=io.StringIO(), width=width)
        console.print(evaluation.table())
        text = console.file.getvalue()  # type: ignore[attr-defined]
        assert max(map(len, text.splitlines())) <= width
        shown[width] = text[text.index("does the model listen?") :]
        assert "5 more groups are in evaluation.json" in shown[width]
    names = re.findall(r"group \[b\](\d\d)", shown[100])
    assert names == [f"{number:02d}" for number in range(24, 4, -1)]


def test_without_rows_there_is_nothing_to_hear() -> None:
    found = Listening.of({"random": [], "missing": []}, {}, per="none")
    assert found.requests("ann") == [] and found.results()["all"]["n"] == 0
