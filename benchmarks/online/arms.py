"""What is compared: where pairs come from, what they are compared with, and the loss, at one budget of annotations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Settings = dict[str, Any]
FIXED, BEHAVIOR = {"policy": "fixed"}, {"policy": "behavior"}


@dataclass(frozen=True)
class Arm:
    """A way to spend the budget.

    Attributes:
        phases: of sampling.
        reference: what pairs are compared with.
        loss: the pairwise loss.
        more: other groups of the configuration.
    """

    phases: int | str
    reference: Settings
    loss: Settings = field(default_factory=lambda: {"type": "sigmoid", "beta": 0.1})
    more: Settings = field(default_factory=dict)


IPO = {"type": "ipo", "beta": 0.1, "length_average": True}
HINGE = {"type": "hinge", "beta": 0.1}
ANCHOR = {"anchor": {"base": {"weight": 0.3}}, "base_responses": {"do_sample": True, "max_new_tokens": 28}}
OFFLINE = "offline"
ARMS: dict[str, Arm] = {
    OFFLINE: Arm(1, BEHAVIOR),
    "offline ipo": Arm(1, BEHAVIOR, IPO),
    "offline hinge": Arm(1, BEHAVIOR, HINGE),
    "every step, fixed": Arm("every_step", FIXED),
    "2 phases": Arm(2, BEHAVIOR),
    "2 phases ipo": Arm(2, BEHAVIOR, IPO),
    "2 phases hinge": Arm(2, BEHAVIOR, HINGE),
    "2 phases anchored": Arm(2, BEHAVIOR, more=ANCHOR),
    "4 phases": Arm(4, BEHAVIOR),
    "4 phases apo": Arm(4, BEHAVIOR, more={"extrapolation": {"alpha": 0.3}}),
    "every step": Arm("every_step", BEHAVIOR),
}
"""With one phase the policy that samples is the one that it begins with: behavior and fixed are the same."""
LEARNING_RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
"""The trials of every arm."""
