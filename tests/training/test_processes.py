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

from pluralign.training import train

SCRIPT = """
import json, sys
from pluralign.config import TrainConfig
from pluralign.resolve import resolve
from pluralign.training import train
result = train(resolve(TrainConfig, json.loads(sys.argv[1])))
assert list(result.adapters) == ["a", "b"] and list(result.skipped) == ["c"], result
"""


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_processes_equal_one(
    accumulation: int, make_rows: Any, make_config: Any, weights: Any, metrics: Any, tmp_path: Path
) -> None:
    """Batches of 8 as 2 x 4 and 2 x 2 x 2, of numbers of rows that do not divide, with weights and one bad person."""
    table = make_rows(["a", "b"], 19, weight=lambda number: 0.5 + number % 3)
    table.append({"user": "c", "prompt": "Q :", "chosen": " a", "rejected": " b", "weight": -1.0})
    common = {"weighting": {"column": "weight"}, "anchor": {}, "cache_dir": str(tmp_path / "fresh")}
    two = make_config(
        table,
        "two",
        training={"per_device_train_batch_size": 4 // accumulation, "gradient_accumulation_steps": accumulation},
        **common,
    )
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, json.dumps(asdict(two))], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    single = make_config(table, "one", training={"per_device_train_batch_size": 8}, **common)
    single.data.path = two.data.path
    one = train(single)
    for line, other in zip(metrics(one.output_dir), metrics(two.output_dir), strict=True):
        assert line.keys() == other.keys()
        assert (line.pop("user"), line.pop("step")) == (other.pop("user"), other.pop("step"))
        torch.testing.assert_close(line, other, rtol=1e-4, atol=1e-5)
    for user in "ab":
        folders = [Path(folder) / "adapters" / user for folder in (one.output_dir, two.output_dir)]
        torch.testing.assert_close(*map(weights, folders), rtol=1e-4, atol=1e-5)
    assert (one.output_dir / "adapters/index.json").read_text() == (
        Path(two.output_dir) / "adapters/index.json"
    ).read_text()
