"""One objective from the configuration's `loss` and `anchor` seats: named log-probs in, a loss per example out."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pluralign.config import AnchorConfig, LossConfig
from pluralign.errors import InputError
from pluralign.objectives.anchors import base_anchor, chosen_anchor
from pluralign.objectives.losses import LOSSES, MISMATCHED, PAIR, Branches, Gather, LossKind, Sides

ROUNDING = 1e-4
"""Summed log-probs that differ by less, in nats, differ by rounding only (references within 1e-5 in float32)."""


@dataclass
class Weighed:
    """One of several references that a loss is taken against.

    Attributes:
        weight: [B], >= 0; over all references they sum to 1.
        logps: branch name -> [B], under this reference.
    """

    weight: Tensor
    logps: Branches


Reference = Branches | Sequence[Weighed]
"""Log-probs under the reference; or under several, where each has a loss of its own."""


def each(reference: Reference, change: Callable[[Tensor], Tensor]) -> Reference:
    """The same reference with every tensor changed alike (moved, cast, cut)."""
    if isinstance(reference, Mapping):
        return {name: change(value) for name, value in reference.items()}
    return [Weighed(change(one.weight), {n: change(v) for n, v in one.logps.items()}) for one in reference]


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
        if self._custom is None and loss.type not in LOSSES:
            raise InputError(
                f"loss.type is {loss.type!r}",
                fix=f"It is one of {', '.join(LOSSES)}, or a function, 'package.module:function'.",
            )
        # What a loss of the user's own compares is decided here, and what it makes of it by the function.
        self._kind = LossKind(lambda sides, _: sides.margin, couples=True) if self._custom else LOSSES[loss.type]

    @property
    def branches(self) -> tuple[str, ...]:
        """Branches that must go through the policy, in order."""
        return (*self._kind.branches, "base") if self.anchor.base.weight > 0 else self._kind.branches

    @property
    def couples_examples(self) -> bool:
        """Whether an example's loss may depend on the others in the call: nobody knows what a user's own loss does."""
        return self._kind.couples

    @property
    def needs_reference(self) -> bool:
        """Whether any term compares with a reference."""
        return self._kind.reference or self.anchor.base.weight > 0 or self.anchor.chosen.weight > 0

    @property
    def needs_embeddings(self) -> bool:
        """Whether the loss asks how alike prompts are."""
        return self.loss.type == "contrast" and self.loss.contrast.weights == "semantic"

    def lacks(self, responses: Collection[str]) -> list[str]:
        """What a row with these responses lacks for the loss: names of branches; none where it can be used.

        A row without any is for an anchor.
        """
        there = [name for name in PAIR if name in responses]
        if not there and self.anchor.base.weight > 0:
            return []
        either = self._kind.needs == "either" and not (
            self.loss.type == "contrast" and self.loss.contrast.weights == "diagonal"
        )
        needed = there[:1] or ["chosen or rejected"] if either else [n for n in PAIR if n in self._kind.branches]
        return [name for name in needed if name not in responses]

    def counts(self, responses: Collection[str]) -> bool:
        """Whether a row with these responses has a loss of its own, to be divided by.

        The contrast has a loss for every chosen response; a row of a rejected one only stands on the other side.
        """
        return self.loss.type != "contrast" or "chosen" in responses or self.anchor.base.weight > 0

    def __call__(
        self,
        policy: Branches,
        reference: Reference,
        lengths: Branches,
        columns: Mapping[str, Any] | None = None,
        *,
        embeddings: Tensor | None = None,
        gather: Gather = lambda rows: rows,
        process: int = 0,
    ) -> Losses:
        """Losses of a batch.

        Args:
            policy: branch name -> [B] summed log-probs, nats; values at rows that lack the branch are ignored.
            reference: the same under the reference; empty where `needs_reference` is false. Of several, the loss is the
                weighted sum of the losses against each, and the metrics are those of the last, the trusted one.
            lengths: branch name -> [B] response tokens, 0 where a row lacks the branch.
            columns: the table's other columns, handed to a loss of the user's own.
            embeddings: [B, D] of the prompts, where `needs_embeddings`.
            gather: rows [B, ...] -> rows of all processes, with a gradient, for losses that couple examples.
            process: number of this process.
        """
        more: dict[str, Any] = {"embeddings": embeddings, "gather": gather, "process": process}
        if not isinstance(reference, Mapping):
            parts = [self(policy, one.logps, lengths, columns, **more) for one in reference]
            weighed = [one.weight * part.per_example for one, part in zip(reference, parts, strict=True)]
            return Losses(torch.stack(weighed).sum(dim=0), parts[-1].terms)
        has = {name: lengths[name] > 0 for name in policy}
        ratios = {name: policy[name] - reference[name] for name in policy if name in reference}
        outside, inside, terms = self._anchors(policy, reference, lengths, has)
        compared = self._compared(policy, ratios, lengths, has)
        rejected = compared.get("rejected", torch.zeros_like(compared["chosen"]))
        sides = Sides(compared["chosen"], rejected, has, inside, mismatched=compared.get(MISMATCHED), **more)
        value = self._kind.run(sides, self.loss)
        if self._custom is not None:
            value = self._custom(
                value,
                beta=self.loss.beta,
                policy=policy,
                reference=reference,
                lengths=lengths,
                columns=columns or {},
            )
            value = _per_example(value, sides.chosen, self.loss.type)
        per_example = _only(self._concerned(has), value) + outside
        terms.update(self._metrics(policy, ratios, compared, has))
        return Losses(per_example, terms)

    def _compared(self, policy: Branches, ratios: Branches, lengths: Branches, has: Branches) -> dict[str, Tensor]:
        """What the loss compares, by side; 0 where a row lacks the side."""
        values = ratios if self._kind.reference else policy
        per_token = self._kind.per_token or self.loss.length_average
        return {
            name: _only(has[name], values[name] / (lengths[name].clamp(min=1) if per_token else 1))
            for name in (*PAIR, MISMATCHED)
            if name in values
        }

    def _concerned(self, has: Branches) -> Tensor:
        """[B] bool, whether a row has what its loss needs."""
        if self._kind.needs == "chosen":
            return has["chosen"]
        both, either = has["chosen"] & has["rejected"], has["chosen"] | has["rejected"]
        return either if self._kind.needs == "either" else both

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

    def _metrics(self, policy: Branches, ratios: Branches, compared: Branches, has: Branches) -> dict[str, Tensor]:
        """The field's metrics, with TRL's names.

        Rewards are beta times the summed log-ratio whatever the loss; of a pairwise loss without a reference, beta
        times what it compares.
        """
        terms = {
            f"logps/{name}": _nan_where_absent(has[name], value) for name, value in policy.items() if name != MISMATCHED
        }
        if MISMATCHED in ratios:
            terms["kl"] = _nan_where_absent(has[MISMATCHED], ratios[MISMATCHED])
        free = not self._kind.reference and "rejected" in compared
        rewards = {
            name: self.loss.beta * value.detach()
            for name, value in (compared if free else ratios).items()
            if name != MISMATCHED
        }
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


_OF_ONE_LOSS = {
    "target_margin": "simpo",
    "desirable_weight": "kto",
    "undesirable_weight": "kto",
    "contrast": "contrast",
}
"""Setting of `loss` -> the one loss that has it."""


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
    require(loss.target_margin >= 0, "loss.target_margin", loss.target_margin, ">= 0")
    for key, weight in (
        ("loss.desirable_weight", loss.desirable_weight),
        ("loss.undesirable_weight", loss.undesirable_weight),
    ):
        require(weight >= 0, key, weight, ">= 0")
    total = loss.desirable_weight + loss.undesirable_weight
    require(total > 0, "loss.desirable_weight + loss.undesirable_weight", total, "> 0")
    usual = LossConfig()
    for key, kind in _OF_ONE_LOSS.items():
        if loss.type != kind and getattr(loss, key) != getattr(usual, key):
            raise InputError(
                f"loss.{key} is set, and loss.type is {loss.type}",
                fix=f"It is a setting of loss.type {kind}: leave it out.",
            )
    contrast = loss.contrast
    require(contrast.temperature > 0, "loss.contrast.temperature", contrast.temperature, "> 0")
    share = contrast.diagonal_weight
    require(0 <= share <= 1, "loss.contrast.diagonal_weight", share, "in [0, 1]")
    inside = (anchor.base.weight > 0 and anchor.base.placement == "inside") or (
        anchor.chosen.weight > 0 and anchor.chosen.placement == "inside"
    )
    if loss.type == "nll" and inside:
        raise InputError("an anchor is placed inside the margin, and loss.type nll has none", fix="Place it outside.")
    if loss.type in LOSSES and LOSSES[loss.type].needs == "either" and inside:
        raise InputError(
            f"an anchor is placed inside, and loss.type {loss.type} takes rows without a margin",
            fix="Place it outside.",
        )
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
