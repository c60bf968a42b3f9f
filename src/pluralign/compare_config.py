"""What `pluralign compare` and `pluralign chat` are given, as dataclasses.

No torch here: help and error messages must not pay for it. Each key's help is the docstring below it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pluralign.seats import GenerationConfig


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


@dataclass
class ChatConfig:
    """`pluralign chat`: the base and a person side by side, in the terminal."""

    run: str = "runs/train"
    """Folder of a finished run."""
    user: str | None = None
    """Who talks beside the base at first; the first of the run by default. `/person NAME` takes another one."""
    history: bool | None = None
    """Ask with the talk so far; by default so, but for the nano model, which knows single questions."""
    plain: bool = False
    """Ask every line by itself, as it is; without it, lines are turns of the chat template, where there is one."""
    group: str | None = None
    """Where the run conditions prompts: what stands for `{group}`."""
    user_info: str | None = None
    """Where the run conditions prompts: what stands for `{user_info}`."""
    system_info: str | None = None
    """Where the run conditions prompts: what stands for `{system_info}`."""
    generation: GenerationConfig = field(default_factory=lambda: GenerationConfig(max_new_tokens=256))
    seed: int = 0
    """Fixes sampling."""
    device: str = "auto"
    """`auto` (a GPU where there is one), `cpu`, `cuda`, `cuda:1`."""
