"""One workload: its sides measured in turns, after a look at whether they do the same."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import inputs
from workloads import Curve, Side, Workload

WARM_UP = 2
"""Steps of each side that are not counted."""
HERE = Path(__file__).parent


class DifferentTrainingError(RuntimeError):
    """The sides do not train the same: their times say nothing."""


def measure(workload: Workload, work: Path, repeats: int) -> dict[str, Any]:
    """The sides' figures, by name: `wall` and `cpu` (seconds), or `peak` and `loaded` (MiB), a list each.

    Raises:
        DifferentTrainingError: losses of sides with the same objective differ by more than the workload's tolerance.
    """
    kinds = {"steps": _steps, "memory": _memory, "process": _process, "people": _people}
    work.mkdir(parents=True, exist_ok=True)
    found = kinds[workload.kind](workload, work, repeats)
    _check_losses(workload, found)
    return found


def measure_curve(curve: Curve, work: Path) -> list[dict[str, Any]]:
    """A curve's points: `x`, and milliseconds of each side."""
    points = []
    for value, workload in curve.points.items():
        found = measure(workload, work, workload.repeats)
        costs = {name: round(1000 * median(side["wall"]) / curve.per[value], 3) for name, side in found.items()}
        points.append({"x": value, **costs})
    return points


def _steps(workload: Workload, work: Path, repeats: int) -> dict[str, Any]:
    import sides
    from turns import Contestant, in_turns

    job = job_of(workload, work, WARM_UP + repeats)

    def contestant(side: Side) -> Contestant:
        return Contestant(lambda callback: sides.trainer(side, job, callback), around=lambda: sides.precision(side))

    found = in_turns([contestant(side) for side in workload.sides.values()])
    return {
        name: {
            "wall": _rounded(steps.wall[WARM_UP:]),
            "cpu": _rounded(steps.cpu[WARM_UP:]),
            "losses": _rounded(steps.losses),
        }
        for name, steps in zip(workload.sides, found, strict=True)
    }


def _memory(workload: Workload, work: Path, repeats: int) -> dict[str, Any]:
    """A process of each side in turn: its highest resident memory, and what it had with the model loaded."""
    found: dict[str, Any] = {name: {"peak": [], "loaded": [], "losses": []} for name in workload.sides}
    for _ in range(repeats):
        for name in workload.sides:
            run = [sys.executable, str(HERE / "memory.py"), workload.name, name, str(work)]
            answer = subprocess.run(
                run, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            ).stdout
            said = json.loads(answer.strip().splitlines()[-1])
            found[name]["peak"].append(said["peak"])
            found[name]["loaded"].append(said["loaded"])
            found[name]["losses"] = said["losses"]
    return found


def _process(workload: Workload, work: Path, repeats: int) -> dict[str, Any]:
    """A whole command of each side in turn, from nothing cached to an adapter on disk."""
    job = job_of(workload, work, 0)
    found: dict[str, Any] = {name: {"wall": [], "cpu": [], "losses": []} for name in workload.sides}
    for number in range(repeats):
        for name, side in workload.sides.items():
            out = work / "process" / f"{name}-{number}"
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir(parents=True)
            command = _our_command(job, out) if side.who == "ours" else _trl_command(side, job, out)
            wall, cpu = _timed(command, out)
            found[name]["wall"].append(wall)
            found[name]["cpu"].append(cpu)
            if not list(out.rglob("adapter_model.safetensors")):
                raise DifferentTrainingError(f"{name} has left no adapter")
            found[name]["losses"] = _mean_loss(out)
    return found


def _people(workload: Workload, work: Path, repeats: int) -> dict[str, Any]:
    """A whole population of each side in turn, in this process: from loading the model to adapters on disk."""
    import populations
    import sides

    job = job_of(workload, work, 0)
    found: dict[str, Any] = {name: {"wall": [], "cpu": [], "losses": []} for name in workload.sides}
    for side in workload.sides.values():
        sides.warm_imports(side)
    for number in range(repeats):
        for name, side in workload.sides.items():
            out = work / "people" / f"{name}-{number}"
            shutil.rmtree(out, ignore_errors=True)
            wall, cpu = time.perf_counter(), time.process_time()
            with sides.precision(side):
                loss = populations.RUN[side.who](side, job, out)
            found[name]["wall"].append(round(time.perf_counter() - wall, 3))
            found[name]["cpu"].append(round(time.process_time() - cpu, 3))
            found[name]["losses"] = [round(loss, 6)]
    return found


def job_of(workload: Workload, work: Path, steps: int) -> Any:
    """What the sides of a workload train; model and table are made where they are not there yet."""
    from sides import Job

    return Job(
        folder=inputs.model_folder(workload.shape, work),
        table=inputs.table(workload.pairs, workload.shape, work),
        work=work,
        batch=workload.batch,
        steps=steps,
        bf16=workload.bf16,
        dtype=workload.dtype,
        rank=workload.rank,
    )


def _our_command(job: Any, out: Path) -> list[str]:
    from sides import SHARED

    keys = {
        "model": job.folder,
        "data": job.table,
        "data.validation": 0,
        "data.max_prompt_length": 4096,
        "method": "dpo",
        "parameters.per": "none",
        "parameters.rank": job.rank,
        "device": "cpu",
        "output_dir": out / "run",
        "cache_dir": out / "cache",
        "training.bf16": "true",
        "training.num_train_epochs": 1,
        "training.per_device_train_batch_size": job.batch,
        "training.learning_rate": SHARED["learning_rate"],
        "training.lr_scheduler_type": SHARED["lr_scheduler_type"],
        "training.extra_arguments": json.dumps({"train_sampling_strategy": "sequential"}),
    }
    return [sys.executable, "-m", "pluralign", "train", *(f"--{key}={value}" for key, value in keys.items())]


def _trl_command(side: Side, job: Any, out: Path) -> list[str]:
    parts = (job.folder, job.table, out / "run", job.batch, job.rank, side.attention)
    return [sys.executable, str(HERE / "trl_script.py"), *map(str, parts)]


def _timed(command: list[str], out: Path) -> tuple[float, float]:
    """Wall and CPU seconds of a command with caches of its own."""
    environment = {**os.environ, "HF_DATASETS_CACHE": str(out / "datasets"), "PLURALIGN_CACHE": str(out / "cache")}
    with open(out / "log", "wb") as log:
        begun = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begun
    if status:
        raise RuntimeError(f"{' '.join(command)} has failed:\n{(out / 'log').read_text(encoding='utf-8')[-2000:]}")
    return round(wall, 3), round(usage.ru_utime + usage.ru_stime, 3)


def _mean_loss(out: Path) -> list[float]:
    """The mean training loss that a command has left."""
    said = next(out.rglob("train_loss.json"), None)
    if said is not None:
        return [round(json.loads(said.read_text(encoding="utf-8")), 6)]
    return [round(mean_of_lines(next(out.rglob("metrics.jsonl"))), 6)]


def mean_of_lines(path: Path) -> float:
    """Mean training loss over all steps of a `metrics.jsonl`: a line speaks of the steps since the one before."""
    total, steps, last = 0.0, 0, {}
    for line in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        if "loss" in line:
            number = line["step"] - last.get(line["user"], 0)
            last[line["user"]] = line["step"]
            total, steps = total + number * line["loss"], steps + number
    return total / steps


def _check_losses(workload: Workload, found: dict[str, Any]) -> None:
    names = [name for name, side in workload.sides.items() if side.method == "dpo"]
    if not names:
        return
    first = found[names[0]]["losses"]
    for name in names[1:]:
        losses = found[name]["losses"]
        apart = max(abs(one - two) / abs(two) for one, two in zip(first, losses, strict=True))
        found[name]["largest_loss_difference"] = float(f"{apart:.2g}")
        if apart > workload.tolerance:
            raise DifferentTrainingError(
                f"{workload.name}: losses of {names[0]} and {name} differ by {apart:.1e}, more than "
                f"{workload.tolerance:g}: {first} and {losses}"
            )


def _rounded(values: list[float]) -> list[float]:
    return [round(value, 5) for value in values]
