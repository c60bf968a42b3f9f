"""An online run that is killed with `kill -9` at any operation on its files goes on to the same adapters."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pluralign.config import GroupWeightingConfig
from pluralign.online_config import OnlineConfig

Make = Callable[..., Any]


def config_of(make_rows: Make, make_online: Make, name: str) -> OnlineConfig:
    found: OnlineConfig = make_online(
        make_rows("ab", pairs=8, group=lambda number: "xy"[number % 3 // 2]),
        name,
        annotator={"function": "liking:annotate", "batch_size": 3},
        pairs={"phases": 3},
        extrapolation={"alpha": 0.3},
        # Weights over groups go on from phase to phase.
        weighting={"groups": GroupWeightingConfig(by="worst", step_size=1.0)},
    )
    return found


def check(make_rows: Make, make_online: Make, run: Make, weights: Make, places: Any, tmp_path: Path) -> None:
    whole = config_of(make_rows, make_online, "whole")
    done = run(whole)
    assert done["status"] == 0
    expected = {user: weights(Path(whole.output_dir) / "adapters" / user) for user in "ab"}
    for number in places(done["events"]):
        config = config_of(make_rows, make_online, f"killed-{number}")
        assert run(config, die_at=number)["status"] == -9
        assert run(config)["status"] == 0, f"killed at operation {number} of {done['events']}"
        for user, tensors in expected.items():
            found = weights(Path(config.output_dir) / "adapters" / user)
            assert all(torch.equal(found[name], value) for name, value in tensors.items()), (number, user)
        assert not (Path(config.output_dir) / "state").exists()


def test_a_killed_run_goes_on(make_rows: Make, make_online: Make, run: Make, weights: Make, tmp_path: Path) -> None:
    check(make_rows, make_online, run, weights, lambda count: range(count // 5, count, count // 5), tmp_path)


@pytest.mark.slow
def test_wherever_it_is_killed(make_rows: Make, make_online: Make, run: Make, weights: Make, tmp_path: Path) -> None:
    check(make_rows, make_online, run, weights, lambda count: range(3, count, max(1, count // 40)), tmp_path)


def test_what_was_annotated_before_a_kill_stays_and_is_not_asked_for_again(
    make_rows: Make, make_online: Make, run: Make
) -> None:
    count = run(config_of(make_rows, make_online, "count"))["events"]
    config = config_of(make_rows, make_online, "paid")
    before: dict[Path, list[str]] = {}
    for die_at in (count // 3, count // 3, None):
        run(config, die_at=die_at)
        files = sorted(Path(config.output_dir).glob("phases/*/verdicts-*.jsonl"))
        lines = {file: file.read_text().splitlines() for file in files}
        for file, kept in before.items():
            assert lines[file][: len(kept)] == kept
        for some in lines.values():
            rows = [json.loads(line).get("row") for line in some]
            assert len(rows) == len(set(rows)), "what is asked for again is written again"
        before = lines
    assert sum(map(len, before.values())) > 8


@pytest.mark.slow
def test_killed_before_its_own_configuration_is_written(make_rows: Make, make_online: Make, run: Make) -> None:
    config = config_of(make_rows, make_online, "early")
    folder = Path(config.output_dir)
    die_at = 1
    while run(config, die_at=die_at)["status"] == -9 and not (folder / "config.yaml").exists():
        die_at += 1
    assert not (folder / "online.yaml").exists()
    assert run(config)["status"] == 0
