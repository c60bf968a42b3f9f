"""`kill -9` while a population grows or loses somebody, and the same command again: as if nothing had happened."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pluralign.config import AnchorConfig, BaseAnchorConfig, TrainConfig

KILLED = -9
SETTINGS: dict[str, Any] = {
    "training": {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 2},
    "data": {"validation": 0.25},
}


def content(run: Path) -> dict[str, bytes]:
    """Every file but the configuration, which holds its own path, the evaluation, and what the calls took."""
    others = ("config.yaml", "evaluation.json", "calls.json")
    files = (path for path in run.rglob("*") if path.is_file() and path.name not in others)
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in files}


def figures(run: Path) -> Any:
    """What the evaluation says. Who is measured in the same batch is a matter of what the killed run had finished."""
    return json.loads((run / "evaluation.json").read_text(encoding="utf-8"))


@pytest.fixture(params=["trainer", pytest.param("bank", marks=pytest.mark.slow)])
def grow(request: pytest.FixtureRequest, make_rows: Any, make_config: Any, run: Any) -> Any:
    """A finished folder of a, b and d, and the command that adds c and trains b anew on more rows."""
    first = make_config(make_rows(["a", "b", "d"], pairs=4), "first", engine=request.param, **SETTINGS)
    assert run(first)["status"] == 0
    table = [*make_rows(["a"], pairs=4), *make_rows(["b"], pairs=8), *make_rows(["c"], pairs=4)]
    second = make_config(table, "second", update="b", engine=request.param, **SETTINGS)

    def make(name: str) -> TrainConfig:
        folder = Path(first.output_dir).with_name(name)
        shutil.copytree(first.output_dir, folder)
        return replace(second, output_dir=str(folder))

    return make


def test_kills_while_growing(run: Any, grow: Any, same_figures: Any) -> None:
    undisturbed, config = grow("undisturbed"), grow("killed")
    folder = Path(config.output_dir)
    left = {path: path.stat().st_mtime_ns for user in "ad" for path in (folder / "adapters" / user).iterdir()}
    whole = run(undisturbed)
    assert whole["status"] == 0
    for share in (0.25, 0.35, 0.25):
        assert run(config, die_at=round(whole["events"] * share))["status"] == KILLED
        assert (folder / "unfinished.json").is_file()
    assert run(config)["status"] == 0
    assert content(folder) == content(Path(undisturbed.output_dir))
    same_figures(figures(folder), figures(Path(undisturbed.output_dir)))
    assert {path: path.stat().st_mtime_ns for path in left} == left
    assert set(json.loads((folder / "evaluation.json").read_text())["people"]) == set("abcd")


@pytest.mark.slow
def test_many_kills_while_growing(run: Any, grow: Any, same_figures: Any) -> None:
    """At random operations, those of the first and of the last moment too."""
    undisturbed = grow("undisturbed")
    whole = run(undisturbed)
    expected, draw = content(Path(undisturbed.output_dir)), random.Random(0)
    for number in range(12):
        config, kills = grow(f"killed{number}"), 0
        folder = Path(config.output_dir)
        moment = [1 + number, whole["events"] - number, draw.randint(1, whole["events"])][number % 3]
        while run(config, die_at=moment if kills == 0 else draw.randint(1, whole["events"]))["status"] == KILLED:
            kills += 1
            if not (folder / "unfinished.json").exists() and (folder / "adapters" / "c").exists():
                # All was done but to let the lock go: the same command would train b once more.
                (folder / ".lock").unlink(missing_ok=True)
                break
        assert content(folder) == expected
        same_figures(figures(folder), figures(Path(undisturbed.output_dir)))


@pytest.mark.parametrize("moments", [3, pytest.param(24, marks=pytest.mark.slow)])
def test_kills_while_somebody_is_removed(
    moments: int, run: Any, make_rows: Any, make_config: Any, tmp_path: Path
) -> None:
    # With base responses in the cache, by which the keys of their log-probs are found.
    anchor = AnchorConfig(BaseAnchorConfig(weight=0.3))
    config = make_config(make_rows(["a", "b"], pairs=4), anchor=anchor, **SETTINGS)
    folder, cache = Path(config.output_dir), tmp_path / "cache"
    assert run(config)["status"] == 0
    for place in (folder, cache):
        shutil.copytree(place, tmp_path / "kept" / place.name)

    def state() -> tuple[dict[str, bytes], set[bytes]]:
        # A segment that a kill left beside the one that replaces it doubles lines, and changes nothing.
        lines = (line for path in cache.glob("*/*/segment-*") for line in path.read_bytes().split(b"\n"))
        return content(folder), set(lines)

    whole = run(config, remove="b", watch=tmp_path)
    assert whole["status"] == 0
    expected = state()
    for number in range(moments):
        for place in (folder, cache):
            shutil.rmtree(place)
            shutil.copytree(tmp_path / "kept" / place.name, place)
        killed = run(config, remove="b", watch=tmp_path, die_at=1 + whole["events"] * number // moments)
        assert killed["status"] == KILLED
        assert run(config, remove="b", watch=tmp_path)["status"] == 0
        assert state() == expected
