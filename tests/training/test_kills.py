"""`kill -9` at any moment, inside saves too, and the same command again: the adapters of an undisturbed run."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from pluralign.config import GroupWeightingConfig

KILLED = -9


def _same(weights: Any, users: list[str], first: Path, second: Path) -> None:
    """Tensors to the last bit, lines of metrics, and nothing left behind."""
    for user in users:
        folders = [run / "adapters" / user for run in (first, second)]
        torch.testing.assert_close(*(weights(folder) for folder in folders), rtol=0, atol=0)
        for name in ("adapter_config.json", "pluralign.json"):
            assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    for name in ("metrics.jsonl", "adapters/index.json", "evaluation.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    assert sorted(p.relative_to(first) for p in first.rglob("*")) == sorted(
        p.relative_to(second) for p in second.rglob("*")
    )


SETTINGS: dict[str, Any] = {
    # Checkpoints within epochs, accumulation, lines of metrics over several steps, dropout, early stopping.
    "parameters": {"dropout": 0.1},
    "training": {
        "num_train_epochs": 3,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "logging_steps": 3,
        "load_best_model_at_end": True,
        "early_stopping_patience": 3,
        "warmup_steps": 2,
        "lr_scheduler_type": "cosine",
    },
}


# Of two slots and three people, one moves in where another moved out.
ENGINES: dict[str, dict[str, Any]] = {
    "bank": {"engine": "bank", "bank": {"slots": 2}},
    "trainer": {"engine": "trainer"},
}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_few_kills(engine: str, run: Any, make_rows: Any, make_config: Any, weights: Any) -> None:
    users = ["a", "b", "c"] if engine == "bank" else ["a", "b"]
    table = make_rows(users)
    settings = {**SETTINGS, **ENGINES[engine]}
    undisturbed = make_config(table, "undisturbed", **settings)
    whole = run(undisturbed)
    assert whole["status"] == 0
    config = make_config(table, "run", **settings)
    config.data.path = undisturbed.data.path
    # Shares of all operations; a run that goes on has fewer left to do.
    for share in (0.3, 0.2, 0.25, 0.15):
        assert run(config, die_at=round(whole["events"] * share))["status"] == KILLED
    assert run(config)["status"] == 0
    _same(weights, users, Path(undisturbed.output_dir), Path(config.output_dir))


@pytest.mark.parametrize("engine", ENGINES)
def test_group_weights_go_on_where_they_were(
    engine: str, run: Any, make_rows: Any, make_config: Any, weights: Any
) -> None:
    """Kills of a run whose weights over groups move with every step."""
    users = ["a", "b", "c"] if engine == "bank" else ["a"]
    table = make_rows(users, 16, group=lambda number: "xy"[number % 3 // 2])
    seat = {"groups": GroupWeightingConfig(by="worst", step_size=1.0, step_factor=0.5)}
    settings = {**SETTINGS, "weighting": seat, **ENGINES[engine]}
    undisturbed = make_config(table, "undisturbed", **settings)
    whole = run(undisturbed)
    assert whole["status"] == 0
    config = make_config(table, "run", **settings)
    config.data.path = undisturbed.data.path
    for share in (0.4, 0.3, 0.2):
        assert run(config, die_at=round(whole["events"] * share))["status"] == KILLED
    assert run(config)["status"] == 0
    _same(weights, users, Path(undisturbed.output_dir), Path(config.output_dir))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("save", ["steps", "epoch"])
def test_many_kills(save: str, engine: str, run: Any, make_rows: Any, make_config: Any, weights: Any) -> None:
    """At least 24 kills at random operations on files and at random times, over as many runs as that takes."""
    users = [f"u{number}" for number in range(5)]
    table = make_rows(users)
    training = {**SETTINGS["training"], "save_strategy": save, "eval_strategy": save}
    settings = {**SETTINGS, **ENGINES[engine], "training": training}
    undisturbed = make_config(table, "undisturbed", **settings)
    whole = run(undisturbed)
    assert whole["status"] == 0
    draw = random.Random(1)
    kills = 0
    for number in range(100):
        config = make_config(table, f"run{number}", **settings)
        config.data.path = undisturbed.data.path
        status = KILLED
        while status == KILLED:
            at_once = draw.random() < 0.3
            moment = (
                {"seconds": draw.uniform(0.2, 4.0)} if at_once else {"die_at": draw.randint(1, whole["events"] // 3)}
            )
            status = run(config, **(moment if kills < 24 else {}))["status"]
            kills += status == KILLED
        assert status == 0
        _same(weights, users, Path(undisturbed.output_dir), Path(config.output_dir))
        if kills >= 24:
            return
    pytest.fail(f"only {kills} kills")


@pytest.mark.slow
def test_a_kill_while_anchoring_changes_only_rounding(
    run: Any, make_rows: Any, make_config: Any, weights: Any, tmp_path: Path
) -> None:
    """With a cache of its own, cut off in the middle: references come from other batches than undisturbed."""
    table = make_rows(["a", "b"])
    undisturbed = make_config(table, "undisturbed")
    assert run(undisturbed)["status"] == 0
    config = make_config(table, "run", cache_dir=str(tmp_path / "own"))
    config.data.path = undisturbed.data.path
    for seconds in (0.6, 0.8, 1.0):
        run(config, seconds=seconds)
    assert run(config)["status"] == 0
    for user in "ab":
        folders = [Path(one.output_dir) / "adapters" / user for one in (undisturbed, config)]
        torch.testing.assert_close(*map(weights, folders), rtol=1e-5, atol=1e-6)
