"""What `pluralign winrate` is given, as a dataclass.

No torch here: help and error messages must not pay for it. Each key's help is the docstring below it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pluralign.annotation import AnnotatorConfig
from pluralign.seats import DataConfig


@dataclass
class WinRateConfig:
    """`pluralign winrate`: how often each person's answers are preferred to the base's, or to another run's."""

    runs: str | list[str] = field(default_factory=list)
    """The folder of a finished run, against its base; or two, the second against the first."""
    prompts: str | list[str] = field(default_factory=list)
    """Prompts, or files of them (a table with `prompt`, and `user` where one is a single person's); by default those of
    the rows that the runs held out."""
    data: DataConfig | None = None
    """Rows whose prompts are taken; by default those that the runs held out."""
    annotator: AnnotatorConfig = field(default_factory=AnnotatorConfig)
    max_prompts: int = 64
    """Prompts a person, a sample fixed by the seed."""
    orders: Literal["both", "random"] = "both"
    """Show the annotator each two answers in both orders, or once, in an order drawn by the seed."""
    length_control: Literal["logistic", "none"] = "logistic"
    """How win rates at equal length are found: a logistic regression of verdicts on the difference of lengths."""
    different: bool = False
    """Compare runs on different bases or held-out prompts all the same, and say so."""
    ask_again: bool = False
    """Forget what this annotator said before, and ask everything anew."""
    output: str | None = None
    """The file to write; by default `winrate/base.json` or `winrate/run-NAME.json` in the folder of the last run."""
    seed: int = 0
    """Fixes the sample of prompts, orders and resamples."""
    device: str = "auto"
    """`auto` (a GPU where there is one), `cpu`, `cuda`, `cuda:1`."""
