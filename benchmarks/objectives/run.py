"""Every offline preset at equal compute: one policy for groups of unequal size and opposed tastes, after one SFT.

    python benchmarks/objectives/run.py tune      # every method at every learning rate, on two tuning seeds
    python benchmarks/objectives/run.py report    # each at its best rate, on five other seeds
    python benchmarks/objectives/run.py table     # from the committed results
    python benchmarks/objectives/run.py cell --method gr-dpo --learning-rate 1e-3 --seed 1

A stage is a grid of cells; one takes about half a minute of one core, the model of a seed's world some minutes once.
Cells that are there, below `--work` or in the results, are not made again. Worlds, models, probes and intervals are
those of `benchmarks/forgetting`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

BENCHMARKS = Path(__file__).parents[1]
sys.path[:0] = [str(BENCHMARKS), str(BENCHMARKS / "forgetting")]

from intervals import Estimate, estimate  # noqa: E402
from methods import LEARNING_RATES, METHODS  # noqa: E402
from world_cells import Cell, result_of  # noqa: E402

import grid  # noqa: E402

RESULTS = Path(__file__).parent / "results"
TUNING_SEEDS = (1, 2)
SEEDS = (11, 12, 13, 14, 15)
AGAINST = "dpo"
MEASURES = ("worst served", "mean served", "worst style", "mean kept")


def tune() -> list[Cell]:
    """The trials: as many for every method."""
    return [Cell(method, rate, seed) for seed in TUNING_SEEDS for rate in LEARNING_RATES for method in METHODS]


def report() -> list[Cell]:
    """Each method at its best rate."""
    rates = best_rates(grid.read(RESULTS / "tune.json"))
    return [Cell(method, rates[method], seed) for seed in SEEDS for method in METHODS]


def best_rates(cells: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The rate with the best served worst group over the tuning seeds; of equals, the one that keeps more."""
    found: dict[str, dict[float, list[tuple[float, float]]]] = {}
    for cell in cells:
        values = measures(cell)
        rates = found.setdefault(cell["method"], {})
        rates.setdefault(cell["learning_rate"], []).append((values["worst served"], values["mean kept"]))
    if {cell.digest for cell in tune()} - {cell["digest"] for cell in cells}:
        raise SystemExit("the trials are not finished: rates are chosen from all of them")
    return {
        method: max(rates, key=lambda rate: tuple(mean(part) for part in zip(*rates[rate], strict=True)))
        for method, rates in found.items()
    }


def measures(cell: dict[str, Any]) -> dict[str, float]:
    """Of all groups of a cell."""
    groups = cell["groups"].values()
    return {
        "worst served": min(one["served"] for one in groups),
        "mean served": mean(one["served"] for one in groups),
        "worst style": min(one["style"] for one in groups),
        "mean kept": mean(one["kept"] for one in groups),
    }


def table(cells: Sequence[dict[str, Any]]) -> str:
    """Means over seeds with 95% intervals, and the worst group's difference to plain DPO, seed by seed."""
    by_method: dict[str, dict[int, dict[str, float]]] = {}
    for cell in cells:
        by_method.setdefault(cell["method"], {})[cell["seed"]] = measures(cell)
    rates = {cell["method"]: cell["learning_rate"] for cell in cells}
    lines = [f"| method | rate | {' | '.join(MEASURES)} | worst served, less {AGAINST} | detectable |"]
    lines.append("| --- " * (len(MEASURES) + 4) + "|")
    for method, seeds in by_method.items():
        means = [_shown(estimate([one[name] for one in seeds.values()])) for name in MEASURES]
        other = by_method[AGAINST]
        less = estimate([one["worst served"] - other[seed]["worst served"] for seed, one in seeds.items()])
        beside = [_shown(less), f"{less.detectable:.2f}"] if method != AGAINST else ["", ""]
        lines.append(f"| {method} | {rates[method]:g} | {' | '.join([*means, *beside])} |")
    return "\n".join(lines)


def _shown(found: Estimate) -> str:
    low, high = found.ends
    return f"{found.mean:.2f} [{low:.2f}, {high:.2f}]"


STAGES = {"tune": tune, "report": report}


def main() -> int:
    arguments = _arguments()
    work = arguments.work.resolve()
    if arguments.stage == "cell":
        print(json.dumps(result_of(Cell(arguments.method, arguments.learning_rate, arguments.seed), work), indent=1))
        return 0
    if arguments.stage == "table":
        print(table(grid.read(RESULTS / "report.json")))
        return 0
    cells = STAGES[arguments.stage]()
    results = RESULTS / f"{arguments.stage}.json"
    grid.unpack(results, cells, work)
    if arguments.part is not None:
        first, step = arguments.part
        for cell in cells[first::step]:
            if not cell.kept(work).exists():
                print(f"{cell.kept(work).stem}, {result_of(cell, work)['seconds']} s", flush=True)
        return 0
    _prepare({cell.seed for cell in cells}, work)
    failed = grid.in_parts(__file__, arguments.stage, work, arguments.processes)
    grid.pack(results, cells, work, command=f"python benchmarks/objectives/run.py {arguments.stage}")
    return failed


def _prepare(seeds: set[int], work: Path) -> None:
    """Make what several processes would else make at the same time."""
    from ground import Ground
    from world_cells import first_stage

    for seed in sorted(seeds):
        ground = Ground(seed, work)
        ground.prepare()
        for method in METHODS.values():
            first_stage(method, ground, work)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=[*STAGES, "cell", "table"])
    parser.add_argument("--work", type=Path, default=Path("runs/objectives"), help="models, caches, cells")
    parser.add_argument("--processes", type=int, default=1, help="one a core")
    parser.add_argument("--part", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--method", choices=list(METHODS), default=AGAINST)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
