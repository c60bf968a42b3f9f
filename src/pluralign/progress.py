"""The progress bar of long work: on the terminal's error stream, and nothing where that is no terminal."""

from __future__ import annotations

import sys
from functools import cache

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def progress_bar() -> Progress:
    """A bar with counts and times, for a `with` block; bars inside one another share the terminal."""
    return Progress(
        # An id may look like rich's markup, and broken markup is an error.
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=_console(),
        disable=not sys.stderr.isatty(),
        transient=True,
    )


@cache
def _console() -> Console:
    # One console for all bars: rich nests live displays of the same console only.
    return Console(stderr=True)
