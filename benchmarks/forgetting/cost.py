"""What an anchor costs in time: the same people trained by several recipes in turn, side by side in one run.

    python benchmarks/forgetting/cost.py

CPU seconds of one thread; a ratio is between a recipe and plain DPO in the same round. Base responses are generated
anew in every round, as for somebody who trains for the first time.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from ground import Ground
from intervals import estimate
from recipes import RECIPES
from run import RESULTS

import grid

COMPARED = ("dpo b0.1", "b1 hinge0.03 nll1", "b1 hinge0.03 nll1 sampled", "b1 hinge0.03 nll1 sampled general")
PEOPLE, PAIRS, STEPS, ROUNDS = 4, 240, 60, 6
SEED = 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/forgetting"), help="models")
    parser.add_argument("--table", action="store_true", help="print the committed results")
    arguments = parser.parse_args()
    path = RESULTS / "cost.json"
    if not arguments.table:
        ground = Ground(SEED, arguments.work.resolve())
        ground.prepare()
        _timed(ground, COMPARED[0])
        rounds = [{name: _timed(ground, name) for name in COMPARED} for _ in range(ROUNDS)]
        setting = {"people": PEOPLE, "pairs": PAIRS, "steps": STEPS, "seed": SEED}
        grid.write(path, rounds, command="python benchmarks/forgetting/cost.py", setting=setting)
    print(table(grid.read(path)), end="")
    return 0


def table(rounds: list[dict[str, Any]]) -> str:
    """Ratios with 95% intervals over rounds, and seconds."""
    lines = [
        "| recipe | steps, against plain DPO | responses and log-probs before, s | steps, s |",
        "| --- | --- | --- | --- |",
    ]
    for name in COMPARED:
        ratio = estimate([one[name]["steps"] / one[COMPARED[0]]["steps"] for one in rounds])
        low, high = ratio.ends
        before, steps = (mean(one[name][part] for one in rounds) for part in ("before", "steps"))
        lines.append(f"| {name} | {ratio.mean:.2f}x [{low:.2f}, {high:.2f}] | {before:.1f} | {steps:.1f} |")
    return "\n".join(lines) + "\n"


def _timed(ground: Ground, name: str) -> dict[str, float]:
    """CPU seconds before the first step, and of the steps."""
    from pluralign.config import TrainConfig
    from pluralign.models.matmul import quick_matmul
    from pluralign.resolve import resolve
    from pluralign.training.bank import BankPopulation
    from pluralign.training.record import Record
    from pluralign.training.run import Run

    out = ground.folder / "cost"
    shutil.rmtree(out, ignore_errors=True)
    (out / "run").mkdir(parents=True)
    config = resolve(TrainConfig, _configuration(ground, name, out))
    with quick_matmul():
        run = Run(config)
        census = run.prepare().census
        began = time.process_time()
        rows = run.worker.anchor(census.people)
        anchored = time.process_time()
        record = Record(run.folder, config.parameters.kind, hashes={}, writes=False)
        worker = run.worker
        bank = BankPopulation(config, worker.base, worker.objective, run.arguments, run.folder, worker.layout, record)
        bank.train(bank.resume(list(rows)), lambda users: iter([(user, rows[user]) for user in users]))
        done = time.process_time()
    shutil.rmtree(out, ignore_errors=True)
    return {"before": round(anchored - began, 2), "steps": round(done - anchored, 2)}


def _configuration(ground: Ground, name: str, out: Path) -> dict[str, Any]:
    recipe = RECIPES[name]
    return {
        "method": "dpo",
        "model": str(ground.model),
        "data": {"path": str(ground.table(ground.world.users(PEOPLE), PAIRS)), "validation": 0.1},
        "output_dir": str(out / "run"),
        "cache_dir": str(out / "cache"),
        "seed": ground.seed,
        **recipe.settings(str(ground.general_prompts) if recipe.general else ""),
        "training": {"max_steps": STEPS, "eval_strategy": "no", "save_strategy": "no", "logging_steps": STEPS},
        "bank": {"slots": PEOPLE},
        "evaluation": {"generate": False},
    }


if __name__ == "__main__":
    raise SystemExit(main())
