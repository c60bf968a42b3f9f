"""A plan on a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from pluralign.training.planning.plan import Plan


def plan_table(plan: Plan) -> Table:
    """People, work, time by phase, memory and disk by part; warnings below."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    caption = Text("\n".join(f"warning: {line}" for line in plan.warnings)) if plan.warnings else None
    table = Table(box=SIMPLE_HEAD, show_header=False, min_width=60, caption=caption, caption_justify="left")
    table.add_column("section", style="bold")
    table.add_column("item")
    table.add_column("value", justify="right")
    memory = {**plan.memory, f"free on {plan.device}": plan.memory_free}
    for title, values in {
        "people": _counts(plan.people),
        "work": _counts(plan.work),
        "time": {name: shown_time(seconds) for name, seconds in plan.seconds.items()},
        "memory": _sizes(memory),
        "disk": _sizes({**plan.disk, "free": plan.disk_free}),
    }.items():
        for number, (name, value) in enumerate(values.items()):
            bold = "bold" if name == "total" else None
            table.add_row(title if number == 0 else "", name.replace("_", " "), value, style=bold)
        table.add_section()
    return table


def shown_time(seconds: float) -> str:
    """Seconds for a reader."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def shown_size(count: float) -> str:
    """Bytes for a reader."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def _counts(values: Mapping[str, int]) -> dict[str, str]:
    return {name: f"{value:,}" for name, value in values.items() if value or name == "new"}


def _sizes(values: Mapping[str, int]) -> dict[str, str]:
    return {name: shown_size(value) for name, value in values.items() if value}
