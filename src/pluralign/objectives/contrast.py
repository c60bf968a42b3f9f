"""Contrasts of every chosen with every rejected response of a batch: relative preference optimization.

Yin et al. 2024 (arXiv 2402.10958). With u_i and v_j the log-ratios (policy minus reference, summed over tokens, nats)
of chosen response i and rejected response j, whose prompts need not be the same, the contrast is s_ij = u_i - v_j. A
loss per chosen response comes back; the paper's loss is its mean. Contrasts across prompts are meaningful only as far
as the prompts are alike, which `semantic_weights` measures.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Uniform = Literal["one", "share"]


def contrast_loss(chosen: Tensor, rejected: Tensor, *, beta: float, weights: Tensor | Uniform = "one") -> Tensor:
    """Mean over j of -log sigmoid(beta w_ij (u_i - v_j)) for every chosen response i (Yin et al. 2024).

    The weight is inside the sigmoid, so weights whose rows sum to 1 shrink the margins to about 1/N of DPO's. Uniform
    weights have two forms: the official code's falls back to 1, the paper's is 1/N as far as we know it.

    Args:
        chosen: [M] float, log-ratios of the chosen responses, nats.
        rejected: [N] float, log-ratios of the rejected responses, nats.
        beta: > 0.
        weights: [M, N] >= 0, such as `semantic_weights`; or `one` (w = 1), or `share` (w = 1/N).

    Returns:
        [M], > 0. With N = 0 there is nothing to contrast: zeros whose gradient is 0 and not absent, so that every
        worker of a training has one. With M = 0 it is empty and has a graph as well.

    Raises:
        ValueError: for beta not > 0, shapes that do not match, weights that are negative or of an unknown name.
    """
    contrasts = _contrasts(chosen, rejected, beta)
    return -F.logsigmoid(beta * _weights(weights, chosen, rejected) * contrasts).sum(dim=1) / max(len(rejected), 1)


def diagonal_contrast_loss(
    chosen: Tensor, rejected: Tensor, *, beta: float, diagonal_weight: float = 0.8, first: int | None = None
) -> Tensor:
    """The pair's own loss and, beside it, the mean over the batch's other rejected responses (Yin et al. 2024).

    lambda l_ii + (1 - lambda) mean over j != i of l_ij, with l_ij = -log sigmoid(beta (u_i - v_j)). The weight stands
    outside the logarithm, unlike `contrast_loss`'s. lambda = 1 is DPO's loss. For a single pair the official code
    has no finite value; here it is the pair's own loss, whatever lambda.

    Args:
        chosen: [M] float, log-ratios of the chosen responses, nats.
        rejected: [N] float, log-ratios of rejected responses, nats, the chosen ones' partners among them.
        beta: > 0.
        diagonal_weight: lambda, in [0, 1]; the official code's value is 0.8.
        first: place of the first chosen response's partner among them, and the others' follow it; by default both sides
            are of the same length.

    Returns:
        [M], > 0.

    Raises:
        ValueError: for beta not > 0, partners that are not there, lambda out of its range.
    """
    contrasts = _contrasts(chosen, rejected, beta)
    fits = len(chosen) == len(rejected) if first is None else 0 <= first <= len(rejected) - len(chosen)
    if not fits:
        raise ValueError(
            f"chosen is [{len(chosen)}] and rejected [{len(rejected)}], with the first pair at {first}; "
            "the diagonal needs pairs"
        )
    if not 0 <= diagonal_weight <= 1:
        raise ValueError(f"diagonal_weight is {diagonal_weight}; it must be in [0, 1]")
    others = len(rejected) - 1
    shares = torch.full_like(contrasts, (1 - diagonal_weight) / max(others, 1), requires_grad=False)
    shares.diagonal(first or 0).fill_(diagonal_weight if others > 0 else 1.0)
    return -(shares * F.logsigmoid(beta * contrasts)).sum(dim=1)


def semantic_weights(chosen_embeddings: Tensor, rejected_embeddings: Tensor, *, temperature: float = 0.5) -> Tensor:
    """How much each rejected response counts for each chosen one, by the likeness of their prompts (Yin et al. 2024).

    Row-wise softmax of -(1 - cos(e_i, e_j)) / temperature, over sentence embeddings e of the prompts. For pairs, both
    arguments are the same matrix and the diagonal is each row's largest weight.

    Args:
        chosen_embeddings: [M, D] float, embeddings of the chosen responses' prompts; their norm does not matter. A
            zero vector has cosine 0 with everything.
        rejected_embeddings: [N, D] float, of the rejected responses' prompts.
        temperature: tau > 0; the official code's value is 0.5.

    Returns:
        [M, N], >= 0; every row sums to 1.

    Raises:
        ValueError: for a temperature not > 0 or shapes that do not match.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be > 0")
    shapes = (list(chosen_embeddings.shape), list(rejected_embeddings.shape))
    if not (len(shapes[0]) == len(shapes[1]) == 2 and shapes[0][1] == shapes[1][1]):
        raise ValueError(
            f"chosen_embeddings is {shapes[0]} and rejected_embeddings {shapes[1]}; they must be [M, D] and [N, D]"
        )
    # Under autocast the product would be rounded to half precision.
    with torch.autocast(chosen_embeddings.device.type, enabled=False):
        cosines = F.normalize(chosen_embeddings, dim=1) @ F.normalize(rejected_embeddings, dim=1).T
        return torch.softmax((cosines - 1) / temperature, dim=1)


def _contrasts(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """The matrix s_ij [M, N]."""
    if not beta > 0:
        raise ValueError(f"beta is {beta}; it must be > 0")
    if chosen.ndim != 1 or rejected.ndim != 1:
        raise ValueError(
            f"chosen is {list(chosen.shape)} and rejected {list(rejected.shape)}; they must be [M] and [N]"
        )
    return chosen[:, None] - rejected[None, :]


def _weights(weights: Tensor | Uniform, chosen: Tensor, rejected: Tensor) -> Tensor | float:
    if isinstance(weights, Tensor):
        expected = [len(chosen), len(rejected)]
        if list(weights.shape) != expected:
            raise ValueError(f"weights is {list(weights.shape)}; it must be {expected}, chosen by rejected")
        if not bool((weights >= 0).all()):
            raise ValueError(f"weights holds {float(weights.detach().min()):g}; all must be >= 0")
        return weights
    if weights not in get_args(Uniform):
        raise ValueError(f"weights is {weights!r}; it is a tensor or one of {', '.join(get_args(Uniform))}")
    return 1.0 if weights == "one" else 1 / max(len(rejected), 1)
