"""Objectives: pure functions on log-probs. No model, no data, no I/O."""

from pluralign.objectives.anchors import base_anchor, chosen_anchor
from pluralign.objectives.composition import Losses, Objective
from pluralign.objectives.pairwise import hinge_loss, ipo_loss, robust_loss, sigmoid_loss, sppo_hard_loss

__all__ = [
    "Losses",
    "Objective",
    "base_anchor",
    "chosen_anchor",
    "hinge_loss",
    "ipo_loss",
    "robust_loss",
    "sigmoid_loss",
    "sppo_hard_loss",
]
