"""Memory of this process and its device, and what has taken it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch

from pluralign.models.base import Base
from pluralign.preferences import Preference
from pluralign.training.calls import highest_resident

_LOOKED_AT = 100


class Levels:
    """Levels of memory in the course of a plan, of the host or, where the base is on a GPU, of the device.

    Attributes:
        device: what is looked at.
        base: bytes of the base's weights.
        table: bytes of the table's rows.
        libraries: what else there was when both were loaded.
    """

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.base = self.table = self.libraries = 0

    def loaded(self, base: Base, rows: Sequence[Preference]) -> None:
        """Note the level with table and base in memory.

        Args:
            base: just loaded.
            rows: of the table.
        """
        self.device = base.device
        self.base = sum(weight.nbytes for weight in (*base.model.parameters(), *base.model.buffers()))
        if self.device.type == "cuda":
            self.libraries = max(torch.cuda.memory_reserved(self.device) - self.base, 0)
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self.table = _bytes_of(rows)
            self.libraries = max(_resident() - self.base - self.table, 0)

    @property
    def peak(self) -> int:
        """The highest level so far."""
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_reserved(self.device))
        return highest_resident()

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
        parts = {"libraries": self.libraries, "base": self.base, "table": self.table, "slots": slots}
        return {**parts, "forwards": max(self.peak - sum(parts.values()), 0)}


def _bytes_of(rows: Sequence[Preference]) -> int:
    """Bytes of rows as Python holds them, from some of them."""
    some = rows[:: max(1, len(rows) // _LOOKED_AT)]
    return round(sum(map(_deep_bytes, some)) * len(rows) / max(len(some), 1))


def _deep_bytes(value: Any) -> int:
    inner: list[Any] = []
    if is_dataclass(value):
        inner = [getattr(value, part.name) for part in fields(value)]
    elif isinstance(value, dict):
        inner = [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple):
        inner = list(value)
    return sys.getsizeof(value) + sum(map(_deep_bytes, inner))


def _resident() -> int:
    return int(psutil.Process().memory_info().rss)
