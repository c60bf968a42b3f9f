"""One side's peak memory, in a process of its own; prints a line of JSON (MiB).

python memory.py WORKLOAD SIDE WORK DEVICE
"""

from __future__ import annotations

import ctypes
import gc
import json
import shutil
import sys
from pathlib import Path

import catalogue
import measure
import sides
import torch
from transformers import AutoModelForCausalLM
from turns import keep_losses


def main() -> None:
    """Load the model alone, let it go, then train: the highest level of the second part."""
    name, side_name, work, device = sys.argv[1:]
    workload = catalogue.find(name, device)
    side = workload.sides[side_name]
    job = measure.job_of(workload, Path(work), 3)
    shutil.rmtree(job.work / "cache", ignore_errors=True)  # the references are part of it
    sides.warm_imports(side)
    model = AutoModelForCausalLM.from_pretrained(job.folder, dtype=getattr(torch, job.dtype)).to(device)
    loaded = _now(device)
    del model
    gc.collect()
    _begin_anew(device)
    with sides.precision(side):
        trainer = sides.trainer(side, job)
        losses: list[float] = []
        keep_losses(trainer, losses)
        trainer.train()
    said = {"loaded": loaded, "peak": _peak(device), "losses": [round(float(loss), 5) for loss in losses]}
    print("\n" + json.dumps(said))


def _now(device: str) -> float:
    return _mib(torch.cuda.memory_allocated()) if device == "cuda" else _level("VmRSS")


def _peak(device: str) -> float:
    """Of tensors on a GPU, and of the whole process on a CPU."""
    return _mib(torch.cuda.max_memory_allocated()) if device == "cuda" else _level("VmHWM")


def _begin_anew(device: str) -> None:
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def _mib(count: int) -> float:
    return round(count / 2**20, 1)


def _level(key: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return round(int(line.split()[1]) / 1024, 1)
    raise LookupError(key)


if __name__ == "__main__":
    main()
