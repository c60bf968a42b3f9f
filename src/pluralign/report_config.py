"""What `pluralign report` is given.

No torch here: help and error messages must not pay for it. Each key's help is the docstring below it.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class ReportConfig:
    """`pluralign report`: runs as one HTML page that needs no network."""

    runs: str | list[str] = field(default_factory=list)
    """Folders of evaluated runs, up to eight: one, or a list."""
    output: str = "report.html"
    """The HTML file to write."""
    pseudonyms: bool = False
    """Leave out what tells of people: ids and groups become numbers; prompts, answers, paths, reasons are dropped."""
    different: bool = False
    """Put runs on different data or different bases beside each other all the same; the page says so."""
    overwrite: bool = False
    """Replace a file that is there."""
