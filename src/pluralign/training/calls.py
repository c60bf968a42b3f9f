"""What the calls on a run's folder took: on which machine, how long, how much memory.

Apart from `config.yaml` and `metrics.jsonl`, which are the same for two runs of the same thing.
"""

from __future__ import annotations

import os
import platform
import re
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch

from pluralign.storage import read_json, write_json
from pluralign.training.runs import CALLS_FILE

SCHEMA_VERSION = 1


class Call:
    """One call, from now on.

    Args:
        device: that the model is on.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._started = datetime.now(UTC)
        self._mark = time.monotonic()
        self._seconds: dict[str, float] = {}
        self._people = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def over(self, part: str, people: int = 0) -> None:
        """Say that a part of the call is over, which began when the one before it ended.

        Args:
            part: its name.
            people: whom the call will train, once that is known.
        """
        self._people += people
        now = time.monotonic()
        self._seconds[part] = round(now - self._mark, 3)
        self._mark = now

    def write(self, folder: Path) -> None:
        """Add the call to those of the run in a folder."""
        path = folder / CALLS_FILE
        earlier = read_json(path).get("calls", []) if path.exists() else []
        peak = {"peak_memory_bytes": highest_resident()}
        if self._device.type == "cuda":
            peak["peak_accelerator_bytes"] = int(torch.cuda.max_memory_reserved(self._device))
        call = {
            "started": self._started.isoformat(timespec="seconds"),
            "people": self._people,
            "seconds": self._seconds,
            **peak,
            "machine": machine(self._device),
        }
        write_json(path, {"schema_version": SCHEMA_VERSION, "calls": [*earlier, call]})


def machine(device: torch.device) -> dict[str, Any]:
    """What this machine is; cores are those that this process may use, an accelerator is named where one is used."""
    found = {
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": int(psutil.virtual_memory().total),
    }
    if device.type == "cuda":
        found["accelerator"] = torch.cuda.get_device_name(device)
    return found


def highest_resident() -> int:
    """Most bytes of memory that this process has had at a time."""
    if sys.platform == "win32":
        info: Any = psutil.Process().memory_info()
        return int(info.peak_wset)
    import resource

    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(highest if sys.platform == "darwin" else highest * 1024)


def _processor() -> str:
    """The processor's name; where the system tells none, its kind."""
    described = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*:\s*(.+)$", described.read_text(), re.M) if described.is_file() else None
    return named[1] if named else platform.processor() or platform.machine()
