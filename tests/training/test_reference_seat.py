"""The reference seat in training: given, several, moving; adapters that begin with given weights; two stages."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pluralign.config import BaseAnchorConfig, GroupWeightingConfig, LossConfig, TrainConfig
from pluralign.errors import InputError
from pluralign.resolve import resolve
from pluralign.training import train

MODEL = Path(__file__).parents[1] / "golden" / "dpo_trajectory"
ADAPTER = str(MODEL / "adapter")


def lines_of(metrics: Any, result: Any) -> list[dict[str, Any]]:
    return [line for line in metrics(result.output_dir) if "loss" in line]


@pytest.mark.parametrize("engine", ["bank", "trainer"])
@pytest.mark.parametrize("combine", ["harmonic", "geometric", "losses"])
def test_equal_references_are_one(combine: str, engine: str, make_rows: Any, make_config: Any, weights: Any) -> None:
    table = make_rows(["a", "b"])
    one = train(make_config(table, "one", engine=engine))
    reference = {"models": ["base", "base", "base"], "combine": combine, "weights": [0.2, 0.3, 0.5]}
    three = train(make_config(table, "three", engine=engine, reference=reference))
    for user in "ab":
        adapters = [weights(run.adapters[user]) for run in (one, three)]
        torch.testing.assert_close(*adapters, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*has no pluralign.json")
@pytest.mark.parametrize("engine", ["bank", "trainer"])
def test_who_begins_with_the_reference_begins_at_its_loss(
    engine: str, make_rows: Any, make_config: Any, metrics: Any
) -> None:
    common = {"engine": engine, "parameters": {"start": ADAPTER}}
    same = train(make_config(make_rows(["a"]), "same", reference={"models": [ADAPTER]}, **common))
    assert lines_of(metrics, same)[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    other = train(make_config(make_rows(["a"]), "other", **common))
    assert abs(lines_of(metrics, other)[0]["rewards/margins"]) > 1e-3


def test_the_base_anchor_keeps_to_the_base(make_rows: Any, make_config: Any, metrics: Any) -> None:
    """Whatever the pair is compared with: a fresh adapter has lost nothing of the base's own response."""
    anchor = {"base": BaseAnchorConfig(weight=0.3, form="absolute")}
    result = train(make_config(make_rows(["a"]), anchor=anchor, reference={"models": [ADAPTER]}))
    first = lines_of(metrics, result)[0]
    assert first["anchor/loss"] == 0
    assert abs(first["rewards/margins"]) > 1e-3


@pytest.mark.parametrize("decay", [0.0, 0.5, 1 - 1e-9])
def test_a_moving_reference(decay: float, make_rows: Any, make_config: Any, metrics: Any, weights: Any) -> None:
    table = make_rows(["a"])
    moving = train(make_config(table, "moving", engine="trainer", reference={"ema": decay}))
    margins = [line["rewards/margins"] for line in lines_of(metrics, moving)]
    assert abs(margins[0]) < 1e-6
    if decay == 0:
        assert max(map(abs, margins)) < 1e-6
    fixed = train(make_config(table, "fixed", engine="trainer"))
    same = all(
        torch.allclose(value, weights(fixed.adapters["a"])[name], rtol=1e-4, atol=1e-6)
        for name, value in weights(moving.adapters["a"]).items()
    )
    assert same == (decay > 0.9)


@pytest.mark.slow
def test_a_moving_reference_goes_on_where_it_was(
    run: Any, make_rows: Any, make_config: Any, weights: Any, metrics: Any
) -> None:
    training = {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 3}
    common = {"engine": "trainer", "reference": {"ema": 0.8}, "training": training}
    whole = make_config(make_rows(["a"]), "whole", **common)
    done = run(whole)
    assert done["status"] == 0
    again = make_config(make_rows(["a"]), "again", **common)
    again.data.path = whole.data.path
    for share in (0.4, 0.3):
        assert run(again, die_at=round(done["events"] * share))["status"] == -9
    assert run(again)["status"] == 0
    folders = [Path(one.output_dir) for one in (whole, again)]
    torch.testing.assert_close(*(weights(one / "adapters" / "a") for one in folders), rtol=0, atol=0)
    assert metrics(folders[0]) == metrics(folders[1])


def test_a_reference_that_has_changed_is_another_run(make_rows: Any, make_config: Any, tmp_path: Path) -> None:
    table = make_rows(["a"])
    other = train(make_config(table, "other", parameters={"per": "none"})).adapters["_all"]
    config = make_config(table, reference={"models": [str(other), "base"]})
    train(config)
    assert train(config).adapters
    train(make_config(table, "other", parameters={"per": "none"}, seed=1, overwrite=True))
    with pytest.raises(InputError, match=r"differs in the content of reference\.models"):
        train(config)
    assert train(replace(config, overwrite=True)).adapters


# ---- two stages ----


@pytest.mark.parametrize("kind", ["sigmoid", "ipo"])
def test_two_stages_as_one_configuration(
    kind: str, make_rows: Any, make_config: Any, metrics: Any, weights: Any, tmp_path: Path
) -> None:
    table = make_rows(["a"])
    common = {"parameters": {"per": "none"}, "loss": {"type": kind}}
    both = train(make_config(table, "both", sft={"num_train_epochs": 2.0, "learning_rate": 1e-3}, **common))
    assert (both.output_dir / "sft" / "adapters" / "_all" / "adapter_model.safetensors").is_file()
    assert abs(lines_of(metrics, both)[0]["rewards/margins"]) < 1e-5
    first = make_config(
        table,
        "first",
        method="sft",
        parameters={"per": "none"},
        loss=LossConfig(type="nll", length_average=True),
        training={"num_train_epochs": 2.0, "learning_rate": 1e-3},
    )
    sft = str(train(first).adapters["_all"])
    torch.testing.assert_close(weights(sft), weights(both.output_dir / "sft" / "adapters" / "_all"), rtol=0, atol=0)
    parameters = {"per": "none", "start": sft}
    apart = train(make_config(table, "second", reference={"models": [sft]}, **{**common, "parameters": parameters}))
    torch.testing.assert_close(*(weights(one.adapters["_all"]) for one in (both, apart)), rtol=0, atol=0)


def test_a_run_of_two_stages_moves_and_is_given_back(make_rows: Any, make_config: Any, tmp_path: Path) -> None:
    config = make_config(make_rows(["a"]), parameters={"per": "none"}, sft={"num_train_epochs": 1.0})
    first = train(config)
    written = resolve(TrainConfig, first.output_dir / "config.yaml")
    assert written.parameters.start is None
    assert train(written).adapters
    moved = first.output_dir.rename(tmp_path / "moved")
    again = train(replace(config, output_dir=str(moved)))
    assert again.adapters == {"_all": moved / "adapters" / "_all"}


@pytest.mark.parametrize(
    "changes",
    [{"loss": {"type": "nonsense"}}, {"weighting": {"groups": GroupWeightingConfig(by="worst", step_size=-1.0)}}],
)
def test_the_second_stage_is_checked_before_the_first(changes: Any, make_rows: Any, make_config: Any) -> None:
    config = make_config(make_rows(["a"]), parameters={"per": "none"}, sft={"num_train_epochs": 1.0}, **changes)
    with pytest.raises(InputError):
        train(config)
    assert not Path(config.output_dir).exists()


def test_another_adapter_to_begin_with_is_another_run(make_rows: Any, make_config: Any) -> None:
    table = make_rows(["a"])
    start = str(train(make_config(table, "start", parameters={"per": "none"})).adapters["_all"])
    config = make_config(table, parameters={"start": start})
    train(config)
    train(make_config(table, "start", parameters={"per": "none"}, seed=1, overwrite=True))
    with pytest.raises(InputError, match=r"differs in the content of parameters\.start"):
        train(config)


@pytest.mark.slow
def test_a_killed_first_stage_goes_on(run: Any, make_rows: Any, make_config: Any, weights: Any) -> None:
    common = {"parameters": {"per": "none"}, "sft": {"num_train_epochs": 2.0}}
    common["training"] = {"save_strategy": "steps", "save_steps": 2}
    whole = make_config(make_rows(["a"]), "whole", **common)
    done = run(whole)
    again = make_config(make_rows(["a"]), "again", **common)
    again.data.path = whole.data.path
    for share in (0.2, 0.3, 0.3):
        assert run(again, die_at=round(done["events"] * share))["status"] == -9
    assert run(again)["status"] == 0
    folders = [Path(one.output_dir) / "adapters" / "_all" for one in (whole, again)]
    torch.testing.assert_close(*map(weights, folders), rtol=0, atol=0)


def test_a_first_stage_on_a_table_of_its_own(make_rows: Any, make_config: Any, tmp_path: Path) -> None:
    path = tmp_path / "completions.jsonl"
    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in make_rows(["z"], 8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sft = {"num_train_epochs": 1.0, "data": str(path)}
    assert train(make_config(make_rows(["a"]), parameters={"per": "none"}, sft=sft)).adapters


# ---- what is refused ----


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        (
            {"reference": {"ema": 0.9, "compute": "forward"}},
            r"ema is 0\.9 and reference\.compute is forward",
        ),
        ({"reference": {"ema": 1.0}}, r"reference\.ema is 1\.0"),
        ({"reference": {"ema": 0.9}, "engine": "bank"}, r"cannot train people together .*reference\.ema"),
        ({"reference": {"models": ["nowhere/at-all", "base"]}}, r"reference\.models\[0\] \(nowhere/at-all\)"),
        ({"reference": {"models": ["base", "base"], "weights": [1.0, -1.0]}}, r"reference\.weights is \[1\.0, -1\.0\]"),
        ({"reference": {"models": ["base", "base"], "weights": [0.0, 0.0]}}, r"reference\.weights is \[0\.0, 0\.0\]"),
        ({"reference": {"clip": 0.1}}, r"reference\.clip is 0\.1, and reference\.models names none"),
        ({"parameters": {"start": "nowhere"}}, r"parameters\.start \(nowhere\)"),
        ({"sft": {"num_train_epochs": 1.0}}, r"sft\.num_train_epochs is 1\.0, and parameters\.per is user"),
        ({"sft": {"num_train_epochs": -1.0}}, r"sft\.num_train_epochs is -1\.0"),
        (
            {"sft": {"num_train_epochs": 1.0}, "parameters": {"per": "none"}, "reference": {"ema": 0.5}},
            "the reference is computed in every step",
        ),
    ],
)
def test_what_is_refused(changes: Any, found: str, make_rows: Any, make_config: Any) -> None:
    with pytest.raises(InputError, match=found):
        train(make_config(make_rows(["a"]), **changes))
