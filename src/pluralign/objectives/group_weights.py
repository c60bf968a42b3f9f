"""Weights over groups that follow the group with the largest loss: group-robust preference optimization.

Ramesh et al. 2024 (arXiv 2405.20304) minimise the largest group loss as a game between a policy and weights alpha [K]
on the simplex: min over theta, max over alpha, of sum_g alpha_g L_g(theta). The weights take a step of exponentiated
gradient ascent, then the policy takes its step with the new weights. A trade-off chi (the official bandit code's)
weighs group g by c_g = (1 - chi)/K + chi alpha_g: 1 is the worst case, 0 the mean over groups.

`scale` says what the loss L_g of a group is, given the rows of one call (|B| of them, N_g of the group in all the
training data, N the sum of the N_g). A group without a row in the call has L_g = 0 in all three.

- `mean`: the mean over the group's rows. The official bandit code, and its language-model trainer where
  `divide_by_totalcount` is off.
- `sum`: N/N_g times the sum over the group's rows. That trainer's default. It grows with |B|, so step sizes published
  for it hold for its batch size only.
- `unbiased`: `sum` divided by |B|, whose mean over batches drawn from all the data is the group's loss. Ours: the same
  direction as `sum`, with a step size that does not depend on the batch size.

Losses stay per example: sum_i `example_weights`_i loss_i is the robust loss.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

Scale = Literal["mean", "unbiased", "sum"]
ROUNDING = 1e-5
"""By how much weights may miss a sum of 1 before they are somebody's mistake."""


def group_losses(
    losses: Tensor, groups: Tensor, *, groups_count: int, sizes: Tensor | None = None, scale: Scale = "mean"
) -> Tensor:
    """The loss of every group, differentiable in the losses.

    Args:
        losses: [B] float, a loss per example.
        groups: [B] int64, the group of each example, in [0, K).
        groups_count: K, >= 1.
        sizes: [K] > 0, float or int, examples of each group in all the training data; needed by `unbiased` and `sum`.
        scale: see the module.

    Returns:
        [K] in the dtype of the losses; 0 for a group without rows.

    Raises:
        ValueError: for shapes that do not match, a group out of range, sizes that are missing or not > 0.
    """
    _check_losses(losses, groups)
    shares = _shares(groups, groups_count, sizes, scale, losses.dtype)
    return losses.new_zeros(groups_count).index_add(0, groups, shares * losses)


def group_scales(totals: Tensor, *, sizes: Tensor | None = None, scale: Scale = "mean") -> Tensor:
    """What the losses of a group's rows are multiplied by before they are summed to the group's loss.

    Args:
        totals: [K] float, >= 0, rows of each group in the call, or the sum of their weights where rows have some.
        sizes: [K] > 0, examples of each group in all the training data; needed by `unbiased` and `sum`.
        scale: see the module.

    Returns:
        [K] in the dtype of the totals; 0 for a group without rows, with scale `mean`.

    Raises:
        ValueError: for an unknown scale, sizes that are missing or not > 0.
    """
    if scale not in get_args(Scale):
        raise ValueError(f"scale is {scale!r}; it is one of {', '.join(get_args(Scale))}")
    if scale == "mean":
        return torch.where(totals > 0, 1 / torch.where(totals > 0, totals, 1.0), 0.0)
    known = _checked_sizes(sizes, len(totals), f"scale {scale!r}", totals.dtype)
    rows = totals.sum().clamp(min=torch.finfo(totals.dtype).tiny) if scale == "unbiased" else 1
    return known.sum() / known / rows


def update_group_weights(
    weights: Tensor,
    losses: Tensor,
    groups: Tensor,
    *,
    step_size: float,
    sizes: Tensor | None = None,
    trade_off: float = 1.0,
    adjustment: float = 0.0,
    scale: Scale = "mean",
) -> Tensor:
    """One step of exponentiated-gradient ascent: alpha_g * exp(step_size chi (L_g + C / sqrt(N_g))), made to sum to 1.

    The step of Ramesh et al. 2024 (arXiv 2405.20304). Scaling the exponent by chi is the official bandit code's, the
    adjustment C its language-model trainer's; neither has both, and that chi scales C as well is our choice.

    Args:
        weights: [K] float32 or float64, >= 0, sum 1; the step is computed in their dtype.
        losses: [B] float, finite; detached here.
        groups: [B] int64, in [0, K).
        step_size: >= 0, per unit of the group loss; 0 leaves the weights.
        sizes: [K] > 0, examples of each group in all the training data; needed by `unbiased`, `sum` and `adjustment`.
        trade_off: chi, in [0, 1].
        adjustment: C >= 0, in the loss's unit: small groups, whose loss is less certain, count as worse. It is
            added for groups without rows, too, as in the official code.
        scale: see the module.

    Returns:
        [K], new weights without a graph. A weight of 0 stays 0. One that was positive never becomes less than the
        smallest normal number of the dtype: at an exact 0 its group could never come back.

    Raises:
        ValueError: for an argument out of its range, shapes that do not match, losses that are not finite.
    """
    _check_weights(weights)
    _check_trade_off(trade_off)
    for name, value in (("step_size", step_size), ("adjustment", adjustment)):
        if not (value >= 0 and math.isfinite(value)):
            raise ValueError(f"{name} is {value}; it must be finite and >= 0")
    old = weights.detach()
    found = group_losses(losses.detach().to(old.dtype), groups, groups_count=len(old), sizes=sizes, scale=scale)
    if adjustment > 0:
        found = found + adjustment / _checked_sizes(sizes, len(old), "adjustment", old.dtype).sqrt()
    if not bool(torch.isfinite(found).all()):
        raise ValueError(f"losses give the groups {_shown(found)}; they must be finite")
    # Only differences matter. Taken before they are scaled, they leave the old weights their digits beside huge losses.
    exponents = step_size * trade_off * (found - found.max())
    new = torch.softmax(old.log() + exponents, dim=0)
    return torch.where(old > 0, new.clamp(min=torch.finfo(new.dtype).tiny), new)


def group_coefficients(weights: Tensor, *, trade_off: float = 1.0) -> Tensor:
    """What a group's loss counts, c_g = (1 - chi)/K + chi alpha_g (the official bandit code's trade-off).

    Args:
        weights: [K] float, >= 0, sum 1.
        trade_off: chi, in [0, 1]: 1 gives the weights back, 0 gives 1/K.

    Returns:
        [K] in the dtype of the weights, >= 0, sum 1.

    Raises:
        ValueError: for weights off the simplex or a trade-off out of its range.
    """
    _check_weights(weights)
    _check_trade_off(trade_off)
    return (1 - trade_off) / len(weights) + trade_off * weights


def example_weights(
    weights: Tensor, groups: Tensor, *, sizes: Tensor | None = None, trade_off: float = 1.0, scale: Scale = "mean"
) -> Tensor:
    """What each example counts, so that sum_i w_i loss_i = sum_g c_g L_g, the robust loss of Ramesh et al. 2024.

    The sum is the loss to descend; a mean over examples on top of it would divide by |B| once more.

    Args:
        weights: [K] float, >= 0, sum 1; after their update, as in the official code.
        groups: [B] int64, in [0, K).
        sizes: [K] > 0, examples of each group in all the training data; needed by `unbiased` and `sum`.
        trade_off: chi, in [0, 1].
        scale: the update's own, see the module.

    Returns:
        [B] in the dtype of the weights, >= 0.

    Raises:
        ValueError: for an argument out of its range or shapes that do not match.
    """
    coefficients = group_coefficients(weights, trade_off=trade_off)
    shares = _shares(groups, len(weights), sizes, scale, weights.dtype)
    return coefficients[groups] * shares


def importance_weights(sizes: Tensor) -> Tensor:
    """Fixed weights proportional to 1/N_g: the importance-sampling baseline of Ramesh et al. 2024.

    They are meant for a plain mean over rows, where a group counts by its size: a row's loss times
    `importance_weights(sizes)[groups]`, the official bandit code's form. The official language-model trainer multiplies
    them with group losses of scale `sum`, so that there a row counts in proportion to 1/N_g^2.

    Args:
        sizes: [K] > 0, float or int, examples of each group in all the training data.

    Returns:
        [K], sum 1, in the dtype of the sizes, or torch's default one where they are integers.

    Raises:
        ValueError: for sizes that are not > 0.
    """
    dtype = sizes.dtype if sizes.is_floating_point() else torch.get_default_dtype()
    inverse = 1 / _checked_sizes(sizes, sizes.numel(), "importance_weights", dtype)
    return inverse / inverse.sum()


def _shares(groups: Tensor, count: int, sizes: Tensor | None, scale: Scale, dtype: torch.dtype) -> Tensor:
    """What each row counts in its group's loss, [B]."""
    _check_groups(groups, count)
    totals = torch.bincount(groups, minlength=count).to(dtype)
    return group_scales(totals, sizes=sizes, scale=scale)[groups]


def _check_losses(losses: Tensor, groups: Tensor) -> None:
    if losses.ndim != 1 or losses.shape != groups.shape:
        raise ValueError(f"losses is {list(losses.shape)} and groups {list(groups.shape)}; both must be [B]")


def _check_groups(groups: Tensor, count: int) -> None:
    if count < 1:
        raise ValueError(f"groups_count is {count}; it must be >= 1")
    if groups.ndim != 1 or groups.dtype != torch.int64:
        raise ValueError(f"groups is {groups.dtype} {list(groups.shape)}; it must be torch.int64 [B]")
    wrong = groups[(groups < 0) | (groups >= count)]
    if len(wrong) > 0:
        raise ValueError(f"groups holds {int(wrong[0])}; with {count} groups it must lie in [0, {count - 1}]")


def _checked_sizes(sizes: Tensor | None, count: int, needed_by: str, dtype: torch.dtype) -> Tensor:
    if sizes is None:
        raise ValueError(f"sizes is None; {needed_by} needs the number of examples of each of the {count} groups")
    if sizes.ndim != 1 or len(sizes) != count or count == 0:
        raise ValueError(f"sizes is {list(sizes.shape)}; it must be [{max(count, 1)}], one number a group")
    known = sizes.to(dtype)
    if not bool(((known > 0) & torch.isfinite(known)).all()):
        raise ValueError(f"sizes holds {_shown(sizes)}; all must be finite and > 0")
    return known


def _check_weights(weights: Tensor) -> None:
    if weights.ndim != 1 or len(weights) == 0 or not weights.is_floating_point():
        raise ValueError(f"weights is {weights.dtype} {list(weights.shape)}; it must be a float tensor [K]")
    total = float(weights.detach().sum())
    if not (bool((weights >= 0).all()) and abs(total - 1) <= ROUNDING):
        raise ValueError(f"weights is {_shown(weights)} with sum {total:g}; all must be >= 0 and their sum 1")


def _check_trade_off(trade_off: float) -> None:
    if not 0 <= trade_off <= 1:
        raise ValueError(f"trade_off is {trade_off}; it must be in [0, 1]")


def _shown(values: Tensor) -> str:
    """A few numbers for a message; thousands of groups would bury it."""
    first = ", ".join(f"{value:g}" for value in values.detach().flatten()[:8].tolist())
    return f"[{first}{', ...' if values.numel() > 8 else ''}]"
