"""Online preference optimization at one budget of annotations: phases, references, losses, a step beyond, an anchor.

    python benchmarks/online/run.py tune      # every arm at every learning rate, on three tuning seeds
    python benchmarks/online/run.py report    # each at its best rate, on sixteen other seeds
    python benchmarks/online/run.py table     # from the committed results
    python benchmarks/online/run.py cell --arm '2 phases' --learning-rate 3e-4 --seed 1

A stage is a grid of cells of some seconds of one core. Cells that are there, below `--work` or in the results, are not
made again. Intervals are those of `benchmarks/forgetting`; `setting.py` has people, questions and judges.
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

from arms import ARMS, LEARNING_RATES, OFFLINE  # noqa: E402
from intervals import Estimate, estimate  # noqa: E402
from online_cells import Cell, prepare, result_of  # noqa: E402

import grid  # noqa: E402

RESULTS = Path(__file__).parent / "results"
TUNING_SEEDS = (1, 2, 3)
SEEDS = tuple(range(11, 27))
_HEADLINE = (OFFLINE, "2 phases", "every step", "every step, fixed")
_LAST = ("offline ipo", "offline hinge")
TURNS = (_HEADLINE, [arm for arm in ARMS if arm not in (*_HEADLINE, *_LAST)], _LAST)
JUDGED = ("wins, annotator", "at equal length, annotator", "wins, other judge", "at equal length, other judge")
BESIDE = ("wins over first, annotator", "style", "kept", "degenerate", "surprise", "kl", "length")
DIFFERING = ("wins, annotator", "at equal length, annotator", "wins, other judge", "kept", "kl")
COMPARED = (
    ("2 phases", OFFLINE),
    ("4 phases", OFFLINE),
    ("every step", OFFLINE),
    ("every step, fixed", OFFLINE),
    ("every step", "every step, fixed"),
    ("2 phases", "every step, fixed"),
    ("4 phases", "every step, fixed"),
    ("2 phases ipo", "offline ipo"),
    ("2 phases hinge", "offline hinge"),
    ("2 phases ipo", "2 phases"),
    ("2 phases hinge", "2 phases"),
    ("4 phases apo", "4 phases"),
    ("2 phases anchored", "2 phases"),
)
"""An arm, and what it is compared with seed by seed."""


def tune() -> list[Cell]:
    """The trials: as many for every arm."""
    return [Cell(arm, rate, seed) for seed in TUNING_SEEDS for rate in LEARNING_RATES for arm in ARMS]


def report() -> list[Cell]:
    """Each arm at the rate with the most wins by the annotator on the tuning seeds."""
    cells = grid.read(RESULTS / "tune.json")
    if {cell.digest for cell in tune()} - {cell["digest"] for cell in cells}:
        raise SystemExit("the trials are not finished: rates are chosen from all of them")
    rates = best_rates(cells)
    # What is asked first is made first.
    return [Cell(arm, rates[arm], seed) for arms in TURNS for seed in SEEDS for arm in arms]


def best_rates(cells: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Arm -> its rate."""
    found: dict[str, dict[float, list[float]]] = {}
    for cell in cells:
        rates = found.setdefault(cell["arm"], {})
        rates.setdefault(cell["learning_rate"], []).append(measures(cell)["wins, annotator"])
    return {arm: max(rates, key=lambda rate: mean(rates[rate])) for arm, rates in found.items()}


def measures(cell: dict[str, Any]) -> dict[str, float]:
    """Means over the people of a cell."""
    people = list(cell["people"].values())
    return {name: mean(one[name] for one in people) for name in people[0]}


def table(cells: Sequence[dict[str, Any]]) -> str:
    """Means over seeds with 95% intervals; differences seed by seed, with what is detectable; seconds."""
    found: dict[str, dict[int, dict[str, dict[str, float]]]] = {}
    for cell in cells:
        found.setdefault(cell["arm"], {}).setdefault(cell["seed"], {}).update(cell["people"])
    rates = {cell["arm"]: cell["learning_rate"] for cell in cells}
    first, beside = [["arm", "rate", *JUDGED]], [["arm", *BESIDE]]
    for arm in found:
        # Only people whom every arm has.
        shown = {name: str(_estimate(found[arm], list(found.values()), name)) for name in (*JUDGED, *BESIDE)}
        first.append([arm, f"{rates[arm]:g}", *(shown[name] for name in JUDGED)])
        beside.append([arm, *(shown[name] for name in BESIDE)])
    differing = [["arm", "less", *(f"{name} (detectable)" for name in DIFFERING)]]
    for arm, other in COMPARED:
        if arm in found and other in found:
            less = [_estimate(found[arm], [found[other]], name, less=found[other]) for name in DIFFERING]
            differing.append([arm, other, *(f"{one} ({one.detectable:.3f})" for one in less)])
    return "\n".join(_table(one) for one in (first, beside, differing, _seconds(cells)))


Found = dict[int, dict[str, dict[str, float]]]
"""Seed -> person -> measures."""


def _estimate(one: Found, others: Sequence[Found], name: str, less: Found | None = None) -> Estimate:
    """Of a measure, or of what it is less another arm's, over seeds: the people that all of the arms have, averaged."""
    values = []
    for seed, people in one.items():
        there = [user for user in people if all(user in other.get(seed, {}) for other in others)]
        if there:
            values.append(mean(people[user][name] - (less[seed][user][name] if less else 0.0) for user in there))
    return estimate(values)


def _seconds(cells: Sequence[dict[str, Any]]) -> list[list[str]]:
    parts = ("sampling", "labelling", "learning")
    lines = [["arm", *(f"{part}, s" for part in parts)]]
    for arm in dict.fromkeys(cell["arm"] for cell in cells):
        runs = [cell["run"] for cell in cells if cell["arm"] == arm]
        lines.append([arm, *(f"{mean(run[part] for run in runs):.1f}" for part in parts)])
    return lines


def _table(lines: Sequence[Sequence[str]]) -> str:
    head, *rest = lines
    return "".join(f"| {' | '.join(line)} |\n" for line in [head, ["---"] * len(head), *rest])


STAGES = {"tune": tune, "report": report}


def main() -> int:
    arguments = _arguments()
    stage, work = arguments.stage, arguments.work.resolve()
    if stage == "table":
        print(table(grid.read(RESULTS / "report.json")), end="")
        return 0
    if stage == "cell":
        cell = Cell(arguments.arm, arguments.learning_rate, arguments.seed)
        prepare(cell.seed, work)
        print(json.dumps(result_of(cell, work), indent=1))
        return 0
    cells, results = STAGES[stage](), RESULTS / f"{stage}.json"
    grid.unpack(results, cells, work)
    if arguments.part is not None:
        first, step = arguments.part
        for cell in cells[first::step]:
            if not cell.kept(work).exists():
                print(f"{cell.kept(work).stem}, {result_of(cell, work)['seconds']} s", flush=True)
        return 0
    for seed in sorted({cell.seed for cell in cells}):
        prepare(seed, work)
    failed = grid.in_parts(__file__, stage, work, arguments.processes)
    grid.pack(results, cells, work, command=f"python benchmarks/online/run.py {stage}")
    return failed


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=[*STAGES, "table", "cell"])
    parser.add_argument("--work", type=Path, default=Path("runs/online-benchmark"), help="models, caches, cells")
    parser.add_argument("--processes", type=int, default=1, help="one a core")
    parser.add_argument("--part", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--arm", choices=list(ARMS), default="2 phases")
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
