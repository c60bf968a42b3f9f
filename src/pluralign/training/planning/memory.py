"""Memory of this process and its device, and what has taken it."""

from __future__ import annotations

import sys
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch

from pluralign.models.base import Base


class Levels:
    """Levels of memory in the course of a plan, of the host or, where the base is on a GPU, of the device.

    Attributes:
        device: what is looked at.
        start: bytes before anything was loaded.
        base: bytes of the base's weights.
        after_loading: bytes with table and base in memory.
    """

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.start = self.after_loading = _resident()
        self.base = 0

    def loaded(self, base: Base) -> None:
        """Note the level with table and base in memory."""
        self.device = base.device
        self.base = sum(weight.nbytes for weight in (*base.model.parameters(), *base.model.buffers()))
        if self.device.type == "cuda":
            self.start, self.after_loading = 0, torch.cuda.memory_reserved(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self.after_loading = _resident()

    @property
    def peak(self) -> int:
        """The highest level so far."""
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_reserved(self.device))
        return _highest_resident()

    @property
    def free(self) -> int:
        """Bytes that can be had, those that this process has among them."""
        if self.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.device)
            return int(free) + int(torch.cuda.memory_reserved(self.device))
        return int(psutil.virtual_memory().available) + _resident()

    @property
    def now(self) -> int:
        """The present level."""
        return int(torch.cuda.memory_reserved(self.device)) if self.device.type == "cuda" else _resident()

    def parts(self, slots: int) -> dict[str, int]:
        """The highest level so far, by part.

        Args:
            slots: bytes of the bank's slots.
        """
        table = max(self.after_loading - self.start - self.base, 0)
        parts = {"libraries": self.start, "base": self.base, "table": table, "slots": slots}
        return {**parts, "forwards": max(self.peak - sum(parts.values()), 0)}


def _resident() -> int:
    return int(psutil.Process().memory_info().rss)


def _highest_resident() -> int:
    if sys.platform == "win32":
        info: Any = psutil.Process().memory_info()
        return int(info.peak_wset)
    import resource

    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(highest if sys.platform == "darwin" else highest * 1024)
