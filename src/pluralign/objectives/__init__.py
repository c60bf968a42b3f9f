"""Objectives: pure functions on log-probs. No model, no data, no I/O."""

from pluralign.objectives.anchors import base_anchor, chosen_anchor
from pluralign.objectives.composition import Losses, Objective, Weighed
from pluralign.objectives.contrast import contrast_loss, diagonal_contrast_loss, semantic_weights
from pluralign.objectives.extrapolation import extrapolate_logps, theorem_coefficients
from pluralign.objectives.group_weights import (
    example_weights,
    group_coefficients,
    group_losses,
    group_scales,
    importance_weights,
    update_group_weights,
)
from pluralign.objectives.pairwise import hinge_loss, ipo_loss, robust_loss, sigmoid_loss, sppo_hard_loss
from pluralign.objectives.reference_free import odds_ratio_loss, simpo_loss
from pluralign.objectives.references import (
    clip_to_trust_region,
    combine_references,
    confidence_weights,
    trust_region_widths,
)
from pluralign.objectives.unpaired import kto_loss, mismatched_kl

__all__ = [
    "Losses",
    "Objective",
    "Weighed",
    "base_anchor",
    "chosen_anchor",
    "clip_to_trust_region",
    "combine_references",
    "confidence_weights",
    "contrast_loss",
    "diagonal_contrast_loss",
    "example_weights",
    "extrapolate_logps",
    "group_coefficients",
    "group_losses",
    "group_scales",
    "hinge_loss",
    "importance_weights",
    "ipo_loss",
    "kto_loss",
    "mismatched_kl",
    "odds_ratio_loss",
    "robust_loss",
    "semantic_weights",
    "sigmoid_loss",
    "simpo_loss",
    "sppo_hard_loss",
    "theorem_coefficients",
    "trust_region_widths",
    "update_group_weights",
]
