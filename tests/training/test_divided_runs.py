"""What several workers leave in one folder: whose people are whose, lines of metrics, reasons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pluralign.errors import InputError
from pluralign.objectives import sigmoid_loss
from pluralign.training import train
from pluralign.training.bank.snapshots import Snapshot, Snapshots, take_up, workers_before
from pluralign.training.callbacks import append_line
from pluralign.training.runs import RunFolder
from pluralign.training.shares import Share


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 9))
def test_everybody_is_in_one_share(sizes: list[int], count: int) -> None:
    users = [f"user {number}" for number in range(len(sizes))]
    shares = [Share(index, count).of(users, sizes) for index in range(count)]
    assert sorted(user for share in shares for user in share) == sorted(users)
    assert all(share == sorted(share, key=users.index) for share in shares)
    loads = [sum(sizes[users.index(user)] for user in share) for share in shares]
    assert max(loads) - min(loads) <= max(sizes, default=0)


def lines(path: Path) -> list[tuple[str, int]]:
    return [(line["user"], line["step"]) for line in map(json.loads, path.read_text().splitlines())]


def test_lines_of_workers_come_together(tmp_path: Path) -> None:
    """Those of steps that are made again go; torn ones too; killed while gathering, none is lost or there twice."""
    folder = RunFolder(tmp_path)
    append_line(folder.metrics, {"user": "old", "step": 1})
    shares = [Share(0, 2), Share(1, 2)]
    parts = [folder.share(share).metrics for share in shares]
    for user, part in zip("ab", parts, strict=True):
        for step in (1, 2, 3):
            append_line(part, {"user": user, "step": step})
    with open(parts[1], "a") as file:
        file.write('{"user": "b", "st')
    content = parts[0].read_bytes()
    folder.gather_metrics()
    parts[0].write_bytes(content)  # as after a kill before it was removed
    state = folder.path / "state"
    learner = {"user": "a", "trainer": {"global_step": 2}}
    Snapshots(state, shares[0]).write(lambda: Snapshot(1, [learner], [], skipped={"c": "no rows"}))
    Snapshots(state, shares[1]).begin(["b"])
    found = take_up(folder, 2, ["a", "b", "c"])
    assert lines(folder.metrics) == [("old", 1), ("a", 1), ("a", 2)]
    assert not list(state.glob("@metrics-*"))
    assert [found[index].users for index in range(2)] == [["a"], ["b"]]
    assert found[0].skipped == {"c": "no rows"}
    assert workers_before(state) == 2
    with pytest.raises(InputError, match="begun with 2 workers, and this is 3 workers"):
        take_up(folder, 3, ["a", "b"])


def _broken(margin: Tensor, *, beta: float, columns: Any, **_: Any) -> Tensor:
    """Breaks one person's first step."""
    bad = torch.tensor([user == "bad" for user in columns["user"]])
    return sigmoid_loss(margin, beta=beta) / torch.where(bad, 0.0, 1.0)


def test_a_reason_outlives_a_kill(make_rows: Any, make_config: Any, monkeypatch: Any) -> None:
    """Also where only the worker knew it that gave somebody up."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    config = make_config(
        make_rows(["bad", "good"]),
        engine="bank",
        loss={"type": "test_divided_runs:_broken"},
        training={"save_strategy": "steps", "save_steps": 1},
        data={"validation": 0.0},
    )
    write, written = Snapshots.write, []

    def stop(self: Snapshots, make: Any) -> None:
        write(self, make)
        written.append(self)
        if len(written) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Snapshots, "affordable", True)
        patch.setattr(Snapshots, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    (Path(config.output_dir) / "adapters" / "index.json").unlink()
    result = train(config)
    assert list(result.adapters) == ["good"]
    assert result.skipped == {"bad": "the loss is not finite (NaN or infinite) at step 1; there was no step to keep"}
