"""Losses of single responses with a label, good or bad: one value per response."""

from __future__ import annotations

import torch
from torch import Tensor


def kto_loss(ratio: Tensor, *, kl: Tensor | float, beta: float, desirable: bool) -> Tensor:
    """KTO's loss of a response, 1 - sigmoid(+-beta (r - z)) (Ethayarajh et al. 2024, arXiv 2402.01306, eq. 8).

    Args:
        ratio: [B], r, policy minus reference log-prob of the response, summed over tokens, nats.
        kl: z >= 0, a scalar without gradient: the policy's divergence from the reference, see `mismatched_kl`.
        beta: > 0.
        desirable: whether the responses are good ones (+) or bad ones (-).

    Returns:
        [B], in (0, 1). Weights for good and bad responses come after.
    """
    above = ratio - kl if desirable else kl - ratio
    return 1 - torch.sigmoid(beta * above)


def mismatched_kl(ratio: Tensor, present: Tensor) -> Tensor:
    """KTO's estimate of the divergence: the mean log-ratio of responses to other prompts, at least 0.

    Args:
        ratio: [B], policy minus reference log-prob of a response that belongs to another prompt, nats.
        present: [B] bool, where there is one.

    Returns:
        A scalar without a graph; 0 where no row has such a response.
    """
    kept = torch.where(present, ratio.detach(), torch.zeros_like(ratio))
    return (kept.sum() / present.sum().clamp(min=1)).clamp(min=0)
