"""Every offline preset at equal compute: one policy for groups of unequal size and opposed tastes, after one SFT.

    python benchmarks/objectives/run.py tune      # every method at every learning rate, on tuning seeds
    python benchmarks/objectives/run.py report    # each at its best rate, on five other seeds
    python benchmarks/objectives/run.py table     # from the committed results
    python benchmarks/objectives/run.py cell --method gr-dpo --learning-rate 1e-4 --seed 1

All of them on the world; `--on hh` and `--on personas` are real text, and need `--data` and `--model`
(docs/real-text.md).
A stage is a grid of cells; one takes ten seconds of one core, on real text half a minute, the model of a world some
minutes once. Cells that are there, below `--work` or in the results, are not made again. Worlds, models, probes and
intervals are those of `benchmarks/forgetting`.
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

import real_cells  # noqa: E402
import world_cells  # noqa: E402
from intervals import Estimate, estimate  # noqa: E402
from methods import FIRST_STAGE, METHODS, rates_of  # noqa: E402

import grid  # noqa: E402

RESULTS = Path(__file__).parent / "results"
TUNING_SEEDS = {"world": (1, 2), "hh": (100,), "personas": (100,)}
SEEDS = {"world": (11, 12, 13, 14, 15), "hh": (0, 1, 2, 3, 4), "personas": (0, 1, 2, 3, 4)}
AGAINST = "dpo"
MEASURES = ("worst served", "mean served", "worst style", "mean kept", "mean told")
"""`told` is of real text alone."""
PAIRS = (
    ("sft", FIRST_STAGE),
    ("sft, importance", "sft"),
    ("sft, worst group", "sft"),
    ("sft, worst group", "sft, importance"),
    ("orpo", FIRST_STAGE),
    ("sppo", FIRST_STAGE),
    ("bapo", FIRST_STAGE),
    ("bapo, importance", "bapo"),
    ("gr-bapo", "bapo"),
    ("gr-dpo", "dpo"),
    ("gr-ipo", "ipo"),
)
"""What is looked at beside the difference to plain DPO."""
AnyCell = world_cells.Cell | real_cells.RealCell


def cell_of(on: str, method: str, rate: float, seed: int) -> AnyCell:
    """What is made on the world or on a population of real text."""
    if on == "world":
        return world_cells.Cell(method, rate, seed)
    return real_cells.RealCell(on, method, rate, seed)


def tune(on: str) -> list[AnyCell]:
    """The trials: as many for every method."""
    seeds = TUNING_SEEDS[on]
    return [cell_of(on, method, rate, seed) for seed in seeds for method in METHODS for rate in rates_of(method, on)]


def report(on: str) -> list[AnyCell]:
    """Each method at its best rate."""
    cells = grid.read(RESULTS / f"{on}-tune.json")
    if {cell.digest for cell in tune(on)} - {cell["digest"] for cell in cells}:
        raise SystemExit("the trials are not finished: rates are chosen from all of them")
    rates = best_rates(cells)
    return [cell_of(on, method, rates[method], seed) for seed in SEEDS[on] for method in METHODS]


def best_rates(cells: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The rate with the best served worst group over the tuning seeds; of equals, the one that keeps more."""
    found: dict[str, dict[float, list[tuple[float, float]]]] = {}
    for cell in cells:
        values = measures(cell)
        rates = found.setdefault(cell["method"], {})
        rates.setdefault(cell["learning_rate"], []).append((values["worst served"], values["mean kept"]))
    return {
        method: max(rates, key=lambda rate: tuple(mean(part) for part in zip(*rates[rate], strict=True)))
        for method, rates in found.items()
    }


def measures(cell: dict[str, Any]) -> dict[str, float]:
    """Of all groups of a cell."""
    groups = cell["groups"].values()
    found = {
        "worst served": min(one["served"] for one in groups),
        "mean served": mean(one["served"] for one in groups),
        "worst style": min(one["style"] for one in groups),
        "mean kept": mean(one["kept"] for one in groups),
    }
    return found | ({"mean told": mean(one["told"] for one in groups)} if "told" in next(iter(groups)) else {})


def table(cells: Sequence[dict[str, Any]]) -> str:
    """Means over seeds with 95% intervals, and the worst group's difference to plain DPO, seed by seed."""
    by_method: dict[str, dict[int, dict[str, float]]] = {}
    for cell in cells:
        by_method.setdefault(cell["method"], {})[cell["seed"]] = measures(cell)
    rates = {cell["method"]: cell["learning_rate"] for cell in cells}
    names = [name for name in MEASURES if name in measures(cells[0])]
    lines = [f"| method | rate | {' | '.join(names)} | worst served, less {AGAINST} | detectable |"]
    lines.append("| --- " * (len(names) + 4) + "|")
    for method, seeds in by_method.items():
        means = [_shown(estimate([one[name] for one in seeds.values()])) for name in names]
        other = by_method[AGAINST]
        less = estimate([one["worst served"] - other[seed]["worst served"] for seed, one in seeds.items()])
        beside = [_shown(less), f"{less.detectable:.2f}"] if method != AGAINST else ["", ""]
        lines.append(f"| {method} | {rates[method]:g} | {' | '.join([*means, *beside])} |")
    return "\n".join(lines)


def pairs_table(cells: Sequence[dict[str, Any]]) -> str:
    """What weights change: one method less another, seed by seed, and the worst group of each in every one."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    for cell in cells:
        found.setdefault(cell["method"], {})[cell["seed"]] = measures(cell)
    lines = ["| one | less | worst served | mean served | mean kept |", "| --- " * 5 + "|"]
    for one, other in PAIRS:
        less = [
            estimate([found[one][seed][name] - found[other][seed][name] for seed in found[one]])
            for name in ("worst served", "mean served", "mean kept")
        ]
        shown = [f"{_shown(each)} ({each.detectable:.2f})" for each in less]
        lines.append(f"| {one} | {other} | {' | '.join(shown)} |")
    lines += ["", "| worst served | of each seed |", "| --- | --- |"]
    for name in dict.fromkeys(name for pair in PAIRS for name in pair):
        worst = [f"{one['worst served']:.2f}" for one in found[name].values()]
        lines.append(f"| {name} | {', '.join(worst)} |")
    return "\n".join(lines)


def _shown(found: Estimate) -> str:
    low, high = found.ends
    return f"{found.mean:.2f} [{low:.2f}, {high:.2f}]"


STAGES = {"tune": tune, "report": report}


def main() -> int:
    arguments = _arguments()
    on, stage = arguments.on, arguments.stage
    if stage == "table":
        there = grid.read(RESULTS / f"{on}-report.json")
        print(f"{table(there)}\n\n{pairs_table(there)}")
        return 0
    if stage == "cell":
        cell = cell_of(on, arguments.method, arguments.learning_rate, arguments.seed)
        print(json.dumps(_made(cell, arguments), indent=1))
        return 0
    work = arguments.work.resolve()
    cells, results = STAGES[stage](on), RESULTS / f"{on}-{stage}.json"
    grid.unpack(results, cells, work)
    if arguments.part is not None:
        first, step = arguments.part
        for cell in cells[first::step]:
            if not cell.kept(work).exists():
                print(f"{cell.kept(work).stem}, {_made(cell, arguments)['seconds']} s", flush=True)
        return 0
    for seed in sorted({cell.seed for cell in cells}):
        _prepare(seed, arguments)
    options = ("--on", on, "--data", str(arguments.data.resolve()), "--model", str(arguments.model.resolve()))
    failed = grid.in_parts(__file__, stage, work, arguments.processes, *options)
    beside = "" if on == "world" else f" --on {on} --data DIR --model MODEL"
    card = {} if on == "world" else {"model": json.loads((arguments.model / "model.json").read_text(encoding="utf-8"))}
    grid.pack(results, cells, work, command=f"python benchmarks/objectives/run.py {stage}{beside}", **card)
    return failed


def _made(cell: AnyCell, arguments: argparse.Namespace) -> dict[str, Any]:
    if isinstance(cell, world_cells.Cell):
        return world_cells.result_of(cell, arguments.work.resolve())
    return real_cells.result_of(cell, _texts(arguments))


def _prepare(seed: int, arguments: argparse.Namespace) -> None:
    if arguments.on == "world":
        world_cells.prepare(seed, arguments.work.resolve())
    else:
        _texts(arguments).prepare(arguments.on, seed)


def _texts(arguments: argparse.Namespace) -> real_cells.Texts:
    return real_cells.Texts(arguments.data.resolve(), arguments.model.resolve(), arguments.work.resolve())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=[*STAGES, "cell", "table"])
    parser.add_argument("--on", choices=list(SEEDS), default="world", help="the world, or a population of real text")
    parser.add_argument("--data", type=Path, default=Path("data"), help="the data folder")
    parser.add_argument("--model", type=Path, default=Path("model"), help="folder of the small model")
    parser.add_argument("--work", type=Path, default=Path("runs/objectives"), help="models, tables, caches, cells")
    parser.add_argument("--processes", type=int, default=1, help="one a core")
    parser.add_argument("--part", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--method", choices=list(METHODS), default=AGAINST)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
