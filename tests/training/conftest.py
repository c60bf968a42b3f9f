"""A tiny model, a table of made-up preferences, and a configuration that trains on it in a second."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pluralign.config import (
    DataConfig,
    EvaluationConfig,
    GenerationConfig,
    ParametersConfig,
    TrainConfig,
    TrainingConfig,
)

MODEL = Path(__file__).parents[1] / "golden" / "dpo_trajectory"
WORDS = ["the", "river", "is", "bright", "and", "waits", "for", "spring", "curious", "rests", "at", "night"]


def rows(users: Sequence[str], pairs: int = 12, **columns: Any) -> list[dict[str, Any]]:
    """Pairs of random words; a user's are the same whoever else is asked for."""
    made = []
    for user in users:
        draw = random.Random(user)
        for number in range(pairs):
            words = [" ".join(draw.choices(WORDS, k=draw.randint(2, 6))) for _ in range(3)]
            row = {"user": user, "prompt": f"Question : {words[0]} ?\nAnswer :", "chosen": f" {words[1]}"}
            made.append({**row, "rejected": f" {words[2]} .", **{key: value(number) for key, value in columns.items()}})
    return made


@pytest.fixture
def make_rows() -> Callable[..., list[dict[str, Any]]]:
    return rows


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., TrainConfig]:
    """A configuration for a table of rows; keywords replace its groups' keys (`training={...}`) or its own."""

    def make(table: list[dict[str, Any]], name: str = "run", **changes: Any) -> TrainConfig:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8")
        config = TrainConfig(
            model=str(MODEL),
            method="dpo",
            data=DataConfig(path=str(path), validation=0.25, split_by="row"),
            output_dir=str(tmp_path / name),
            cache_dir=str(tmp_path / "cache"),
            parameters=ParametersConfig(rank=4, alpha=8),
            training=TrainingConfig(num_train_epochs=2, per_device_train_batch_size=4, logging_steps=1),
            base_responses=GenerationConfig(max_new_tokens=6),
            evaluation=EvaluationConfig(generate=False),
        )
        for key, value in changes.items():
            nested = isinstance(value, dict)
            config = replace(config, **{key: replace(getattr(config, key), **value) if nested else value})
        return config

    return make


@pytest.fixture(scope="module")
def run() -> Iterator[Callable[..., dict[str, int]]]:
    """Runs a configuration in a process of its own, killed as told; returns its status and its operations on files."""
    command = [sys.executable, str(Path(__file__).with_name("kill_server.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        assert server.stdin and server.stdout

        def order(
            config: TrainConfig,
            die_at: int | None = None,
            seconds: float | None = None,
            remove: str | None = None,
            watch: Path | None = None,
        ) -> dict[str, int]:
            """Train, or remove a person; operations are counted below `watch`, by default the output folder."""
            order = {"config": asdict(config), "die_at": die_at, "seconds": seconds, "remove": remove}
            line = json.dumps({**order, "watch": str(watch or config.output_dir)})
            server.stdin.write(line.encode() + b"\n")
            server.stdin.flush()
            return dict(json.loads(server.stdout.readline()))

        yield order
        server.stdin.close()


@pytest.fixture
def weights() -> Callable[[Path | str], dict[str, torch.Tensor]]:
    """The tensors of a saved adapter."""
    return lambda folder: load_file(Path(folder) / "adapter_model.safetensors")


@pytest.fixture
def metrics() -> Callable[..., list[dict[str, Any]]]:
    """The lines of a run's `metrics.jsonl`."""

    def read(output_dir: Path | str, user: str | None = None) -> list[dict[str, Any]]:
        lines = map(json.loads, (Path(output_dir) / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        return [line for line in lines if user is None or line["user"] == user]

    return read


def assert_same_figures(found: Any, expected: Any) -> None:
    """Equal, but for the rounding of batches that hold other people."""
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for name, value in expected.items():
            assert_same_figures(found[name], value)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same_figures(one, other)
    else:
        assert found == expected


@pytest.fixture
def same_figures() -> Callable[[Any, Any], None]:
    """Asserts that two evaluations say the same."""
    return assert_same_figures
