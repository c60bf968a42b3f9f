"""A trained population of five, with what the cache holds of them, to be taken apart."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

import pluralign

MODEL = Path(__file__).parents[1] / "golden" / "dpo_trajectory"
WORDS = ["the", "river", "is", "bright", "and", "waits", "for", "spring", "curious", "rests", "at", "night"]
SHARED = "Question : the river ?\nAnswer :"
USERS = ["alice", "alice-marie", "42", "émile 🙂"]


def rows(user: str) -> list[dict[str, Any]]:
    """Five rows of words, and one on a prompt that everybody has, with a chosen response that everybody has."""
    draw = random.Random(user)
    words = [[" ".join(draw.choices(WORDS, k=draw.randint(3, 6))) for _ in range(3)] for _ in range(5)]
    made = [
        {"prompt": f"Question : {a} ?\nAnswer :", "chosen": f" {b}", "rejected": f" {c} ."} for a, b, c in words
    ] + [{"prompt": SHARED, "chosen": " the spring", "rejected": f" the {words[0][0]} ."}]
    return [{"user": user, "group": "odd" if len(user) % 2 else "even", **row} for row in made]


@dataclass
class Trained:
    """A run, its table and its cache, below one folder."""

    root: Path

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def table(self) -> Path:
        return self.root / "table.jsonl"

    def config(self) -> dict[str, Any]:
        return {
            "model": str(MODEL),
            "method": "bapo",
            "data": {"path": str(self.table), "validation": 0.34, "split_by": "row"},
            "output_dir": str(self.run),
            "cache_dir": str(self.cache),
            "parameters": {"rank": 2},
            "training": {"max_steps": 2, "per_device_train_batch_size": 2, "logging_steps": 1},
            "base_responses": {"max_new_tokens": 4},
            "evaluation": {"max_prompts": 2},
        }

    def write_table(self, users: list[str]) -> None:
        bad = {"user": "ed", "group": "odd", "prompt": "hi", "chosen": "same", "rejected": ""}
        table = [*(row for user in users for row in rows(user)), bad]
        self.table.write_text("".join(json.dumps(row) + "\n" for row in table))

    def read(self, name: str) -> Any:
        return json.loads((self.run / name).read_text(encoding="utf-8"))

    def lines(self, kind: str) -> dict[str, int]:
        """Key of the cache -> in how many sections it stands."""
        found: dict[str, int] = {}
        for path in self.cache.glob(f"{kind}/*/segment-*"):
            for line in path.read_text().splitlines():
                key = json.loads(line)["key"]
                found[key] = found.get(key, 0) + 1
        return found


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    trained = Trained(tmp_path_factory.mktemp("population"))
    trained.write_table(USERS)
    with pytest.warns(UserWarning, match="rows left out"):
        result = pluralign.train(trained.config())
    assert list(result.skipped) == ["ed"] and set(result.adapters) == set(USERS)
    return trained


@pytest.fixture
def trained(trained_once: Trained, tmp_path: Path) -> Trained:
    """A copy of the run with a cache of its own."""
    shutil.copytree(trained_once.root, tmp_path / "copy")
    copy = Trained(tmp_path / "copy")
    config = yaml.safe_load((copy.run / "config.yaml").read_text())
    own = {key: copy.config()[key] for key in ("output_dir", "cache_dir")}
    config |= own
    config["data"]["path"] = str(copy.table)
    (copy.run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return copy


@pytest.fixture
def make_rows() -> Callable[[str], list[dict[str, Any]]]:
    return rows


@pytest.fixture
def population(tmp_path: Path) -> Callable[..., Trained]:
    """A function of groups of the configuration that trains everybody with them."""

    def make(**changes: Any) -> Trained:
        population = Trained(tmp_path / "population")
        population.root.mkdir()
        population.write_table(USERS)
        with pytest.warns(UserWarning, match="rows left out"):
            pluralign.train({**population.config(), **changes})
        return population

    return make
