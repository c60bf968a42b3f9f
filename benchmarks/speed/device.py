"""The device that is measured: its name, its two rooflines, waiting for it, and giving back what was taken."""

from __future__ import annotations

import gc
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from typing import Any

import torch

ROUNDS = 5
"""Of each roofline loop; the best counts."""


def slug(device: str) -> str:
    """The device's name for a file: `nvidia-h200`."""
    name = torch.cuda.get_device_name() if device == "cuda" else device
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")


def synchronize(device: str) -> None:
    """Wait until the device has done all that it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def release(device: str) -> None:
    """Give back the memory of what is no longer used."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def describe(device: str) -> dict[str, Any]:
    """Name, driver and memory of a GPU; nothing for the CPU."""
    if device != "cuda":
        return {}
    properties = torch.cuda.get_device_properties()
    return {
        "name": properties.name,
        "driver": _driver(),
        "memory_mib": round(properties.total_memory / 2**20),
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def _driver() -> str | None:
    if not shutil.which("nvidia-smi"):
        return None
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    said = subprocess.run(ask, capture_output=True, text=True).stdout.split()
    return said[0] if said else None


def roofline(device: str, *, small: bool = False) -> dict[str, float]:
    """What the device reaches: FLOP/s of products of square bf16 matrices, and bytes/s of a copy, reads and writes.

    Args:
        device: `cuda`, or `cpu` to try the code.
        small: sizes that say nothing and take no time.
    """
    size, elements = (256, 2**16) if small else (8192, 2**30)
    left, right = (torch.randn(size, size, dtype=torch.bfloat16, device=device) for _ in range(2))
    product = torch.empty_like(left)
    seconds = _best(lambda: torch.mm(left, right, out=product), device, times=2 if small else 50)
    source = torch.zeros(elements, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    copying = _best(lambda: target.copy_(source), device, times=2 if small else 20)
    return {
        "matmul_flops_per_second": float(f"{2 * size**3 / seconds:.4g}"),
        "matmul_size": size,
        "copy_bytes_per_second": float(f"{2 * source.nbytes / copying:.4g}"),
        "copied_bytes": source.nbytes,
    }


def _best(work: Callable[[], Any], device: str, times: int) -> float:
    """Seconds of one of `times` calls in a row, in the quickest of some rounds."""
    work()
    found = []
    for _ in range(ROUNDS):
        synchronize(device)
        begun = time.perf_counter()
        for _ in range(times):
            work()
        synchronize(device)
        found.append((time.perf_counter() - begun) / times)
    return min(found)
