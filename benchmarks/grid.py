"""Grids of cells that go on where they were stopped: a file a cell below a work folder, and one file of results.

For benchmarks whose cells are frozen dataclasses with a `digest` of everything that decides their result, and a place
for it (`kept`).
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""One thread a process and no network, where the caller says nothing else."""
for _name, _value in ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

SCHEMA_VERSION = 1


class GridCell(Protocol):
    """What a grid needs to know of a cell."""

    @property
    def digest(self) -> str:
        """Of everything that decides the result but versions: a cell that has changed is another one."""

    def kept(self, work: Path) -> Path:
        """Where its result lies."""


def result_of(cell: GridCell, work: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A cell's result: from its file, or made now."""
    from pluralign.storage import write_json

    path = cell.kept(work)
    if not path.exists():
        write_json(path, make())
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def read(results: Path) -> list[dict[str, Any]]:
    """The cells of a file of results; none where there is no file."""
    found: list[dict[str, Any]] = []
    if results.exists():
        found = json.loads(results.read_text(encoding="utf-8"))["cells"]
    return found


def unpack(results: Path, cells: Sequence[GridCell], work: Path) -> None:
    """Put the cells of the committed results where a grid looks for them."""
    from pluralign.storage import write_json

    found = {one["digest"]: one for one in read(results)}
    for cell in cells:
        if cell.digest in found and not cell.kept(work).exists():
            cell.kept(work).parent.mkdir(parents=True, exist_ok=True)
            write_json(cell.kept(work), found[cell.digest])


def pack(results: Path, cells: Sequence[GridCell], work: Path, *, command: str, **more: Any) -> None:
    """Write the cells that there are into the results."""
    there = [json.loads(path.read_text(encoding="utf-8")) for cell in cells if (path := cell.kept(work)).exists()]
    write(results, there, command=command, **more)
    print(f"{len(there)} of {len(cells)} cells in {results}")


def head(command: str, **more: Any) -> dict[str, Any]:
    """What results were made by: the command, the machine, versions."""
    packages = ("pluralign", "torch", "transformers", "peft")
    return {
        "schema_version": SCHEMA_VERSION,
        "command": command,
        "machine": platform.processor() or platform.machine(),
        "versions": {one: version(one) for one in packages},
        **more,
    }


def write(results: Path, cells: Sequence[dict[str, Any]], *, command: str, **more: Any) -> None:
    """Write a file of results: a head, and one cell a line."""
    from pluralign.storage import write_text

    lines = ",\n".join(json.dumps(one, separators=(",", ":")) for one in cells)
    results.parent.mkdir(exist_ok=True)
    write_text(results, f'{json.dumps(head(command, **more))[:-1]}, "cells": [\n{lines}\n]}}\n')


def in_parts(script: str, stage: str, work: Path, processes: int, *options: str) -> int:
    """Run a stage of a script in several processes, each with `--part NUMBER COUNT`; 1 where one of them failed."""
    command = [sys.executable, script, stage, "--work", str(work), *options, "--part"]
    running = [subprocess.Popen([*command, str(number), str(processes)]) for number in range(processes)]
    codes = [one.wait() for one in running]
    return int(any(codes))
