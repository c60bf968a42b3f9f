"""Pairwise losses: functions of the margin, one value per example.

margin [B] = (policy_chosen - policy_rejected) - (reference_chosen - reference_rejected), from log-probabilities in
nats, summed over the response's tokens. All return a loss per example [B] in the dtype of the margin; nothing is
reduced here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sigmoid_loss(margin: Tensor, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """DPO's loss, -log sigmoid(beta m) (Rafailov et al. 2023, eq. 7), with the conservative form's smoothing.

    Args:
        margin: [B], nats.
        beta: strength of the pull to the reference, > 0.
        label_smoothing: probability in [0, 0.5) that a label is flipped (cDPO, Mitchell 2023).
    """
    logits = beta * margin
    if label_smoothing == 0.0:
        return -F.logsigmoid(logits)
    return -(1 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)


def ipo_loss(margin: Tensor, *, beta: float) -> Tensor:
    """IPO's loss, (m - 1/(2 beta))^2 (Azar et al. 2024, eq. 17).

    Args:
        margin: [B], nats; of length-averaged log-probs when the configuration says so (TRL's convention), of sums
            otherwise (the original DPO repository's).
        beta: > 0; the regression target is 1/(2 beta) nats.
    """
    return (margin - 1 / (2 * beta)) ** 2


def hinge_loss(margin: Tensor, *, beta: float) -> Tensor:
    """SLiC's hinge on the margin, max(0, 1 - beta m) (Zhao et al. 2023; on log-ratios in Liu et al. 2024).

    Args:
        margin: [B], nats.
        beta: > 0; the hinge is at m = 1/beta nats.
    """
    return torch.relu(1 - beta * margin)


def robust_loss(margin: Tensor, *, beta: float, label_smoothing: float) -> Tensor:
    """Robust DPO's unbiased loss under flipped labels (Ray Chowdhury et al. 2024).

    Args:
        margin: [B], nats.
        beta: > 0.
        label_smoothing: probability in [0, 0.5) that a label is flipped; 0 gives `sigmoid_loss`.
    """
    logits = beta * margin
    loss = -(1 - label_smoothing) * F.logsigmoid(logits) + label_smoothing * F.logsigmoid(-logits)
    return loss / (1 - 2 * label_smoothing)


def sppo_hard_loss(chosen_ratio: Tensor, rejected_ratio: Tensor, *, beta: float) -> Tensor:
    """SPPO's loss with hard labels: each log-ratio regressed on +-1/(2 beta) (Wu et al. 2024).

    Args:
        chosen_ratio: [B], policy minus reference log-prob of the chosen response, nats.
        rejected_ratio: [B], the same for the rejected response.
        beta: > 0.
    """
    target = 1 / (2 * beta)
    return (chosen_ratio - target) ** 2 + (rejected_ratio + target) ** 2
