"""The methods that are compared: presets, and a few changes that make them comparable."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from pluralign.resolve import preset

Settings = dict[str, Any]
TAG: Settings = {"system": "Group: {group}"}
META: Settings = {"system": "{system_info}\n{user_info}"}
UNTOLD: Settings = {"system": "", "template": ""}


@dataclass(frozen=True)
class Method:
    """A row of the comparison: a second stage, after supervised fine-tuning on the chosen responses.

    Attributes:
        preset: its seats. It begins with the first stage's adapter, and is compared with it where it has a reference.
        changes: groups of the configuration over the preset's.
        conditioning: what both stages put into the prompt.
        unpaired: whether it gets the pairs as completions with verdicts; a batch then has twice the rows, and as many
            responses.
        references: what it is compared with, where that is not the first stage's adapter (`first`) alone.
    """

    preset: str
    changes: Settings = field(default_factory=dict)
    conditioning: Settings = field(default_factory=lambda: TAG)
    unpaired: bool = False
    references: tuple[str, ...] = ("first",)

    @property
    def what(self) -> list[Any]:
        """What decides a result: the preset's own settings, too."""
        return [preset(self.preset), *asdict(self).values()]


IMPORTANCE: Settings = {"weighting": {"groups": {"by": "importance"}}}
WORST: Settings = {"weighting": {"groups": {"by": "worst", "step_size": 0.2}}}
FIRST_STAGE = "first stage alone"
METHODS: dict[str, Method] = {
    FIRST_STAGE: Method("sft", references=()),
    "dpo": Method("dpo"),
    "dpo, not told the group": Method("dpo", conditioning=UNTOLD),
    "dpo, importance": Method("dpo", IMPORTANCE),
    "dpo, balanced sampling": Method("dpo", {"weighting": {"groups": {"by": "sampling"}}}),
    "gr-dpo": Method("gr-dpo"),
    "gr-ipo": Method("gr-ipo"),
    "gr-bapo": Method("gr-bapo"),
    "bapo": Method("bapo"),
    "bapo, importance": Method("bapo", IMPORTANCE),
    "ipo": Method("ipo"),
    "slic": Method("slic"),
    "dpop": Method("dpop"),
    "sft": Method("sft", references=()),
    "sft, importance": Method("sft", IMPORTANCE, references=()),
    "sft, worst group": Method("sft", WORST, references=()),
    "kto": Method("kto", unpaired=True),
    "simpo": Method("simpo", references=()),
    "orpo": Method("orpo", references=()),
    "sppo": Method("sppo"),
    "rpo": Method("rpo"),
    "rpo-unpaired": Method("rpo-unpaired", unpaired=True),
    "mrpo": Method("mrpo", references=("base", "first")),
    "metaalign": Method("metaalign", conditioning=META),
}
"""`compo` is not among them: with a first stage and the group in the prompt, it is the row of `dpo`."""
LEARNING_RATES = {
    "world": (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3),
    "hh": (1e-4, 3e-4, 1e-3),
    "personas": (1e-4, 3e-4, 1e-3),
}
"""What is trained on -> the trials of every method, but for the first stage alone, whose second one learns nothing."""


def rates_of(method: str, on: str) -> tuple[float, ...]:
    """The trials of a method."""
    return (0.0,) if method == FIRST_STAGE else LEARNING_RATES[on]
