"""Two real processes give the losses of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from pluralign.config import BaseAnchorConfig, ContrastConfig, GroupWeightingConfig
from pluralign.training import train

SCRIPT = """
import json, sys
from pluralign.config import TrainConfig
from pluralign.resolve import resolve
from pluralign.config import BaseAnchorConfig
from pluralign.training import train
result = train(resolve(TrainConfig, json.loads(sys.argv[1])))
print("RESULT", json.dumps([list(result.adapters), list(result.skipped)]))
"""


def run_two(config: Any, tmp_path: Path) -> list[list[list[str]]]:
    """Two real processes on a configuration; whom each of them reports as trained and as skipped."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, json.dumps(asdict(config))], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line.removeprefix("RESULT")) for line in done.stdout.splitlines() if line.startswith("RESULT")]


def same_runs(one: Path, two: Path, users: list[str], weights: Any, metrics: Any) -> None:
    """Adapters and lines of metrics are the same but for rounding."""
    for line, other in zip(metrics(one), metrics(two), strict=True):
        assert line.keys() == other.keys()
        assert (line.pop("user"), line.pop("step")) == (other.pop("user"), other.pop("step"))
        torch.testing.assert_close(line, other, rtol=1e-4, atol=1e-5)
    for user in users:
        folders = [folder / "adapters" / user for folder in (one, two)]
        torch.testing.assert_close(*map(weights, folders), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_two_processes_divide_people(
    make_rows: Any, make_config: Any, weights: Any, metrics: Any, tmp_path: Path
) -> None:
    """Everybody is trained whole, by one of the two; the results are those of one process."""
    table = [row for user, pairs in {"a": 20, "b.c": 5, "d": 11, "e": 8}.items() for row in make_rows([user], pairs)]
    table.append({"user": "z", "prompt": "Q :", "chosen": " a", "rejected": ""})
    common = {"engine": "bank", "bank": {"slots": 2}, "anchor": {"base": BaseAnchorConfig(weight=0.3)}}
    two = make_config(table, "two", cache_dir=str(tmp_path / "fresh"), **common)
    people = ["a", "b.c", "d", "e"]
    assert run_two(two, tmp_path) == [[people, ["z"]]] * 2
    single = make_config(table, "one", **common)
    single.data.path = two.data.path
    one = train(single)
    for user in people:
        place = one.adapters[user]
        other = Path(two.output_dir) / "adapters" / place.name
        torch.testing.assert_close(weights(other), weights(place), rtol=1e-4, atol=1e-6)
        assert [line["step"] for line in metrics(two.output_dir, user)] == [
            line["step"] for line in metrics(one.output_dir, user)
        ]
    assert sorted(path.name for path in Path(two.output_dir).iterdir()) == sorted(
        path.name for path in one.output_dir.iterdir()
    )
    index = [(Path(run) / "adapters/index.json").read_text() for run in (two.output_dir, one.output_dir)]
    assert index[0] == index[1]
    again = run_two(two, tmp_path)
    assert again == [[people, ["z"]]] * 2


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_processes_equal_one(
    accumulation: int, make_rows: Any, make_config: Any, weights: Any, metrics: Any, tmp_path: Path
) -> None:
    """The Trainer: batches of 8 as 2 x 4 and 2 x 2 x 2, of rows that do not divide, with weights, one bad person."""
    table = make_rows(["a", "b"], 19, weight=lambda number: 0.5 + number % 3)
    table.append({"user": "c", "prompt": "Q :", "chosen": " a", "rejected": " b", "weight": -1.0})
    common = {"weighting": {"column": "weight"}, "cache_dir": str(tmp_path / "fresh"), "engine": "trainer"}
    two = make_config(
        table,
        "two",
        training={"per_device_train_batch_size": 4 // accumulation, "gradient_accumulation_steps": accumulation},
        **common,
    )
    assert run_two(two, tmp_path) == [[["a", "b"], ["c"]]] * 2
    single = make_config(table, "one", training={"per_device_train_batch_size": 8}, **common)
    single.data.path = two.data.path
    one = train(single)
    same_runs(one.output_dir, Path(two.output_dir), ["a", "b"], weights, metrics)
    assert (one.output_dir / "adapters/index.json").read_text() == (
        Path(two.output_dir) / "adapters/index.json"
    ).read_text()


COUPLED: dict[str, dict[str, Any]] = {
    "worst group by step": {"weighting": {"groups": GroupWeightingConfig(by="worst", step_size=2.0)}},
    "worst group by batch": {"weighting": {"groups": GroupWeightingConfig(by="worst", step_size=2.0, update="batch")}},
    "semantic contrast": {"loss": {"type": "contrast"}},
    "diagonal contrast": {"loss": {"type": "contrast", "contrast": ContrastConfig(weights="diagonal")}},
    "kto": {"loss": {"type": "kto"}},
    "balanced sampling": {"weighting": {"groups": GroupWeightingConfig(by="sampling")}},
    "a moving reference": {"reference": {"ema": 0.5}},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", COUPLED)
def test_two_processes_couple_rows_as_one(
    case: str, make_rows: Any, make_config: Any, weights: Any, metrics: Any, tmp_path: Path
) -> None:
    """What couples the rows of a batch sees those of both processes: same losses, same gradients, same adapter."""
    table = make_rows(["a"], 19, group=lambda number: f"g{number % 5 == 0}")
    common = {"parameters": {"per": "none"}, "engine": "trainer", "cache_dir": str(tmp_path / "fresh")}
    common |= COUPLED[case]
    two = make_config(table, "two", training={"per_device_train_batch_size": 4}, **common)
    assert run_two(two, tmp_path) == [[["_all"], []]] * 2
    single = make_config(table, "one", training={"per_device_train_batch_size": 8}, **common)
    single.data.path = two.data.path
    one = train(single)
    same_runs(one.output_dir, Path(two.output_dir), ["_all"], weights, metrics)
