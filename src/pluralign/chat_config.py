"""What `pluralign chat` is given, as a dataclass.

No torch here: help and error messages must not pay for it. Each key's help is the docstring below it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pluralign.seats import GenerationConfig


@dataclass
class ChatConfig:
    """`pluralign chat`: the base and a person side by side, in the terminal."""

    run: str | None = None
    """Folder of a finished run; by default `runs/train`, or `runs/demo`, or else the nano model alone."""
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
