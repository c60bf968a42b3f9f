"""Our training beside TRL's and beside a loop of PEFT adapters: speed and memory, measured in turns on one thread.

    python benchmarks/speed/run.py

Workloads that are in the results file already are left as they are: a run that was stopped goes on where it was, and
`--again` measures anew. `--workload NAME ...` takes some, `--repeats N` replaces the number of repeats, `--table`
prints the table of the results, `--plot FILE` draws them. Models and tables of pairs are made below `--work`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import warnings
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
}.items():
    os.environ.setdefault(name, value)

SCHEMA_VERSION = 1
RESULTS = Path(__file__).parent / "results" / "speed.json"


def main() -> None:
    from workloads import CURVES, WORKLOADS

    names = [each.name for each in (*WORKLOADS, *CURVES)]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", nargs="+", choices=names)
    parser.add_argument("--repeats", type=int, help="measured steps, or processes, of each side")
    parser.add_argument("--again", action="store_true", help="measure what is there too")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, default=Path("runs/speed"), help="folder of models, tables, caches")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    if arguments.table or arguments.plot:
        _show(json.loads(arguments.out.read_text(encoding="utf-8")), arguments.plot)
        return
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for workload in WORKLOADS:
        if not arguments.workload or workload.name in arguments.workload:
            measure_one(workload, arguments)
    for curve in CURVES:
        if not arguments.workload or curve.name in arguments.workload:
            measure_curve(curve, arguments)


def measure_one(workload: Any, arguments: argparse.Namespace) -> None:
    """Measure a workload that is not there yet, and write the results."""
    from measure import measure
    from summary import claims, markdown
    from workloads import WORKLOADS

    results = _read(arguments.out)
    if workload.name in results["workloads"] and not arguments.again:
        return
    print(workload.name, flush=True)
    found = measure(workload, arguments.work.resolve(), arguments.repeats or workload.repeats)
    entry = {"machine": machine(), "settings": settings(workload), "sides": found, "claims": claims(workload, found)}
    kept = {**results["workloads"], workload.name: entry}
    results["workloads"] = {one.name: kept[one.name] for one in WORKLOADS if one.name in kept}
    _write(arguments.out, results)
    print(markdown({"workloads": {workload.name: entry}}), flush=True)


def measure_curve(curve: Any, arguments: argparse.Namespace) -> None:
    """Measure a curve that is not there yet, and write the results."""
    import measure

    results = _read(arguments.out)
    if curve.name in results["curves"] and not arguments.again:
        return
    print(curve.name, flush=True)
    points = measure.measure_curve(curve, arguments.work.resolve())
    entry = {"machine": machine(), "axis": curve.axis, "unit": curve.unit, "points": points}
    results["curves"][curve.name] = entry
    _write(arguments.out, results)


def _read(path: Path) -> dict[str, Any]:
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    command = "python benchmarks/speed/run.py"
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
    return {**given, "trained": weights, "both_trainers": sides.SHARED, "trl_trainer": sides.TRL}


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
    main()
