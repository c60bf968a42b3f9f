"""Few-shot prediction: every method on every table, active questions, and time.

    python benchmarks/fewshot/run.py compare --on countries --data DIR     # and personas, raters, world
    python benchmarks/fewshot/run.py active --on countries --data DIR
    python benchmarks/fewshot/run.py speed
    python benchmarks/fewshot/run.py table --of compare-countries          # from the committed results

DIR is the folder of the published data (docs/real-text.md); the world and `speed` need none.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from active import active, active_table
from tables import TABLES
from timing import speed, speed_table

import grid

RESULTS = Path(__file__).parent / "results"
SPLITS, STEPS = 5, 1500
"""Of `compare`: splits of groups, and steps of the published module."""


def compare(name: str, data: Path) -> dict[str, Any]:
    """All methods on a table."""
    from dataclasses import asdict

    from pluralign.config import FewshotEvaluateConfig, ModuleTrainingConfig
    from pluralign.fewshot.comparison import compare as compared
    from pluralign.fewshot.comparison import summarise

    table = TABLES[name]
    config = FewshotEvaluateConfig(
        sizes=list(table.sizes), splits=SPLITS, least=table.least, module=ModuleTrainingConfig(steps=STEPS)
    )
    cells = list(compared(table.read(data), config))
    return {"summaries": [asdict(one) for one in summarise(cells)], "cells": [asdict(cell) for cell in cells]}


def compare_table(found: dict[str, Any]) -> str:
    """Alignment of every method by protocol and answers, with 95% intervals over splits."""
    lines = ["| protocol | answers | method | alignment | worst group | accuracy | nats | 80% holds |"]
    lines.append("| --- " * 8 + "|")
    for one in found["summaries"]:
        means, margins = one["means"], one["margins"]
        holds = f"{means['coverage']:.1%}" if "coverage" in means else ""
        alignment = f"{means['alignment']:.4f} ± {margins['alignment']:.4f}"
        figures = [alignment, f"{one['worst']:.3f}", f"{means['accuracy']:.1%}", f"{means['nll']:.3f}", holds]
        lines.append(f"| {one['protocol']} | {one['size']} | {one['method']} | {' | '.join(figures)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    arguments = _arguments()
    if arguments.stage == "table":
        found = json.loads((RESULTS / f"{arguments.of}.json").read_text(encoding="utf-8"))
        stage = arguments.of.split("-")[0]
        print({"compare": compare_table, "active": active_table, "speed": speed_table}[stage](found), end="")
        return 0
    from pluralign.storage import write_json

    command = f"python benchmarks/fewshot/run.py {arguments.stage}"
    if arguments.stage == "speed":
        found, name = speed(), "speed"
    else:
        made = compare if arguments.stage == "compare" else active
        found, name = made(arguments.on, arguments.data), f"{arguments.stage}-{arguments.on}"
        command += f" --on {arguments.on}" + ("" if arguments.on == "world" else " --data DIR")
    write_json(RESULTS / f"{name}.json", {**grid.head(command), **found})
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["compare", "active", "speed", "table"])
    parser.add_argument("--on", choices=list(TABLES), default="world", help="table of answers")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the published data")
    parser.add_argument("--of", default="compare-world", help="results to print")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
