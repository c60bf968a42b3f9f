"""The finalists of the screen on real text: what people's manner costs in taught facts, along the training.

    python benchmarks/forgetting/text.py tune --data DIR --model MODEL     # every finalist at four learning rates
    python benchmarks/forgetting/text.py report --data DIR --model MODEL   # each at its best one, on other seeds
    python benchmarks/forgetting/text.py table                             # from the committed results
    python benchmarks/forgetting/text.py cell --data DIR --model MODEL --task dsp --recipe 'dpo b0.1' --seed 0

MODEL is what `benchmarks/real_text/make_model.py` wrote, DIR the published data (docs/real-text.md). One cell takes
about a minute of one core; cells that are there are not made again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).parents[1]))

import report
from fronts import tracks_of
from recipes import RECIPES
from run import RESULTS, finalists
from text_cells import PEOPLE_TASKS, TextCell, Texts, result_of

import grid

TUNING_SEED = 100
SEEDS = (0, 1, 2)
LEARNING_RATES = (3e-4, 1e-3, 3e-3, 1e-2)
"""The trials of every recipe on each population."""


def tune() -> list[TextCell]:
    """Every finalist at every learning rate."""
    names = [row.recipe for row in finalists()]
    return [
        TextCell(task, name, rate, TUNING_SEED) for task in PEOPLE_TASKS for rate in LEARNING_RATES for name in names
    ]


def reported() -> list[TextCell]:
    """Each finalist at the rate with the largest area under its front, on seeds that nothing was tuned on."""
    cells = tune()
    found = {cell["digest"]: cell for cell in grid.read(RESULTS / "text-tune.json")}
    if not {cell.digest for cell in cells} <= set(found):
        raise SystemExit("the trials are not finished: learning rates are chosen from all of them")
    areas: dict[tuple[str, str], dict[float, float]] = {}
    for cell in cells:
        people = tracks_of(found[cell.digest]).values()
        areas.setdefault((cell.task, cell.recipe), {})[cell.learning_rate] = mean(track.area for track in people)
    best = {key: max(rates, key=lambda rate: rates[rate]) for key, rates in areas.items()}
    return [TextCell(task, name, rate, seed) for seed in SEEDS for (task, name), rate in best.items()]


STAGES: dict[str, Callable[[], list[TextCell]]] = {"tune": tune, "report": reported}


def main() -> int:
    arguments = _arguments()
    if arguments.stage == "table":
        cells = grid.read(RESULTS / "text-report.json")
        for task in PEOPLE_TASKS:
            found = [cell for cell in cells if cell["task"] == task]
            print(f"**{task}**\n\n{report.on_text(found)}\n{report.on_text_against_others(found)}")
        return 0
    texts = Texts(arguments.data.resolve(), arguments.model.resolve(), arguments.work.resolve())
    if arguments.stage == "cell":
        cell = TextCell(arguments.task, arguments.recipe, arguments.learning_rate, arguments.seed)
        print(json.dumps(result_of(cell, texts), indent=1))
        return 0
    return _make_all(arguments, texts)


def _make_all(arguments: argparse.Namespace, texts: Texts) -> int:
    stage = arguments.stage
    cells, results = STAGES[stage](), RESULTS / f"text-{stage}.json"
    grid.unpack(results, cells, texts.work)
    if arguments.part is not None:
        first, step = arguments.part
        for number, cell in enumerate(cells[first::step], 1):
            if not cell.kept(texts.work).exists():
                print(f"{number}: {cell.kept(texts.work).stem}, {result_of(cell, texts)['seconds']} s", flush=True)
        return 0
    texts.prepare({(cell.task, cell.seed) for cell in cells})
    options = ("--data", str(texts.data), "--model", str(texts.model))
    failed = grid.in_parts(__file__, stage, texts.work, arguments.processes, *options)
    command = f"python benchmarks/forgetting/text.py {stage} --data DIR --model MODEL"
    card = json.loads((texts.model / "model.json").read_text(encoding="utf-8"))
    grid.pack(results, cells, texts.work, command=command, model=card)
    return failed


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=[*STAGES, "cell", "table"])
    parser.add_argument("--data", type=Path, default=Path("data"), help="the data folder")
    parser.add_argument("--model", type=Path, default=Path("model"), help="folder of the small model")
    parser.add_argument("--work", type=Path, default=Path("runs/forgetting-text"), help="tables, caches, cells")
    parser.add_argument("--processes", type=int, default=1, help="one a core")
    parser.add_argument("--part", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--task", choices=list(PEOPLE_TASKS), default="dsp")
    parser.add_argument("--recipe", choices=list(RECIPES), default="dpo b0.1")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
