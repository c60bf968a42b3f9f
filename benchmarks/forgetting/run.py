"""What an anchor is worth: methods along their whole training on worlds whose truth is known.

    python benchmarks/forgetting/run.py screen              # every recipe at every learning rate, on two tuning seeds
    python benchmarks/forgetting/run.py mixed               # some of them, on people whose labels err
    python benchmarks/forgetting/run.py final               # the finalists, on five other seeds
    python benchmarks/forgetting/run.py population          # a hundred people at one setting
    python benchmarks/forgetting/run.py cell --recipe 'dpo b1' --learning-rate 5e-4 --seed 1
    python benchmarks/forgetting/run.py table --of screen   # from the committed results

A stage is a grid of cells. Cells that are there, below `--work` or in the results, are not made again: a stopped grid
goes on. One of the screen takes about a minute of one core.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from cells import Cell, result_of
from recipes import LATER, LEARNING_RATES, MIXED, RECIPES
from summary import PLAIN_DPO

import grid

RESULTS = Path(__file__).parent / "results"
TUNING_SEEDS = (1, 2)
SEEDS = (11, 12, 13, 14, 15)
FEW_MARKS = (24, 48, 90, 160)
KINDS = {"replaces": 0, "keeps": 1, "declines": 7, "likes the base": 5}
"""Kind of person -> number of the world's person who stands for it in the screen."""
HARDER = (40, 41, 80, 81, 10, 21)
"""People whose labels err in 10% (40, 41) and 20% (80, 81) of the pairs, or who want their style in some topics."""


def screen() -> list[Cell]:
    """Every recipe at every learning rate, one tuning seed after the other."""
    people = tuple(KINDS.values())
    return [Cell(recipe, rate, seed, people) for seed in TUNING_SEEDS for rate in LEARNING_RATES for recipe in RECIPES]


def mixed() -> list[Cell]:
    """Some recipes at every learning rate on harder people of the tuning seeds."""
    return [
        Cell(recipe, rate, seed, HARDER, FEW_MARKS)
        for seed in TUNING_SEEDS
        for rate in LEARNING_RATES
        for recipe in MIXED
    ]


def final() -> list[Cell]:
    """The finalists of the screen, at their learning rates, on seeds that nothing was tuned on, with ten people."""
    return [
        Cell(row.recipe, row.learning_rate, seed, tuple(range(10))) for seed in SEEDS for row in finalists_of_screen()
    ]


def population() -> list[Cell]:
    """A hundred people with mixed tastes at one setting for all: plain DPO, the best beta, the preset's own two."""
    rows = finalists_of_screen()
    beta = next(row.recipe for row in rows[1:] if RECIPES[row.recipe].family == "dpo")
    alone = next(row.recipe for row in rows if f"{row.recipe} general" in [other.recipe for other in rows])
    wanted = (PLAIN_DPO, beta, alone, f"{alone} general")
    people = tuple(range(100))
    return [
        Cell(row.recipe, row.learning_rate, seed, people, FEW_MARKS)
        for seed in SEEDS[:3]
        for row in sorted(rows, key=lambda row: row.recipe)
        if row.recipe in wanted
    ]


def finalists_of_screen() -> list[Any]:
    """The rows of the screen that go on: recipes at their best learning rates."""
    from summary import finalists, rows

    cells = grid.read(RESULTS / "screen.json")
    if not {cell.digest for cell in screen()} <= {cell["digest"] for cell in cells}:
        raise SystemExit("the screen is not finished: finalists are chosen from all of it")
    return finalists([row for row in rows(cells) if row.recipe not in LATER])


STAGES = {"screen": screen, "mixed": mixed, "final": final, "population": population}


def main() -> int:
    arguments = _arguments()
    work = arguments.work.resolve()
    if arguments.stage == "cell":
        cell = Cell(arguments.recipe, arguments.learning_rate, arguments.seed, tuple(arguments.people))
        print(json.dumps(result_of(cell, work), indent=1))
        return 0
    if arguments.stage == "table":
        _show(arguments.of, arguments.figures)
        return 0
    cells = STAGES[arguments.stage]()
    results = RESULTS / f"{arguments.stage}.json"
    grid.unpack(results, cells, work)
    if arguments.part is not None:
        first, step = arguments.part
        _make(cells[first::step], work)
        return 0
    _prepare(cells, work, arguments.processes)
    failed = grid.in_parts(__file__, arguments.stage, work, arguments.processes)
    grid.pack(results, cells, work, command=f"python benchmarks/forgetting/run.py {arguments.stage}")
    return failed


def _make(cells: Sequence[Cell], work: Path) -> None:
    for number, cell in enumerate(cells, 1):
        if not cell.kept(work).exists():
            result = result_of(cell, work)
            print(f"{number} of {len(cells)}: {cell.name}, {result['seconds']} s", flush=True)


def _prepare(cells: Sequence[Cell], work: Path, processes: int) -> None:
    """Make the worlds first: two processes with cells of one world would both train its model."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        list(pool.map(prepare_world, dict.fromkeys(cell.seed for cell in cells), [work] * len(cells)))


def prepare_world(seed: int, work: Path) -> None:
    """Model and prompts of a world."""
    from ground import Ground

    Ground(seed, work).prepare()


def _show(stage: str, figures: Path | None) -> None:
    import report
    from summary import best, changes, markdown, rows

    cells = grid.read(RESULTS / f"{stage}.json")
    if not cells:
        raise SystemExit(f"there are no results of {stage} yet")
    if stage == "screen":
        found = rows(cells)
        print(f"What one change does:\n\n{changes(found)}")
        print(f"Each recipe at its best learning rate:\n\n{markdown(best(found))}")
        print(f"All:\n\n{markdown(sorted(found, key=lambda row: (row.recipe, row.learning_rate)))}", end="")
        return
    if stage == "mixed":
        import mixed as one_setting

        print(one_setting.markdown(one_setting.settings(grid.read(RESULTS / "screen.json"), cells)), end="")
        return
    recipes = report.by_recipe(cells)
    if stage == "population":
        from pluralign.world import World

        distances = {user.id: user.distance for user in World(0).users(len(cells[0]["people"]))}
        print(report.population(recipes, distances), end="")
        if figures:
            report.dose(recipes, distances, figures)
        return
    print(f"{report.windows(recipes)}\n{report.against_others(recipes)}\n{report.ends(recipes)}", end="")
    if figures:
        report.figures(recipes, figures)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=[*STAGES, "cell", "table"])
    parser.add_argument("--work", type=Path, default=Path("runs/forgetting"), help="models, caches, cells")
    parser.add_argument("--processes", type=int, default=1, help="one a core")
    parser.add_argument("--part", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--of", choices=list(STAGES), default="screen", help="stage of the table")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="where the figures of the table go")
    parser.add_argument("--recipe", choices=list(RECIPES), default="dpo b0.1")
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--people", type=int, nargs="+", default=list(KINDS.values()), help="numbers")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
