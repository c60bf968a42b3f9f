"""One objective from the configuration's `loss` and `anchor` seats: named log-probs in, a loss per example out."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pluralign.config import AnchorConfig, LossConfig
from pluralign.errors import InputError
from pluralign.objectives.anchors import base_anchor, chosen_anchor
from pluralign.objectives.pairwise import hinge_loss, ipo_loss, robust_loss, sigmoid_loss, sppo_hard_loss

Branches = Mapping[str, Tensor]
PAIRWISE = ("sigmoid", "ipo", "hinge", "robust", "sppo_hard")
ROUNDING = 1e-4
"""Summed log-probs that differ by less, in nats, differ by rounding only (references within 1e-5 in float32)."""


@dataclass
class Losses:
    """What an objective says of a batch, nothing reduced.

    Attributes:
        per_example: [B], the loss; 0 for a row none of whose terms apply.
        terms: named values [B] for the metrics (`rewards/chosen`, `logps/base`, `anchor/loss`, ...); NaN where a row
            has no such branch, so that means over rows leave it out.
    """

    per_example: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)


class Objective:
    """The `loss` and `anchor` seats as one callable.

    Raises:
        InputError: at construction, for a value out of its range or a loss that cannot be imported.
    """

    def __init__(self, loss: LossConfig, anchor: AnchorConfig | None = None) -> None:
        self.loss, self.anchor = loss, anchor or AnchorConfig()
        _check_ranges(self.loss, self.anchor)
        self._custom = _import_loss(loss.type) if ":" in loss.type else None
        if self._custom is None and loss.type not in (*PAIRWISE, "nll"):
            raise InputError(
                f"loss.type is {loss.type!r}",
                fix=f"It is one of {', '.join((*PAIRWISE, 'nll'))}, or a function, 'package.module:function'.",
            )

    @property
    def branches(self) -> tuple[str, ...]:
        """Branches that must go through the policy, in order."""
        pair = ("chosen",) if self.loss.type == "nll" else ("chosen", "rejected")
        return (*pair, "base") if self.anchor.base.weight > 0 else pair

    @property
    def couples_examples(self) -> bool:
        """Whether an example's loss may depend on the others in the call: nobody knows what a user's own loss does."""
        return self._custom is not None

    @property
    def needs_reference(self) -> bool:
        """Whether any term compares with a reference."""
        return self.loss.type != "nll" or self.anchor.base.weight > 0 or self.anchor.chosen.weight > 0

    def __call__(
        self, policy: Branches, reference: Branches, lengths: Branches, columns: Mapping[str, Any] | None = None
    ) -> Losses:
        """Losses of a batch.

        Args:
            policy: branch name -> [B] summed log-probs, nats; values at rows that lack the branch are ignored.
            reference: the same under the reference; empty where `needs_reference` is false.
            lengths: branch name -> [B] response tokens, 0 where a row lacks the branch.
            columns: the table's other columns, handed to a loss of the user's own.
        """
        has = {name: lengths[name] > 0 for name in policy}
        ratios = {name: policy[name] - reference[name] for name in policy if name in reference}
        outside, inside, terms = self._anchors(policy, reference, lengths, has)
        pair = self._pair_loss(policy, reference, ratios, lengths, inside, columns or {})
        paired = has["chosen"] if self.loss.type == "nll" else has["chosen"] & has["rejected"]
        per_example = torch.where(paired, pair, torch.zeros_like(pair)) + outside
        terms.update(self._metrics(policy, ratios, has))
        return Losses(per_example, terms)

    def _anchors(
        self, policy: Branches, reference: Branches, lengths: Branches, has: Branches
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Sum of the anchors outside the pairwise loss, of those inside the margin, and their metrics."""
        outside = torch.zeros_like(policy["chosen"])
        inside = torch.zeros_like(policy["chosen"])
        terms: dict[str, Tensor] = {}
        base, chosen, nll = self.anchor.base, self.anchor.chosen, self.anchor.nll
        if base.weight > 0:
            tokens = lengths["base"].clamp(min=1) if base.per_token else None
            fixed = _settled(policy["base"], reference["base"])
            value = _only(has["base"], base_anchor(policy["base"], fixed, form=base.form, lengths=tokens))
            terms["anchor/loss"] = _nan_where_absent(has["base"], value)
            if base.placement == "inside":
                inside = inside + base.weight * value
            else:
                outside = outside + base.weight * self.loss.beta * value
        if chosen.weight > 0:
            fixed = _settled(policy["chosen"], reference["chosen"])
            value = _only(has["chosen"], chosen_anchor(policy["chosen"], fixed))
            terms["anchor/chosen"] = _nan_where_absent(has["chosen"], value)
            if chosen.placement == "inside":
                inside = inside + chosen.weight * value
            else:
                outside = outside + chosen.weight * self.loss.beta * value
        if nll.weight > 0:
            value = _only(has["chosen"], -policy["chosen"] / lengths["chosen"].clamp(min=1))
            terms["anchor/nll"] = _nan_where_absent(has["chosen"], value)
            outside = outside + nll.weight * value
        return outside, inside, terms

    def _pair_loss(
        self,
        policy: Branches,
        reference: Branches,
        ratios: Branches,
        lengths: Branches,
        inside: Tensor,
        columns: Mapping[str, Any],
    ) -> Tensor:
        kind, beta = self.loss.type, self.loss.beta
        scale = {name: lengths[name].clamp(min=1) if self.loss.length_average else 1 for name in policy}
        if kind == "nll":
            return -policy["chosen"] / scale["chosen"]
        chosen, rejected = ratios["chosen"] / scale["chosen"], ratios["rejected"] / scale["rejected"]
        margin = chosen - rejected - inside
        if self._custom is not None:
            value = self._custom(
                margin, beta=beta, policy=policy, reference=reference, lengths=lengths, columns=columns
            )
            return _per_example(value, margin, kind)
        if kind == "sigmoid":
            return sigmoid_loss(margin, beta=beta, label_smoothing=self.loss.label_smoothing)
        if kind == "robust":
            return robust_loss(margin, beta=beta, label_smoothing=self.loss.label_smoothing)
        if kind == "sppo_hard":
            return sppo_hard_loss(chosen - inside, rejected, beta=beta)
        return {"ipo": ipo_loss, "hinge": hinge_loss}[kind](margin, beta=beta)

    def _metrics(self, policy: Branches, ratios: Branches, has: Branches) -> dict[str, Tensor]:
        """The field's metrics, with TRL's names; rewards are beta times the summed log-ratio whatever the loss."""
        terms = {f"logps/{name}": _nan_where_absent(has[name], value.detach()) for name, value in policy.items()}
        rewards = {name: self.loss.beta * value.detach() for name, value in ratios.items()}
        for name, value in rewards.items():
            terms[f"rewards/{name}"] = _nan_where_absent(has[name], value)
        if "chosen" in rewards and "rejected" in rewards:
            both = has["chosen"] & has["rejected"]
            margins = rewards["chosen"] - rewards["rejected"]
            terms["rewards/margins"] = _nan_where_absent(both, margins)
            terms["rewards/accuracies"] = _nan_where_absent(both, (margins > 0).to(margins.dtype))
        return terms


def _settled(policy: Tensor, reference: Tensor) -> Tensor:
    """The reference, and the policy's own value where the two differ by rounding only.

    Every anchor of a fresh adapter stands at its kink, and a cached reference differs from the first forward in its
    last digits: they would decide whether the first step is anchored.
    """
    return torch.where((policy - reference).abs() < ROUNDING, policy.detach(), reference)


def _per_example(value: Any, margin: Tensor, path: str) -> Tensor:
    """A loss of the user's own, if it is one value per example: a mean would be spread over the batch unnoticed."""
    if not isinstance(value, Tensor) or value.shape != margin.shape:
        found = f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise InputError(
            f"loss.type {path!r} returns {found} for {len(margin)} examples",
            fix="It must return a tensor with one value per example.",
        )
    return value


def _only(has: Tensor, value: Tensor) -> Tensor:
    return torch.where(has, value, torch.zeros_like(value))


def _nan_where_absent(has: Tensor, value: Tensor) -> Tensor:
    return torch.where(has, value.detach(), torch.full_like(value, float("nan")))


def _check_ranges(loss: LossConfig, anchor: AnchorConfig) -> None:
    def require(ok: bool, key: str, value: object, expected: str) -> None:
        if not ok:
            raise InputError(f"{key} is {value}", fix=f"It must be {expected}.")

    require(loss.beta > 0, "loss.beta", loss.beta, "> 0")
    require(0 <= loss.label_smoothing < 0.5, "loss.label_smoothing", loss.label_smoothing, "in [0, 0.5)")
    for key, weight in (
        ("anchor.base.weight", anchor.base.weight),
        ("anchor.chosen.weight", anchor.chosen.weight),
        ("anchor.nll.weight", anchor.nll.weight),
    ):
        require(weight >= 0, key, weight, ">= 0")
    inside = (anchor.base.weight > 0 and anchor.base.placement == "inside") or (
        anchor.chosen.weight > 0 and anchor.chosen.placement == "inside"
    )
    if loss.type == "nll" and inside:
        raise InputError("an anchor is placed inside the margin, and loss.type nll has none", fix="Place it outside.")
    if loss.type not in ("sigmoid", "robust") and loss.label_smoothing > 0 and ":" not in loss.type:
        raise InputError(f"loss.label_smoothing has no meaning for loss.type {loss.type}", fix="Set it to 0.")
    if anchor.base.weight >= 0.5:
        warnings.warn(
            f"anchor.base.weight is {anchor.base.weight} times beta: from half of beta on, an anchor may forbid the "
            "person's own style where the base's response is the rejected one; judge by generated answers",
            stacklevel=3,
        )


def _import_loss(path: str) -> Callable[..., Tensor]:
    module_name, _, name = path.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), name)
    # A path without a module is a ValueError; a module of the user's own may not even be Python.
    except (ImportError, AttributeError, ValueError, SyntaxError) as error:
        raise InputError(
            f"loss.type {path!r} cannot be imported ({error})",
            fix="It is 'package.module:function' on the Python path.",
        ) from None
    if not callable(function):
        raise InputError(f"loss.type {path!r} is a {type(function).__name__}, not a function")
    return function
