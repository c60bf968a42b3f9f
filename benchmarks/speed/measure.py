"""One workload: its sides measured in turns, after a look at whether they do the same."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import device
import flops
import inputs
from workloads import Curve, Side, Workload

WARM_UP = 2
"""Steps of each side that are not counted."""
HERE = Path(__file__).parent


class DifferentTrainingError(RuntimeError):
    """The sides do not train the same: their times say nothing."""


def measure(workload: Workload, work: Path, repeats: int) -> dict[str, Any]:
    """The sides' figures, by name: `wall` and `cpu` (seconds), or `peak` and `loaded` (MiB), a list each.

    Where the workload says so, also `flops`: `useful` and `run`, of a step or a population (see `flops.py`).

    Raises:
        DifferentTrainingError: losses of sides with the same objective differ by more than the workload's tolerance.
    """
    kinds = {"steps": _steps, "memory": _memory, "process": _process, "people": _people}
    work.mkdir(parents=True, exist_ok=True)
    found = kinds[workload.kind](workload, work, repeats)
    _check_losses(workload, found)
    device.release(workload.device)
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

    counters: dict[str, flops.Counter] = {}

    def contestant(name: str, side: Side) -> Contestant:
        def make(callback: Any) -> Any:
            trainer = sides.trainer(side, job, callback)
            if _counts(workload, side):
                counters[name] = flops.count_first_step(trainer)
            return trainer

        return Contestant(make, around=lambda: sides.precision(side))

    contestants = [contestant(*named) for named in workload.sides.items()]
    found = in_turns(contestants, wait=lambda: device.synchronize(workload.device))
    counted = {name: counter.total for name, counter in counters.items()}
    return {
        name: {
            "wall": _rounded(steps.wall[WARM_UP:]),
            "cpu": _rounded(steps.cpu[WARM_UP:]),
            "losses": _rounded(steps.losses),
            **_flops(workload, name, counted, workload.batch),
        }
        for name, steps in zip(workload.sides, found, strict=True)
    }


def _memory(workload: Workload, work: Path, repeats: int) -> dict[str, Any]:
    """A process of each side in turn: its highest resident memory, and what it had with the model loaded."""
    found: dict[str, Any] = {name: {"peak": [], "loaded": [], "losses": []} for name in workload.sides}
    for _ in range(repeats):
        for name in workload.sides:
            run = [sys.executable, str(HERE / "memory.py"), workload.name, name, str(work), workload.device]
            done = subprocess.run(run, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{' '.join(run)} has failed:\n{done.stderr[-2000:]}")
            said = json.loads(done.stdout.strip().splitlines()[-1])
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
    counted = _warm_people(workload, work) if workload.warm_people else {}
    for name in workload.sides:
        found[name] |= _flops(workload, name, counted, workload.pairs.people * workload.pairs.number)
    for number in range(repeats):
        for name, side in workload.sides.items():
            out = work / "people" / f"{name}-{number}"
            shutil.rmtree(out, ignore_errors=True)
            device.release(workload.device)
            device.synchronize(workload.device)
            wall, cpu = time.perf_counter(), time.process_time()
            with sides.precision(side):
                loss = populations.RUN[side.who](side, job, out)
            device.synchronize(workload.device)
            found[name]["wall"].append(round(time.perf_counter() - wall, 3))
            found[name]["cpu"].append(round(time.process_time() - cpu, 3))
            found[name]["losses"] = [round(loss, 6)]
    return found


def _warm_people(workload: Workload, work: Path) -> dict[str, int]:
    """Train few people on each side, and count: side -> operations of as many people as the workload has."""
    import populations
    import sides

    few = replace(workload, pairs=replace(workload.pairs, people=workload.warm_people))
    job, counted = job_of(few, work, 0), {}
    for name, side in workload.sides.items():
        out = work / "people" / f"{name}-warm"
        shutil.rmtree(out, ignore_errors=True)
        counter = flops.Counter() if _counts(workload, side) else contextlib.nullcontext()
        with sides.precision(side), counter:
            populations.RUN[side.who](side, job, out)
        if isinstance(counter, flops.Counter):
            counted[name] = counter.total * workload.pairs.people // workload.warm_people
    return counted


def _counts(workload: Workload, side: Side) -> bool:
    """Whether a side's products are counted; with a counter on, FlexAttention would run without its kernel."""
    return workload.flops and side.attention != flops.FLEX


def _flops(workload: Workload, name: str, counted: dict[str, int], examples: int) -> dict[str, Any]:
    """Operations of one side; FlexAttention's has the products of the side that is the same but for the kernel."""
    if not workload.flops:
        return {}
    side = workload.sides[name]
    alike = [other for other in counted if replace(workload.sides[other], attention=side.attention) == side]
    products = counted.get(name, counted[alike[0]] if alike else 0)
    run = products + flops.attention(workload, side, examples)
    return {"flops": {"useful": flops.useful(workload, side, examples), "run": run}}


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
        learning_rate=workload.learning_rate,
        device=workload.device,
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
        "device": job.device,
        "output_dir": out / "run",
        "cache_dir": out / "cache",
        "training.bf16": "true",
        "training.num_train_epochs": 1,
        "training.per_device_train_batch_size": job.batch,
        "training.learning_rate": job.learning_rate,
        "training.lr_scheduler_type": SHARED["lr_scheduler_type"],
        "training.extra_arguments": json.dumps({"train_sampling_strategy": "sequential"}),
    }
    return [sys.executable, "-m", "pluralign", "train", *(f"--{key}={value}" for key, value in keys.items())]


def _trl_command(side: Side, job: Any, out: Path) -> list[str]:
    parts = (job.folder, job.table, out / "run", job.batch, job.rank, side.attention, job.device)
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
