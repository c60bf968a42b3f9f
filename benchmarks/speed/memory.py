"""One side's peak memory, in a process of its own: `memory.py WORKLOAD SIDE WORK` prints a line of JSON (MiB)."""

from __future__ import annotations

import ctypes
import gc
import json
import shutil
import sys
from pathlib import Path

import measure
import sides
from transformers import AutoModelForCausalLM
from turns import keep_losses
from workloads import WORKLOADS


def main() -> None:
    """Load the model alone, let it go, then train: the highest level of the second part."""
    name, side_name, work = sys.argv[1:]
    workload = next(one for one in WORKLOADS if one.name == name)
    side = workload.sides[side_name]
    job = measure.job_of(workload, Path(work), 3)
    shutil.rmtree(job.work / "cache", ignore_errors=True)  # the references are part of it
    sides.warm_imports(side)
    model = AutoModelForCausalLM.from_pretrained(job.folder)
    loaded = _level("VmRSS")
    del model
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    with sides.precision(side):
        trainer = sides.trainer(side, job)
        losses: list[float] = []
        keep_losses(trainer, losses)
        trainer.train()
    said = {"loaded": loaded, "peak": _level("VmHWM"), "losses": [round(float(loss), 5) for loss in losses]}
    print("\n" + json.dumps(said))


def _level(key: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return round(int(line.split()[1]) / 1024, 1)
    raise LookupError(key)


if __name__ == "__main__":
    main()
