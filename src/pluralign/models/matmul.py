"""Matrix products on a CPU: float32 by the quicker of two libraries, and a warning where bfloat16 is slow."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator
from typing import Any

import torch

_SETTINGS: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
_SHAPES = ((64, 256, 64), (512, 256, 512), (96, 1024, 320))
_TOLERANCE = 1e-5
"""Error relative to the largest entry. Float32 comes within 1e-6; products in bfloat16 are off by 1e-3."""


@contextlib.contextmanager
def quick_matmul() -> Iterator[None]:
    """Float32 products by oneDNN for the time of the block; as before where that would cost precision.

    PyTorch takes MKL, which on a processor of another maker than its own runs at half of what the machine can. oneDNN
    is reached only through a setting that permits bfloat16; a processor without matrix units for it (AMX) makes no use
    of the permission, which is tried out.
    """
    before = _SETTINGS.fp32_precision
    if not _is_exact():
        yield
        return
    _SETTINGS.fp32_precision = "bf16"
    try:
        yield
    finally:
        _SETTINGS.fp32_precision = before


def warn_of_slow_bfloat16(device: torch.device) -> None:
    """Warn where products in bfloat16 are far slower than in float32: on an x86 processor without AVX-512."""
    if device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2":
        warnings.warn(
            "this processor has no fast products in bfloat16 (they need AVX-512): they may take tens of times as long "
            "as in float32; leave training.bf16 off, and set dtype to float32",
            stacklevel=3,
        )


def product_precision(device: torch.device) -> str:
    """What is set for float32 products on a CPU: `none` as PyTorch comes, `bf16` inside `quick_matmul`."""
    return str(_SETTINGS.fp32_precision) if device.type == "cpu" else "none"


@functools.cache
def _is_exact() -> bool:
    """Whether products stay float32 where bfloat16 is permitted, found out on some shapes."""
    if not torch.backends.mkldnn.is_available():
        return False
    before = _SETTINGS.fp32_precision
    generator = torch.Generator().manual_seed(0)
    _SETTINGS.fp32_precision = "bf16"
    try:
        for rows, inner, columns in _SHAPES:
            left = torch.randn(rows, inner, generator=generator)
            right = torch.randn(inner, columns, generator=generator)
            exact = left.double() @ right.double()
            for product in (left @ right, left @ right.t().contiguous().t(), (left.t().contiguous().t()) @ right):
                if (product - exact).abs().max() > _TOLERANCE * exact.abs().max():
                    return False
    finally:
        _SETTINGS.fp32_precision = before
    return True
