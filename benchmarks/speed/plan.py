"""What `pluralign train --plan` says beside what the run then takes, for three different runs, in fresh processes.

    python benchmarks/speed/plan.py

For each run a process makes the plan, and another one then makes the run, with the same cache, which the plan has
filled in part. Time is from process start to end, memory the highest resident level, disk what is left in the output
folder and has been added to the cache. `--run NAME ...` takes some, `--table` prints the results as a table.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)

SCHEMA_VERSION = 1
RESULTS = Path(__file__).parent / "results" / "plan.json"
MEASURES = ("seconds", "memory", "disk")


def configurations(work: Path) -> dict[str, dict[str, Any]]:
    """Three runs: people of the world with an evaluation, many people with few pairs each, one policy for all."""
    import inputs

    from pluralign.world import World

    world = World(0)
    table = work / "tables" / "world-8x160.jsonl"
    table.parent.mkdir(parents=True, exist_ok=True)
    rows = world.preferences(world.users(8), pairs_per_user=160)
    table.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    shape = inputs.Shape()
    model = str(inputs.model_folder(shape, work))
    many = inputs.table(inputs.Pairs(number=12, prompt=48, response=24, people=300), shape, work)
    one = inputs.table(inputs.Pairs(number=600, prompt=73, response=73), shape, work)
    training = {"num_train_epochs": 2, "eval_strategy": "epoch"}
    return {
        "world": {
            "data": str(table),
            "training": {"max_steps": 120},
            "evaluation": {"probes": "world", "max_probes": 200, "max_prompts": 32},
        },
        "many": {
            "data": {"path": str(many), "validation": 0},
            "model": model,
            "method": "dpo",
            "training": {"num_train_epochs": 2},
        },
        "one policy": {
            "data": str(one),
            "model": model,
            "method": "dpo",
            "parameters": {"per": "none"},
            "training": training,
            "evaluation": {"generate": False},
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", nargs="+")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, default=Path("runs/speed"), help="folder of models, tables, runs, caches")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--plan-of", metavar="FILE", help="print the plan of a configuration as JSON, and stop")
    arguments = parser.parse_args()
    if arguments.plan_of:
        print_plan(arguments.plan_of)
        return
    results = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.exists() else _nothing()
    if not arguments.table:
        from run import machine

        for name, configuration in configurations(arguments.work.resolve()).items():
            if not arguments.run or name in arguments.run:
                found = compare(name, configuration, arguments.work.resolve())
                # Where the work folder lies says nothing to a reader.
                shown = json.loads(json.dumps(configuration).replace(f"{arguments.work.resolve()}/", ""))
                results["runs"][name] = {"machine": machine(), "configuration": shown, **found}
                arguments.out.parent.mkdir(parents=True, exist_ok=True)
                arguments.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(markdown(results), end="")


def compare(name: str, configuration: dict[str, Any], work: Path) -> dict[str, Any]:
    """Predicted and actual figures of a run."""
    folder = work / "plans" / name.replace(" ", "-")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    output, cache = folder / "run", folder / "cache"
    file = folder / "run.yaml"
    places = {"output_dir": str(output), "cache_dir": str(cache), "device": "cpu"}
    file.write_text(yaml.safe_dump({**configuration, **places}), encoding="utf-8")
    made = _run([sys.executable, str(Path(__file__).resolve()), "--plan-of", str(file)], folder / "plan.log")
    plan = json.loads(made["output"].strip().splitlines()[-1])
    cached = _size(cache)
    actual = _run([sys.executable, "-m", "pluralign", "train", "--config", str(file)], folder / "run.log")
    actual["disk"] = _size(output) + _size(cache) - cached
    del actual["output"]
    predicted = {measure: plan[measure]["total"] for measure in MEASURES}
    return {
        "predicted": predicted,
        "actual": actual,
        "ratio": {measure: round(predicted[measure] / actual[measure], 3) for measure in MEASURES},
        "planning_seconds": made["seconds"],
        "plan": plan,
    }


def print_plan(file: str) -> None:
    """What `pluralign train --plan` prints, as JSON."""
    import psutil

    from pluralign.config import TrainConfig
    from pluralign.resolve import parse
    from pluralign.training.planning import plan

    config = parse(TrainConfig, ["--config", file], prog="plan")
    made = plan(config, before=time.time() - psutil.Process().create_time())
    print("\n" + json.dumps(made.as_dict()))


def markdown(results: dict[str, Any]) -> str:
    """The results as a table: predicted, actual, ratio."""
    units = {"seconds": 1.0, "memory": 2.0**20, "disk": 2.0**20}
    lines = ["| run | time, s | memory, MiB | disk, MiB | the plan itself, s |", "| --- | --- | --- | --- | --- |"]
    for name, found in results["runs"].items():
        cells = [
            f"{found['predicted'][key] / unit:.1f} / {found['actual'][key] / unit:.1f} ({found['ratio'][key]:.2f})"
            for key, unit in units.items()
        ]
        lines.append(f"| {name} | {' | '.join(cells)} | {found['planning_seconds']:.1f} |")
    return "\n".join(lines) + "\n"


def _run(command: list[str], log: Path) -> dict[str, Any]:
    """Wall seconds and highest resident bytes of a command, and what it printed."""
    with open(log, "wb") as file:
        begun = time.perf_counter()
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begun
    output = log.read_text(encoding="utf-8")
    if status:
        raise RuntimeError(f"{' '.join(command)} has failed:\n{output[-3000:]}")
    return {"seconds": round(seconds, 2), "memory": usage.ru_maxrss * 1024, "output": output}


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _nothing() -> dict[str, Any]:
    return {"schema_version": SCHEMA_VERSION, "command": "python benchmarks/speed/plan.py", "runs": {}}


if __name__ == "__main__":
    main()
