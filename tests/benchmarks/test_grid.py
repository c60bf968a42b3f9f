"""A grid goes on: from its own files, and from committed results."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@dataclass(frozen=True)
class Cell:
    name: str
    version: int = 1

    @property
    def digest(self) -> str:
        return f"{self.name}{self.version}"

    def kept(self, work: Path) -> Path:
        return work / f"{self.digest}.json"


@pytest.fixture
def grid() -> Iterator[Any]:
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("grid")
    sys.path.remove(str(FOLDER))
    sys.modules.pop("grid", None)


def test_a_cell_is_made_once(grid: Any, tmp_path: Path) -> None:
    made: list[str] = []

    def make() -> dict[str, Any]:
        made.append("a")
        return {"digest": "a1", "value": len(made)}

    assert [grid.result_of(Cell("a"), tmp_path, make)["value"] for _ in range(2)] == [1, 1]
    assert grid.result_of(Cell("a", 2), tmp_path, make)["value"] == 2


def test_results_are_taken_up_in_an_empty_folder(grid: Any, tmp_path: Path) -> None:
    results, cells = tmp_path / "results" / "stage.json", [Cell("a"), Cell("b"), Cell("c")]
    for cell in cells[:2]:
        grid.result_of(cell, tmp_path, lambda cell=cell: {"digest": cell.digest, "value": cell.name})
    grid.pack(results, cells, tmp_path, command="python run.py stage")
    assert [one["value"] for one in grid.read(results)] == ["a", "b"]
    # Of cells that have changed since, nothing is taken.
    other = tmp_path / "elsewhere"
    grid.unpack(results, [Cell("a"), Cell("b", 2), Cell("c")], other)
    assert [path.name for path in other.iterdir()] == ["a1.json"]


def test_no_results_yet(grid: Any, tmp_path: Path) -> None:
    assert grid.read(tmp_path / "none.json") == []
