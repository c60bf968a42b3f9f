"""Every preset by the same rows: it lowers its own objective, goes on after an interruption, and trains people
together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pluralign.config import TrainConfig
from pluralign.resolve import PRESETS, preset, resolve
from pluralign.training import train
from pluralign.world import World

EVERY = sorted(path.stem for path in PRESETS.glob("*.yaml"))
METHODS = [name for name in EVERY if not {"pairs", "predictor"} & preset(name).keys()]
"""Those that train a policy on a table; others sample their pairs (`online/test_online_presets.py`) or train no policy
(`tests/test_resolve.py`)."""
UNPAIRED = {"kto", "rpo-unpaired"}
STEPS = 20
QUICK = ("dpo", "gr-dpo", "kto", "mrpo", "rpo")
"""One of each kind of seat; `make test-all` runs the others, too."""


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Paired and unpaired: two people of the world, eight pairs each."""
    folder = tmp_path_factory.mktemp("tables")
    world = World(0)
    rows = world.preferences(world.users(2), 8)
    rows = [{**row, "system_info": "Answer well.", "user_info": f"I like it {row['group']}."} for row in rows]
    halves = [
        {**{key: row[key] for key in ("user", "group", "prompt")}, "completion": row[side], "label": side == "chosen"}
        for number, row in enumerate(rows)
        for side in (("chosen", "rejected")[number % 2],)
    ]
    paths = {False: folder / "pairs.jsonl", True: folder / "unpaired.jsonl"}
    for unpaired, table in ((False, rows), (True, halves)):
        paths[unpaired].write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8")
    return paths


def other_reference(table: Path, folder: Path) -> Path:
    """An adapter that has learned a little."""
    values = {"data": {"path": str(table), "validation": 0.0}, "training": {"max_steps": 3, "learning_rate": 1e-3}}
    values |= {"method": "sft", "parameters": {"per": "none"}, "evaluation": {"generate": False}}
    config = resolve(TrainConfig, {**values, "output_dir": str(folder / "sft"), "cache_dir": str(folder / "cache")})
    return train(config).adapters["_all"]


@pytest.fixture
def configured(tables: dict[bool, Path], tmp_path: Path) -> Any:
    def make(method: str, name: str, **changes: Any) -> TrainConfig:
        values: dict[str, Any] = {
            "method": method,
            "data": {"path": str(tables[method in UNPAIRED]), "validation": 0.0},
            "output_dir": str(tmp_path / name),
            "cache_dir": str(tmp_path / "cache"),
            "base_responses": {"max_new_tokens": 12},
            "evaluation": {"generate": False},
            "training": {
                "max_steps": STEPS,
                "per_device_train_batch_size": 16,
                "logging_steps": 1,
                "save_strategy": "steps",
                "save_steps": 10,
                "learning_rate": 1e-3,
            },
        }
        if method == "mrpo":
            values["reference"] = {"models": [str(other_reference(tables[False], tmp_path)), "base"]}
        return resolve(TrainConfig, {**values, **changes})

    return make


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in METHODS]
)
def test_preset(method: str, configured: Any, weights: Any, metrics: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # One policy is enough here: people in turn, and people together, are trained below and elsewhere.
    alone = {"engine": "trainer", "parameters": {"per": "none"}}
    whole = train(configured(method, "whole", **alone))
    lines = [line for line in metrics(whole.output_dir) if "loss" in line]
    key = "worst_group/loss" if method.startswith("gr-") else "loss"
    for user in whole.adapters:
        losses = [line[key] for line in lines if line["user"] == user]
        assert len(losses) == STEPS
        assert losses[-1] < losses[0]
    people = len(whole.adapters)
    _interrupt(monkeypatch, after=12 * people)
    with pytest.raises(KeyboardInterrupt):
        train(configured(method, "again", **alone))
    monkeypatch.undo()
    made = _interrupt(monkeypatch, after=2 * STEPS * people)
    again = train(configured(method, "again", **alone))
    # Those who were finished are not touched, and who was at work goes on from a checkpoint.
    assert len(made) <= STEPS * people - 10
    for user, place in whole.adapters.items():
        torch.testing.assert_close(weights(again.adapters[user]), weights(place), rtol=0, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_preset_in_the_bank(method: str, configured: Any) -> None:
    config = configured(method, "bank", engine="bank", training={"max_steps": 2})
    assert train(config).adapters


@pytest.mark.parametrize("method", EVERY)
def test_every_preset_has_a_row_in_the_table_of_methods(method: str) -> None:
    page = Path(__file__).parents[2] / "docs" / "methods" / "README.md"
    assert f"`{method}`" in page.read_text(encoding="utf-8")


def _interrupt(monkeypatch: pytest.MonkeyPatch, *, after: int) -> list[Any]:
    """Let a run die at the line of metrics of that number; the lines that it has written."""
    from pluralign.training import callbacks

    written: list[Any] = []
    original = callbacks.append_line

    def append(path: Path, line: Any) -> None:
        if len(written) >= after:
            raise KeyboardInterrupt
        written.append(line)
        original(path, line)

    for module in ("population", "bank.loop"):
        monkeypatch.setattr(f"pluralign.training.{module}.append_line", append)
    return written
