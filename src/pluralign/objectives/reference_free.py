"""Pairwise losses without a reference: functions of log-probs per token, one value per example.

Log-probs per token are a response's summed log-prob over its number of tokens, in nats; at most 0.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def simpo_loss(margin: Tensor, *, beta: float, target_margin: float = 0.0) -> Tensor:
    """SimPO's loss, -log sigmoid(beta m - gamma) (Meng et al. 2024, arXiv 2405.14734, eq. 6).

    Args:
        margin: [B], chosen minus rejected log-prob per token, nats.
        beta: > 0; the paper's values are 2 to 10.
        target_margin: gamma >= 0, what the margin must exceed, on the scale of beta m.

    Returns:
        [B], > 0.
    """
    return -F.logsigmoid(beta * margin - target_margin)


def odds_ratio_loss(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """ORPO's odds-ratio term, -beta log sigmoid(log odds(chosen) - log odds(rejected)) (Hong et al. 2024, eq. 6-7).

    With odds(p) = p / (1 - p) of the probability per token (geometric mean), arXiv 2403.07691. ORPO adds the
    negative log-likelihood of the chosen response per token, which is an anchor of its own here.

    Args:
        chosen: [B], log-prob of the chosen response per token, nats, <= 0.
        rejected: [B], the same for the rejected response.
        beta: the paper's lambda, > 0.

    Returns:
        [B], > 0.
    """
    return -beta * F.logsigmoid(_log_odds(chosen) - _log_odds(rejected))


def _log_odds(logp: Tensor) -> Tensor:
    # A certain response has infinite odds; the nearest number below keeps its gradient finite.
    logp = logp.clamp(max=-torch.finfo(logp.dtype).eps)
    # Which form keeps its digits depends on the side of 1/2 (Maechler 2012).
    certain = logp > -math.log(2)
    low = torch.where(certain, -1.0, logp)
    high = torch.where(certain, logp, -0.5)
    return logp - torch.where(certain, torch.log(-torch.expm1(high)), torch.log1p(-torch.exp(low)))
