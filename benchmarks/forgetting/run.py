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

import mixed as one_setting
import summary
from cells import Cell, result_of
from recipes import EARLIER, LEARNING_RATES, MIXED, RECIPES
from summary import PLAIN_DPO, Row, best

import grid

RESULTS = Path(__file__).parent / "results"
TUNING_SEEDS = (1, 2)
SEEDS = (11, 12, 13, 14, 15)
POPULATION_SEEDS = (16, 17, 18)
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
    """The finalists, at their learning rates of the screen, on seeds that nothing was tuned on, with ten people."""
    rows = [*finalists(), *(row for row in best(_screened()) if row.recipe in EARLIER)]
    return [Cell(row.recipe, row.learning_rate, seed, tuple(range(10))) for seed in SEEDS for row in rows]


def population() -> list[Cell]:
    """A hundred people with mixed tastes at one setting for all, on worlds that nothing else looks at.

    Plain DPO, the beta with the widest window, fine-tuning, and ours, each at the setting that was best for people with
    and without errors in their labels.
    """
    beta = next(row.recipe for row in finalists()[1:] if RECIPES[row.recipe].family == "dpo")
    at = {one.recipe: one for one in _settings()}
    wanted = [at[name] for name in (PLAIN_DPO, beta, "sft", *ours())]
    people = tuple(range(100))
    return [
        Cell(one.recipe, one.learning_rate, seed, people, (one.mark,)) for seed in POPULATION_SEEDS for one in wanted
    ]


def finalists() -> list[Row]:
    """The rows of the screen that go on: recipes at their best learning rates."""
    return summary.finalists(_screened(), ours())


def ours() -> tuple[str, str, str]:
    """Of ours: the recipe that became the preset, the same with general prompts, and the best beside these two."""
    alone = one_setting.preset(_settings())
    named = (alone, f"{alone} general")
    return *named, one_setting.best_beside(_settings(), named)


def _screened() -> list[Row]:
    return summary.rows(_finished("screen"))


def _settings() -> list[one_setting.Setting]:
    return one_setting.settings(_finished("screen"), _finished("mixed"))


def _finished(stage: str) -> list[dict[str, Any]]:
    cells = grid.read(RESULTS / f"{stage}.json")
    if not {cell.digest for cell in STAGES[stage]()} <= {cell["digest"] for cell in cells}:
        raise SystemExit(f"the stage {stage} is not finished: the finalists are chosen from all of it")
    return cells


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

    cells = grid.read(RESULTS / f"{stage}.json")
    if not cells:
        raise SystemExit(f"there are no results of {stage} yet")
    if stage == "screen":
        found = summary.rows(cells)
        print(f"What one change does:\n\n{summary.changes(found)}")
        print(f"Each recipe at its best learning rate:\n\n{summary.markdown(best(found))}")
        every = sorted(found, key=lambda row: (row.recipe, row.learning_rate))
        print(f"All:\n\n{summary.markdown(every)}", end="")
        return
    if stage == "mixed":
        print(one_setting.markdown(one_setting.settings(grid.read(RESULTS / "screen.json"), cells)), end="")
        return
    recipes = report.by_recipe(cells)
    if stage == "population":
        from pluralign.world import World

        people = {user.id: user for user in World(0).users(len(cells[0]["people"]))}
        print(f"{report.population(recipes, people)}\n{report.population_against_others(recipes)}", end="")
        if figures:
            report.dose(recipes, people, figures)
        return
    print(f"{report.windows(recipes)}\n{report.against_others(recipes)}\n{report.ends(recipes)}", end="")
    if figures:
        report.figures({name: tracks for name, tracks in recipes.items() if name not in EARLIER}, figures)


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
