"""Our training beside TRL's and beside a loop of PEFT adapters: speed and memory, measured in turns on one thread.

    python benchmarks/speed/run.py
    python benchmarks/speed/run.py --device cuda

Workloads that are in the results file already are left as they are: a run that was stopped goes on where it was, and
`--again` measures anew. `--workload NAME ...` takes some, `--repeats N` replaces the number of repeats, `--table`
prints the table of the results, `--plot FILE` draws them. Models and tables of pairs are made below `--work`.

On a GPU other workloads are measured (`gpu.py`), on the first one that is visible, into a file with its name. A
workload that fails is named, and the next one is measured. `--shrink` runs all of these with a tiny model, also on a
CPU: that tries the code, and its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

for name, value in {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    # The Trainer would spread a batch over all GPUs that it sees.
    "CUDA_VISIBLE_DEVICES": "0",
}.items():
    os.environ.setdefault(name, value)

SCHEMA_VERSION = 1
RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """The exit code: 1 where a workload failed."""
    arguments = _arguments()
    if arguments.table or arguments.plot:
        _show(json.loads(arguments.out.read_text(encoding="utf-8")), arguments.plot)
        return 0
    import catalogue
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    workloads, curves = catalogue.of(arguments.device, shrink=arguments.shrink)
    order = [workload.name for workload in workloads]
    names = list(dict.fromkeys([*order, *(curve.name for curve in curves)]))
    wanted = arguments.workload or names
    unknown = sorted(set(wanted) - set(names))
    if unknown:
        raise SystemExit(f"there is no workload {', '.join(unknown)}; there are {', '.join(names)}")
    tasks: list[tuple[str, Callable[[], None]]] = []
    for workload in workloads:
        one = replace(workload.without(arguments.without), batch=arguments.batch or workload.batch)
        tasks.append((one.name, partial(measure_one, one, arguments, order)))
    tasks += [(curve.name, partial(measure_curve, curve.without(arguments.without), arguments)) for curve in curves]
    failed = [name for name, task in tasks if name in wanted and not _succeeds(task)]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _succeeds(task: Callable[[], None]) -> bool:
    try:
        task()
    except Exception:  # noqa: BLE001
        traceback.print_exc()
        return False
    return True


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--shrink", action="store_true", help="try the GPU's workloads with a tiny model")
    parser.add_argument("--workload", nargs="+", metavar="NAME", help="workloads and curves to measure; by default all")
    parser.add_argument("--without", nargs="+", default=[], metavar="SIDE", help="leave sides out, and their claims")
    parser.add_argument("--batch", type=int, help="pairs a step, for a device with less memory; curves keep theirs")
    parser.add_argument("--repeats", type=int, help="measured steps, or processes, of each side")
    parser.add_argument("--again", action="store_true", help="measure what is there too")
    parser.add_argument("--out", type=Path, help="by default results/speed.json, or speed-DEVICE.json")
    parser.add_argument("--work", type=Path, default=Path("runs/speed"), help="folder of models, tables, caches")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    if arguments.out is None:
        arguments.out = _results_file(arguments, parser)
    return arguments


def _results_file(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> Path:
    """Where results go by default; figures of a tiny model never beside real ones."""
    if arguments.shrink:
        return Path(arguments.work / f"speed-{arguments.device}-shrunk.json")
    if arguments.device == "cpu":
        return RESULTS / "speed.json"
    import device
    import torch

    if not torch.cuda.is_available():
        parser.error("no CUDA device is here (results of another machine are named by --out)")
    return RESULTS / f"speed-{device.slug(arguments.device)}.json"


def measure_one(workload: Any, arguments: argparse.Namespace, order: list[str]) -> None:
    """Measure a workload that is not there yet, and write the results, workloads in that order."""
    from measure import measure
    from summary import claims, markdown, utilisation

    results = _read(arguments.out, arguments.device)
    if workload.name in results["workloads"] and not arguments.again:
        return
    print(workload.name, flush=True)
    found = measure(workload, arguments.work.resolve(), arguments.repeats or workload.repeats)
    here = machine() | gpu_of(arguments)
    entry = {"machine": here, "settings": settings(workload), "sides": found, "claims": claims(workload, found)}
    if workload.flops:
        entry["utilisation"] = utilisation(found, here["device"])
    kept = {**results["workloads"], workload.name: entry}
    results["workloads"] = {name: kept[name] for name in order if name in kept}
    _write(arguments.out, results)
    print(markdown({"workloads": {workload.name: entry}}), flush=True)


def measure_curve(curve: Any, arguments: argparse.Namespace) -> None:
    """Measure a curve that is not there yet, and write the results."""
    import measure

    results = _read(arguments.out, arguments.device)
    if curve.name in results["curves"] and not arguments.again:
        return
    print(curve.name, flush=True)
    points = measure.measure_curve(curve, arguments.work.resolve())
    entry = {"machine": machine() | gpu_of(arguments), "axis": curve.axis, "unit": curve.unit, "points": points}
    results["curves"][curve.name] = entry
    _write(arguments.out, results)


def _read(path: Path, device: str) -> dict[str, Any]:
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    command = "python benchmarks/speed/run.py" + " --device cuda" * (device == "cuda")
    return {"schema_version": SCHEMA_VERSION, "command": command, "workloads": {}, "curves": {}}


def _write(path: Path, results: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def settings(workload: Any) -> dict[str, Any]:
    """What the sides were given."""
    from dataclasses import asdict

    import sides

    given = asdict(workload)
    given.pop("claims")
    weights = "all weights" if workload.rank is None else f"LoRA of rank {workload.rank} on all linear layers"
    return {
        **given,
        "trained": weights,
        "both_trainers": sides.shared(workload.learning_rate),
        "trl_trainer": sides.trl_only(workload.device),
    }


def gpu_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Name and rooflines of the device, where it is more than the processor."""
    import device

    if arguments.device == "cpu" and not arguments.shrink:
        return {}
    found = {**device.describe(arguments.device), **device.roofline(arguments.device, small=arguments.shrink)}
    device.release(arguments.device)
    return {"device": found}


def machine() -> dict[str, Any]:
    """Processor, cores, versions."""
    import torch

    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    cpu = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return {
        "processor": cpu.get("model name", platform.machine()),
        "family": f"{cpu.get('vendor_id')} {cpu.get('cpu family')}/{cpu.get('model')}",
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "load_at_the_end": round(os.getloadavg()[0], 2),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "peft", "accelerate", "trl")},
    }


def _show(results: dict[str, Any], plot: Path | None) -> None:
    if plot:
        from plot import draw

        draw(results, plot)
    else:
        from summary import markdown

        print(markdown(results), end="")


if __name__ == "__main__":
    raise SystemExit(main())
