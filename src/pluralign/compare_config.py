"""What `pluralign compare` is given, as a dataclass.

No torch here: help and error messages must not pay for it. Each key's help is the docstring below it.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class CompareConfig:
    """`pluralign compare`: what changed for people between two runs, and a line that a run has to hold."""

    runs: str | list[str] = field(default_factory=list)
    """One or two folders of finished runs, or files of `pluralign evaluate --output`; what changed is the second's
    figure less the first's."""
    fail_if: str | list[str] = field(default_factory=list)
    """A condition on figures of the last run, `"retention.kept.mean < 0.98"`; the exit code is 1 where it holds. May be
    given again, or a list."""
    different: bool = False
    """Compare runs on different bases or held-out data all the same, and say so."""
    output: str | None = None
    """A JSON file for all figures, beside the table in the terminal."""
    seed: int = 0
    """Fixes the resamples that intervals come from."""
