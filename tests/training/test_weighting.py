"""The weighting seat: what rows count, how groups are weighed, logged, checkpointed and chosen by."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pluralign.config import BaseAnchorConfig, GroupWeightingConfig, WeightingConfig
from pluralign.errors import InputError
from pluralign.preferences.schema import Preference
from pluralign.training import train
from pluralign.training.ascent import AscentStep, GroupAscent
from pluralign.training.batches import Draw, PreferenceCollator
from pluralign.training.weighting import NO_GROUP, Weighting

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "group_robust.json").read_text())
CASES = {case["name"]: case for case in GOLDEN["cases"] if not case["inputs"]["importance_sampling"]}


def preferences(groups: str) -> list[Preference]:
    return [Preference("p", "c", "r", group=name) for name in groups]


def weighting(by: Any, rows: list[Preference], **settings: Any) -> Weighting:
    return Weighting(WeightingConfig(groups=GroupWeightingConfig(by=by, **settings)), rows)


# ---- rows ----


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=30))
def test_importance_gives_every_group_the_same_weight(groups: list[str]) -> None:
    rows = preferences("".join(groups))
    seat = weighting("importance", rows)
    counts = Counter(groups)
    weights = {str(row.group): seat.weight(row) for row in rows}
    assert sum(seat.weight(row) for row in rows) == pytest.approx(len(rows))
    assert all(weights[name] * count == pytest.approx(len(rows) / len(counts)) for name, count in counts.items())


def test_sampling_draws_every_group_as_often() -> None:
    rows = preferences("a" * 900 + "b" * 100)
    draw = Draw(weighting("sampling", rows).chances(rows))
    order = draw.order(1000, torch.Generator().manual_seed(0))
    assert sum(number < 900 for number in order) / 1000 == pytest.approx(0.5, abs=0.06)
    assert order == draw.order(1000, torch.Generator().manual_seed(0))


@given(st.lists(st.booleans(), min_size=2, max_size=60), st.integers(0, 99))
def test_good_and_bad_completions_are_spread_evenly(sides: list[bool], seed: int) -> None:
    order = Draw(sides=sides).order(len(sides), torch.Generator().manual_seed(seed))
    assert sorted(order) == list(range(len(sides)))
    share, good = sum(sides) / len(sides), 0
    for place, number in enumerate(order, 1):
        good += sides[number]
        assert abs(good - place * share) <= 1


@pytest.mark.parametrize("by", ["importance", "sampling", "worst"])
def test_other_rows_of_a_policy_keep_the_groups_and_their_weights(by: str) -> None:
    first = weighting(by, preferences("aab"))
    rows = preferences("bbbc")
    later = Weighting(first.config, rows, among=first)
    assert later.names == ["a", "b"] and [later.group(row) for row in rows] == [1, 1, 1, NO_GROUP]
    assert later.ascent is first.ascent
    # What a row counts follows from the rows that are there: no share is lost to a group that has none.
    fresh = weighting(by, rows[:3])
    assert [later.weight(row) for row in rows[:3]] == pytest.approx([fresh.weight(row) for row in rows[:3]])
    assert (later.chances(rows) or [])[:3] == (fresh.chances(rows[:3]) or [])


def test_rows_for_an_anchor_belong_to_no_group() -> None:
    rows = preferences("ab")
    seat = weighting("worst", rows)
    assert seat.group(replace(rows[0], chosen=None, rejected=None)) == NO_GROUP
    assert [seat.group(row) for row in rows] == [0, 1]
    assert seat.group(replace(rows[0], group="nobody's")) == NO_GROUP


def test_a_group_may_be_any_column() -> None:
    rows = [Preference("p", "c", "r", user="u", columns={"region": name}) for name in (3, "x")]
    assert weighting("worst", rows, column="region").names == ["3", "x"]
    assert weighting("worst", rows, column="user").names == ["u"]


# ---- the ascent ----


@pytest.mark.parametrize("name", CASES)
def test_batch_by_batch_the_weights_are_the_official_ones(name: str) -> None:
    """The recorded losses through the state that a policy keeps: group weights, and what every loss counts."""
    inputs, expected = CASES[name]["inputs"], CASES[name]["expected"]
    sizes = torch.tensor(inputs["group_sizes"], dtype=torch.float64)
    settings = GroupWeightingConfig(
        by="worst",
        step_size=inputs["step_size"],
        adjustment=inputs["adjustment_C"],
        scale="sum" if inputs["divide_by_totalcount"] else "mean",
        update="batch",
    )
    ascent = GroupAscent(settings, [str(number) for number in range(len(sizes))], sizes)
    for batch, recorded in zip(inputs["micro_batches"], expected["steps"], strict=True):
        groups = torch.tensor(batch["group"])
        totals = torch.bincount(groups, minlength=len(sizes)).double()
        losses = torch.tensor(recorded["losses"], dtype=torch.float64)
        step = AscentStep(ascent, totals, rate=1.0)
        factors = step.factors(losses, torch.ones_like(losses), groups)
        step.end()
        weights = torch.tensor(recorded["group_weights"], dtype=torch.float64)
        torch.testing.assert_close(ascent.weights, weights, rtol=1e-6, atol=1e-9)
        counts = torch.tensor(recorded["per_example_weight"], dtype=torch.float64)
        torch.testing.assert_close(factors / totals.sum(), counts, rtol=1e-6, atol=1e-9)


def test_the_step_size_follows_the_learning_rate() -> None:
    sizes = torch.tensor([1.0, 1.0], dtype=torch.float64)
    sums, totals = torch.tensor([2.0, 0.0]), torch.ones(2)

    def moved(rate: float, factor: float) -> float:
        ascent = GroupAscent(GroupWeightingConfig(step_size=1.0, step_factor=factor), ["a", "b"], sizes)
        ascent.move(sums, totals, rate=rate)
        return float((ascent.weights[0] / ascent.weights[1]).log())

    assert moved(0.01, 1.0) == pytest.approx(2.0)
    assert moved(0.01, 0.5) == pytest.approx(2.0 / 4)
    assert moved(0.01, 0.1) == pytest.approx(2.0 / 100)
    assert moved(0.0, 0.5) == 0.0


# ---- in training ----


@pytest.fixture
def table(make_rows: Any) -> list[dict[str, Any]]:
    """Twelve rows of one group and four of another, and one that stands alone."""
    rows = make_rows(["a"], 12) + make_rows(["b"], 4) + make_rows(["c"], 1)
    return [{"group": row["user"], **{key: value for key, value in row.items() if key != "user"}} for row in rows]


def grouped(make_config: Any, table: Any, name: str = "run", *, by: str = "worst", **changes: Any) -> Any:
    groups = {key: changes.pop(key) for key in ("step_size", "update", "scale", "trade_off") if key in changes}
    seat = GroupWeightingConfig(by=by, **groups)  # type: ignore[arg-type]
    return make_config(
        table,
        name,
        **{"parameters": {"per": "none"}, "weighting": {"groups": seat}, "data": {"validation": 0.0}} | changes,
    )


def test_step_size_0_is_the_balanced_loss(make_config: Any, table: Any, metrics: Any, weights: Any) -> None:
    """Where a step holds everybody: the mean over groups of their means, as importance weights make it."""
    training = {"per_device_train_batch_size": 17, "num_train_epochs": 3}
    even = train(grouped(make_config, table, "even", step_size=0.0, training=training))
    importance = train(grouped(make_config, table, "importance", by="importance", training=training))
    torch.testing.assert_close(
        weights(even.adapters["_all"]), weights(importance.adapters["_all"]), rtol=1e-4, atol=1e-6
    )
    for one, other in zip(metrics(even.output_dir), metrics(importance.output_dir), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        mean = sum(one[f"group/{name}/loss"] for name in "abc") / 3
        assert one["loss"] == pytest.approx(mean, rel=1e-4)


def test_weights_and_losses_are_logged_and_the_weights_follow_the_losses(
    make_config: Any, table: Any, metrics: Any
) -> None:
    result = train(grouped(make_config, table, step_size=5.0, training={"per_device_train_batch_size": 17}))
    first, second = metrics(result.output_dir)[:2]
    losses = {name: first[f"group/{name}/loss"] for name in "abc"}
    assert losses == pytest.approx(dict.fromkeys("abc", 0.6931), abs=1e-3)
    assert sum(second[f"group/{name}/weight"] for name in "abc") == pytest.approx(1)
    worst = max("abc", key=lambda name: second[f"group/{name}/loss"])
    assert max("abc", key=lambda name: second[f"group/{name}/weight"]) == worst
    assert second["worst_group/loss"] == max(second[f"group/{name}/loss"] for name in "abc")


@pytest.mark.parametrize("update", ["step", "batch"])
def test_how_a_step_is_cut_into_batches(update: str, make_config: Any, table: Any, weights: Any, metrics: Any) -> None:
    """By step, accumulation changes nothing; by batch, as the official code does, the weights move more often."""
    common = {"update": update, "step_size": 2.0}
    whole = train(grouped(make_config, table, "whole", **common, training={"per_device_train_batch_size": 8}))
    cut = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    parts = train(grouped(make_config, table, "parts", **common, training=cut))
    lines = [metrics(result.output_dir)[1] for result in (whole, parts)]
    same = lines[0]["group/a/weight"] == pytest.approx(lines[1]["group/a/weight"], rel=1e-5)
    assert same == (update == "step")
    if update == "step":
        torch.testing.assert_close(
            weights(whole.adapters["_all"]), weights(parts.adapters["_all"]), rtol=1e-4, atol=1e-6
        )


def test_rows_for_the_anchor_keep_their_share(make_config: Any, table: Any, metrics: Any, tmp_path: Path) -> None:
    """Worst group and prompts without a pair in one run: the weights are of groups that somebody learns from."""
    general = tmp_path / "general.txt"
    general.write_text("Question : the night ?\nQuestion : the spring ?\n")
    anchor = {"base": BaseAnchorConfig(weight=0.3, prompts=str(general), prompts_per_pair=0.5)}
    result = train(grouped(make_config, table, anchor=anchor, training={"per_device_train_batch_size": 32}))
    first, *_, line = metrics(result.output_dir)
    # At first no anchor pulls, and every group's loss is ln 2: eight of 25 rows have none.
    assert first["loss"] == pytest.approx(0.693147 * 17 / 25, abs=1e-5)
    assert {name for name in line if name.endswith("/weight")} == {f"group/{name}/weight" for name in "abc"}


def test_the_best_checkpoint_is_that_of_the_worst_group(make_config: Any, make_rows: Any, metrics: Any) -> None:
    rows = [{**row, "group": row.pop("user")} for row in make_rows(["a", "b"], 16)]
    training = {
        "load_best_model_at_end": True,
        "metric_for_best_model": "worst_group/loss",
        "early_stopping_patience": 1,
        "num_train_epochs": 6,
        "learning_rate": 0.02,
    }
    result = train(grouped(make_config, rows, training=training, data={"validation": 0.25}))
    lines = [line for line in metrics(result.output_dir) if "eval_loss" in line]
    worst = [line["eval_worst_group/loss"] for line in lines]
    assert len(lines) < 6
    assert worst[-2] == min(worst) < worst[-1]
    assert all(line["eval_worst_group/loss"] == max(line[f"eval_group/{n}/loss"] for n in "ab") for line in lines)


@pytest.mark.parametrize("engine", ["bank", "trainer"])
def test_groups_drawn_as_often(engine: str, make_config: Any, table: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The group of one row makes a third of what is trained on, in the bank and in the Trainer alike."""
    drawn = Counter[str]()
    original = PreferenceCollator.__call__

    def counted(self: Any, examples: Any) -> Any:
        drawn.update(str(example.row.preference.group) for example in examples)
        return original(self, examples)

    monkeypatch.setattr(PreferenceCollator, "__call__", counted)
    train(grouped(make_config, table, by="sampling", engine=engine, training={"num_train_epochs": 20}))
    assert drawn.total() == 20 * 17
    assert drawn["c"] / drawn.total() == pytest.approx(1 / 3, abs=0.08)


def test_bank_and_trainer_draw_the_same_rows(make_config: Any, table: Any, weights: Any) -> None:
    runs = [train(grouped(make_config, table, engine, by="sampling", engine=engine)) for engine in ("bank", "trainer")]
    torch.testing.assert_close(*(weights(run.adapters["_all"]) for run in runs), rtol=1e-4, atol=1e-6)


def not_a_number(margin: torch.Tensor, *, beta: float, **_: Any) -> torch.Tensor:
    return margin * torch.nan


@pytest.mark.parametrize("update", ["step", "batch"])
def test_a_loss_that_is_no_number_ends_the_training_with_its_reason(
    update: str, make_config: Any, table: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "losses_of_mine", sys.modules[__name__])
    config = grouped(make_config, table, update=update, loss={"type": "losses_of_mine:not_a_number"})
    assert "the loss is not finite" in train(config).skipped["_all"]


def test_a_group_that_is_only_held_out_has_no_weight(
    make_config: Any, make_rows: Any, metrics: Any, tmp_path: Path
) -> None:
    known = [{**row, "group": row.pop("user")} for row in make_rows(["a", "b"], 8)]
    held = tmp_path / "held.jsonl"
    held.write_text("".join(json.dumps({**row, "group": row.pop("user")}) + "\n" for row in make_rows(["b", "z"], 4)))
    with pytest.warns(UserWarning, match="'z' is held out and nobody learns from it"):
        result = train(grouped(make_config, known, data={"validation": str(held)}))
    line = [line for line in metrics(result.output_dir) if "eval_loss" in line][-1]
    assert "eval_group/b/loss" in line
    assert "eval_group/z/loss" not in line


@pytest.mark.parametrize("update", ["step", "batch"])
@pytest.mark.parametrize("kind", ["plain", "coupled", "anchored"])
def test_the_bank_equals_the_trainer(
    update: str, kind: str, make_config: Any, make_rows: Any, weights: Any, metrics: Any
) -> None:
    """Weights, losses and lines of people with groups of their own, whose forwards are everybody's."""
    rows = [
        row
        for user, pairs, groups in (("a", 12, "xy"), ("b", 5, "z"), ("c", 17, "xyz"))
        for row in make_rows([user], pairs, group=lambda number, groups=groups: groups[number % 4 % len(groups)])
    ]
    training = {
        "num_train_epochs": 3,
        "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": 2,
        "learning_rate": 5e-3,
        "lr_scheduler_type": "cosine",
        "logging_steps": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "worst_group/loss",
    }
    changes: dict[str, Any] = {"training": training, "data": {"validation": 0.25}, "dtype": "float64"}
    changes["weighting"] = {"groups": GroupWeightingConfig(by="worst", step_size=2.0, step_factor=0.5, update=update)}  # type: ignore[arg-type]
    changes["parameters"] = {"per": "user"}
    if kind == "coupled":
        changes["loss"] = {"type": "kto"}
    if kind == "anchored":
        # Rows of no group among the others, the base in the same forward, forwards that run again in the backward.
        only = ({"prompt": f"Question : spring {n} ?", "base": " the river .", "group": "x"} for n in range(6))
        rows = [
            row
            for pair in zip_longest(rows, ({"user": "ac"[n % 2], **row} for n, row in enumerate(only)))
            for row in pair
            if row
        ]
        changes |= {"anchor": {"base": BaseAnchorConfig(weight=0.3)}, "reference": {"compute": "forward"}}
        training["gradient_checkpointing"] = True
        settings = {"scale": "unbiased", "adjustment": 1.0, "trade_off": 0.7}
        changes["weighting"]["groups"] = replace(changes["weighting"]["groups"], **settings)
    alone = train(make_config(rows, "alone", engine="trainer", **changes))
    bank = {"slots": 2, "batch_tokens": 300}
    together = train(make_config(rows, "together", engine="bank", bank=bank, **changes))
    moved = []
    for user in "abc":
        torch.testing.assert_close(
            weights(together.adapters[user]), weights(alone.adapters[user]), rtol=1e-8, atol=1e-12
        )
        for one, other in zip(*(metrics(run.output_dir, user) for run in (alone, together)), strict=True):
            assert list(one) == list(other)
            for name, value in one.items():
                if isinstance(value, float) and not name.endswith(("accuracies", "accuracy")):
                    assert other[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
            moved += [value for name, value in other.items() if name.endswith("/weight")]
    assert len({round(value, 6) for value in moved}) > 10


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"step_size": -1.0}, r"weighting\.groups\.step_size is -1\.0"),
        ({"step_size": float("inf")}, r"weighting\.groups\.step_size is inf"),
        ({"step_factor": 0.0}, r"weighting\.groups\.step_factor is 0\.0"),
        ({"trade_off": 1.5}, r"weighting\.groups\.trade_off is 1\.5"),
        ({"adjustment": -0.1}, r"weighting\.groups\.adjustment is -0\.1"),
        ({"by": "importance", "step_size": 0.2}, r"step_size is 0\.2, and by is importance"),
        ({"column": "region"}, r"no row has the column 'region'.*weighting\.groups\.column is one of: group"),
    ],
)
def test_bad_settings_are_named(settings: Any, found: str, make_config: Any, table: Any) -> None:
    seat = GroupWeightingConfig(**{"by": "worst", **settings})
    with pytest.raises(InputError, match=found):
        train(make_config(table, parameters={"per": "none"}, weighting={"groups": seat}))


@pytest.mark.parametrize("engine", ["bank", "trainer"])
def test_a_metric_that_nobody_measures(engine: str, make_config: Any, make_rows: Any) -> None:
    training = {"metric_for_best_model": "worst_group/loss", "load_best_model_at_end": True}
    with pytest.raises(InputError, match=r"metric_for_best_model is worst_group/loss"):
        train(make_config(make_rows(["a"]), training=training, engine=engine))


def test_a_row_without_a_group_is_left_out_by_name(make_config: Any, make_rows: Any) -> None:
    rows = make_rows(["a"], region=lambda number: "north" if number else None)
    config = grouped(make_config, rows)
    config.weighting.groups.column = "region"
    with pytest.warns(UserWarning, match=r"row 1, column 'region': the row names no group"):
        assert list(train(config).adapters) == ["_all"]
