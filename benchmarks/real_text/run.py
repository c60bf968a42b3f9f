"""The main job on real text: personal adapters for three populations, what they won and what they cost.

    python benchmarks/real_text/run.py --data DIR --model MODEL --out benchmarks/real_text/results/real_text.json

MODEL is the folder of `make_model.py`. Every cell (population, method, seed) is kept below `--work`: a run that was
stopped goes on where it was, and one with more seeds or methods adds to what is there. `--quick` takes a tenth of the
time, to see that it works; `--tune` tries learning rates on a seed that is not reported; `--table FILE` prints the
tables of a results file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SCHEMA_VERSION = 1
TUNING_SEED = 100
RATES = (3e-4, 1e-3, 3e-3)
EVERYWHERE = ("bapo", "dpo")
"""Methods with every population and seed. The others are tried on the first population."""
EVERY_SEED = ("dpo-slow", "dpo-beta-1")
"""Of those, the ones with every seed; the rest have the first."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the data folder")
    parser.add_argument("--model", type=Path, help="folder of the model that make_model.py wrote")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "real_text.json")
    parser.add_argument("--work", type=Path, default=Path("runs/real_text"), help="folder of cells and caches")
    parser.add_argument("--minutes", type=float, help="begin no cell that would end after so many minutes")
    parser.add_argument("--tasks", nargs="+", default=["dsp", "hh", "personas"])
    parser.add_argument("--methods", nargs="+", help="by default all of cells.py; dpo alone to tune")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--table", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    if arguments.table:
        from summary import markdown

        print(markdown(json.loads(arguments.table.read_text(encoding="utf-8"))), end="")
        return
    if arguments.data is None or arguments.model is None:
        parser.error("--data and --model are needed")
    measure_all(arguments)


def measure_all(arguments: argparse.Namespace) -> None:
    """Run the cells that are not there yet, and write the results after each."""
    import torch
    from cells import METHODS, run_cell
    from summary import AGAINST

    torch.set_num_threads(1)
    arguments.methods = arguments.methods or ([AGAINST] if arguments.tune else list(METHODS))
    begun = time.time()
    durations: dict[str, list[float]] = {}
    done: list[dict[str, Any]] = []
    left: list[str] = []
    for task, method, seed in _plan(arguments):
        longest = max(durations.get(task.name, [0.0]))
        if arguments.minutes and time.time() - begun + longest > 60 * arguments.minutes:
            left.append(f"{task.name} {method} {seed}")
            continue
        started = time.time()
        cell = run_cell(task, method, seed, data=arguments.data, model=arguments.model, work=_work(arguments))
        durations.setdefault(task.name, []).append(time.time() - started)
        done.append(cell)
        people = cell["people"].values()
        means = {key: sum(p[key] or 0 for p in people) / len(people) for key in ("accuracy", "manner", "kept", "told")}
        shown = "  ".join([*(f"{key} {mean:.3f}" for key, mean in means.items()), f"{cell['seconds']:.0f} s"])
        print(f"{task.name:9} {method:12} seed {seed:3} rate {task.learning_rate:g}  {shown}", flush=True)
        write(arguments, done, left)
    write(arguments, done, left)


def _plan(arguments: argparse.Namespace) -> Iterator[tuple[Any, str, int]]:
    """Cells in the order in which they matter most: whoever stops early has all populations with one seed."""
    from tasks import TASKS

    chosen = [TASKS[name] for name in arguments.tasks]
    if arguments.quick:
        chosen = [task.quick() for task in chosen]
    if arguments.tune:
        for task in chosen:
            for rate in RATES:
                yield from ((replace(task, learning_rate=rate), method, TUNING_SEED) for method in arguments.methods)
        return
    first, *more = arguments.seeds
    everywhere = [method for method in arguments.methods if method in EVERYWHERE]
    others = [method for method in arguments.methods if method not in EVERYWHERE]
    yield from ((task, method, first) for task in chosen for method in everywhere)
    yield from ((chosen[0], method, first) for method in others)
    if not arguments.quick:
        yield from ((task, method, seed) for seed in more for task in chosen for method in everywhere)
        yield from ((chosen[0], method, seed) for seed in more for method in others if method in EVERY_SEED)


def _work(arguments: argparse.Namespace) -> Path:
    kind = "tune" if arguments.tune else "quick" if arguments.quick else "full"
    return (arguments.work / kind).resolve()


def write(arguments: argparse.Namespace, cells: list[dict[str, Any]], left: list[str]) -> None:
    """The results file: schema in docs/real-text.md."""
    import cells as benchmark
    import summary
    from tasks import TASKS

    results = {
        "schema_version": SCHEMA_VERSION,
        "command": _command(arguments),
        "machine": {
            "cores": os.cpu_count(),
            "threads": 1,
            "processor": platform.processor() or platform.machine(),
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "peft")},
        },
        "model": json.loads((arguments.model / "model.json").read_text(encoding="utf-8")),
        "tasks": {name: asdict(TASKS[name]) for name in arguments.tasks},
        "methods": {name: asdict(benchmark.METHODS[name]) for name in arguments.methods},
        "cells_left_out_for_want_of_time": left,
        "cpu_minutes": round(sum(cell["cpu_seconds"] for cell in cells) / 60, 1),
        "summary": {} if arguments.tune else summary.summarize(cells),
        "cells": [{key: value for key, value in cell.items() if key != "config"} for cell in cells],
    }
    if arguments.tune:
        for shown, cell in zip(results["cells"], cells, strict=True):
            shown["learning_rate"] = cell["config"]["training"]["learning_rate"]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _command(arguments: argparse.Namespace) -> str:
    parts = ["python benchmarks/real_text/run.py --data DIR --model MODEL"]
    parts += ["--quick"] * arguments.quick + ["--tune"] * arguments.tune
    parts += [f"--tasks {' '.join(arguments.tasks)}", f"--methods {' '.join(arguments.methods)}"]
    return " ".join([*parts, f"--seeds {' '.join(map(str, arguments.seeds))}"])


if __name__ == "__main__":
    main()
