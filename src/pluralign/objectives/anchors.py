"""Anchors: what keeps a policy near something it already does, one value per example, in nats."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

AnchorForm = Literal["hinge", "absolute", "squared", "nll"]


def base_anchor(
    policy_base: Tensor, reference_base: Tensor, *, form: AnchorForm = "hinge", lengths: Tensor | None = None
) -> Tensor:
    """Penalty for moving the likelihood of the base model's own response (Lee et al. 2024, arXiv 2407.00693).

    With rho = policy_base - reference_base: `hinge` max(0, -rho), `absolute` |rho|, `squared` rho^2, `nll`
    -policy_base. Which form the paper used is not known to us; the default is a reconstruction
    (docs/methods/bapo.md).

    Args:
        policy_base: [B], log-prob of the base response under the policy, summed over its tokens, nats.
        reference_base: [B], the same under the reference.
        form: see above.
        lengths: [B], tokens of the base response; given, both log-probs become means per token.

    Returns:
        [B], >= 0; for all forms but `nll` zero where policy and reference agree. At the hinge's kink the gradient is 0.
    """
    if lengths is not None:
        policy_base, reference_base = policy_base / lengths, reference_base / lengths
    ratio = policy_base - reference_base
    if form == "hinge":
        # relu, not clamp: clamp's gradient at the kink, where every fresh adapter sits, differs between versions.
        return torch.relu(-ratio)
    if form == "absolute":
        return ratio.abs()
    if form == "squared":
        return ratio**2
    if form == "nll":
        return -policy_base
    raise ValueError(f"form is {form!r}; it is one of {', '.join(get_args(AnchorForm))}")


def chosen_anchor(policy_chosen: Tensor, reference_chosen: Tensor) -> Tensor:
    """DPOP's penalty for making the chosen response less likely, max(0, -log-ratio) (Pal et al. 2024).

    Args:
        policy_chosen: [B], log-prob of the chosen response under the policy, summed over its tokens, nats.
        reference_chosen: [B], the same under the reference.

    Returns:
        [B], >= 0, zero wherever the policy likes the chosen response at least as much as the reference does.
    """
    return torch.relu(reference_chosen - policy_chosen)
