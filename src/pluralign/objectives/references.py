"""Several references as one: multi-reference preference optimization.

Le et al. 2024 (arXiv 2405.16388) stay near K references by one combined reference, which takes the single reference's
place in DPO's loss. Everything here is a function of log-probs under the references, in nats, summed over the
response's tokens: finite, <= 0, [K, B] for K references and B responses. Each model reads the text with its own
tokenizer; whose tokens were summed does not show here.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

Combine = Literal["harmonic", "geometric"]
ROUNDING = 1e-5
"""By how much weights may miss a sum of 1 before they are somebody's mistake."""
CONFIDENCE_FLOOR = 1e-6
"""What the paper adds to the sum of the margins, nats."""


def combine_references(
    logps: Tensor, weights: Tensor | None = None, *, combine: Combine = "harmonic", swap: bool = False
) -> Tensor:
    """Log of the weighted mean of K references' probabilities.

    `harmonic` is Le et al. 2024's: (sum_k alpha_k / p_k)^-1, from a bound on the weighted sum of KL divergences. On
    whole responses it is close to the least likely reference. `geometric`, prod_k p_k^alpha_k, is the exact answer to
    the same problem with reverse KL (see Aminian et al. 2025, arXiv 2502.01203). Neither is made to sum to 1 over
    responses: that constant of the prompt cancels in a margin.

    Args:
        logps: [K, B] float, log-probs under the references. A reference of weight 0 does not matter, whatever its
            log-prob.
        weights: alpha, [K] or [K, B] float, >= 0, sum 1 over K; None weighs all alike.
        combine: see above.
        swap: exchange the two weights, as the official code does where its formula does not. Only for the harmonic
            mean of K = 2.

    Returns:
        [B].

    Raises:
        ValueError: for shapes that do not match, weights off the simplex, a swap without two references.
    """
    if logps.ndim != 2 or len(logps) == 0:
        raise ValueError(f"logps is {list(logps.shape)}; it must be [K, B] with K >= 1")
    if combine not in get_args(Combine):
        raise ValueError(f"combine is {combine!r}; it is one of {', '.join(get_args(Combine))}")
    if swap and (len(logps) != 2 or combine != "harmonic"):
        raise ValueError(f"swap is True with the {combine} mean of {len(logps)}; it needs the harmonic mean of 2")
    shares = _shares(weights, logps)
    if swap:
        shares = shares.flip(0)
    counts = shares > 0
    # Masked before the arithmetic: 0 * inf would be NaN, here or in the gradient.
    logps = torch.where(counts, logps, 0.0)
    # Measured from the lowest, so that whole responses' thousands of nats do not take the digits of the weights.
    lowest = logps.amin(dim=0).detach()
    above = logps - lowest
    if combine == "geometric":
        return lowest + (shares * above).sum(dim=0)
    terms = torch.where(counts, shares, 1.0).log() - above
    return lowest - torch.logsumexp(torch.where(counts, terms, -math.inf), dim=0)


def clip_to_trust_region(logps: Tensor, anchor: Tensor, epsilon: float | Tensor) -> Tensor:
    """A reference's log-probs moved into [(1 + epsilon) anchor, (1 - epsilon) anchor] (Le et al. 2024, CTRO).

    The clip is in log space, relative to the anchor: log-probs are negative, so the first end is the lower one. It
    keeps a foreign reference from dominating the combined one.

    Args:
        logps: [B] float, log-probs under the reference that is clipped.
        anchor: [B] float, <= 0, log-probs under the reference that is trusted, the initial policy.
        epsilon: >= 0, a number or [B], as a share of the anchor's log-prob; from 1 on the upper end does not bind.

    Returns:
        [B].

    Raises:
        ValueError: for shapes that do not match or a negative epsilon.
    """
    if logps.shape != anchor.shape:
        raise ValueError(f"logps is {list(logps.shape)} and anchor {list(anchor.shape)}; both must be [B]")
    if isinstance(epsilon, Tensor) and epsilon.shape not in (torch.Size([]), anchor.shape):
        raise ValueError(f"epsilon is {list(epsilon.shape)}; it must be a number or {list(anchor.shape)}")
    if not bool((torch.as_tensor(epsilon) >= 0).all()):
        raise ValueError(f"epsilon is {epsilon}; it must be >= 0")
    # By the absolute value: rounding may leave a certain response just above 0, and the ends would change places.
    width = epsilon * anchor.abs()
    return torch.clamp(logps, min=anchor - width, max=anchor + width)


def trust_region_widths(chosen: Tensor, rejected: Tensor, *, epsilon: float = 0.1) -> tuple[Tensor, Tensor]:
    """Half-widths for `clip_to_trust_region`, chosen and rejected, that share epsilon (Le et al. 2024, adaptive CTRO).

    With b_w and b_l the means over references of the log-probs: epsilon_w = epsilon |b_w| / (|b_w| + |b_l|), and
    epsilon_l the rest. The less likely response gets the wider region. The official code's fixed form is a plain number
    for both sides.

    Args:
        chosen: [K, B] float, log-probs of the chosen responses under all references.
        rejected: [K, B] float, the same for the rejected responses.
        epsilon: >= 0; the official code's value is 0.1.

    Returns:
        epsilon_w [B] and epsilon_l [B], >= 0, with sum epsilon; halves where both responses are certain (b = 0).

    Raises:
        ValueError: for shapes that do not match or a negative epsilon.
    """
    _check_sides(chosen, rejected)
    if not epsilon >= 0:
        raise ValueError(f"epsilon is {epsilon}; it must be >= 0")
    ours, theirs = chosen.mean(dim=0).abs(), rejected.mean(dim=0).abs()
    total = ours + theirs
    certain = total == 0
    share = torch.where(certain, 0.5, ours / torch.where(certain, 1.0, total))
    return epsilon * share, epsilon * (1 - share)


def confidence_weights(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Weights of the references, per example, by how clearly each tells the two responses apart (Le et al. 2024, ARWC).

    alpha_k = |m_k| / (sum_k |m_k| + 1e-6) with m_k the reference's margin, chosen minus rejected, before any clipping;
    which side it favours does not matter. The 1e-6 leaves the sum just short of 1. As in the official code, the last
    reference, the initial policy, gets what is missing: it alone counts where no reference tells them apart.

    Args:
        chosen: [K, B] float, log-probs of the chosen responses; the initial policy is the last reference.
        rejected: [K, B] float, the same for the rejected responses.

    Returns:
        [K, B], >= 0, sum 1 over K.

    Raises:
        ValueError: for shapes that do not match.
    """
    _check_sides(chosen, rejected)
    margins = (chosen - rejected).abs()
    rest = torch.zeros_like(margins)
    rest[-1] = CONFIDENCE_FLOOR
    return (margins + rest) / (margins.sum(dim=0) + CONFIDENCE_FLOOR)


def _check_sides(chosen: Tensor, rejected: Tensor) -> None:
    if chosen.ndim != 2 or len(chosen) == 0 or chosen.shape != rejected.shape:
        raise ValueError(
            f"chosen is {list(chosen.shape)} and rejected {list(rejected.shape)}; both must be [K, B] with K >= 1"
        )


def _shares(weights: Tensor | None, logps: Tensor) -> Tensor:
    """The weights as [K, B], in the dtype of the log-probs."""
    if weights is None:
        return torch.full_like(logps, 1 / len(logps), requires_grad=False)
    if weights.shape not in (logps.shape, logps.shape[:1]):
        raise ValueError(
            f"weights is {list(weights.shape)}; it must be [{len(logps)}] or {list(logps.shape)}, as logps is"
        )
    values, totals = weights.detach(), weights.detach().sum(dim=0)
    if not (bool((values >= 0).all()) and bool(((totals - 1).abs() <= ROUNDING).all())):
        raise ValueError(
            f"weights has values from {float(values.min()):g} and sums from {float(totals.min()):g} to "
            f"{float(totals.max()):g}; all must be >= 0 and sum to 1 over the references"
        )
    return (weights if weights.ndim == 2 else weights[:, None]).to(logps.dtype).expand_as(logps)
