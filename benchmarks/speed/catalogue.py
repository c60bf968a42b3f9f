"""Which workloads and curves there are for a device, and where each is found by its name."""

from __future__ import annotations

import gpu
from workloads import CURVES, WORKLOADS, Curve, Workload


def of(device: str, *, shrink: bool = False) -> tuple[tuple[Workload, ...], tuple[Curve, ...]]:
    """Workloads and curves of a device; shrunk ones are the GPU's, on either."""
    if shrink:
        small = tuple(gpu.shrunk(one, device) for one in gpu.WORKLOADS)
        return small, tuple(gpu.shrunk_curve(one, device) for one in gpu.CURVES)
    return (gpu.WORKLOADS, gpu.CURVES) if device == "cuda" else (WORKLOADS, CURVES)


def find(name: str, device: str) -> Workload:
    """The workload of a name."""
    every = (*of(device)[0], *of(device, shrink=True)[0])
    return next(one for one in every if one.name == name)
