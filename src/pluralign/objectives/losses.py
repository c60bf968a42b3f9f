"""What `loss.type` may be: for each name, the branches it needs and the function of a batch's log-probs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pluralign.config import LossConfig
from pluralign.objectives.contrast import Uniform, contrast_loss, diagonal_contrast_loss, semantic_weights
from pluralign.objectives.pairwise import hinge_loss, ipo_loss, robust_loss, sigmoid_loss, sppo_hard_loss
from pluralign.objectives.reference_free import odds_ratio_loss, simpo_loss
from pluralign.objectives.unpaired import kto_loss, mismatched_kl

Branches = Mapping[str, Tensor]
Gather = Callable[[Tensor], Tensor]
PAIR = ("chosen", "rejected")
MISMATCHED = "mismatched"
"""Branch of a response that belongs to another prompt: what KTO measures its divergence with."""


@dataclass
class Sides:
    """What a loss sees of a batch of B rows.

    Attributes:
        chosen, rejected: [B], what is compared: policy minus reference log-prob in nats, or the policy's own where the
            loss has no reference; summed, or per token where the configuration says so. 0 where a row lacks the side.
        has: branch name -> [B] bool.
        inside: [B], what anchors take off the margin.
        mismatched: [B], policy minus reference log-prob of another prompt's response, or None.
        embeddings: [B, D] of the rows' prompts, or None.
        gather: rows [B, ...] of this process -> rows of all processes, in their order, with a gradient.
        process: number of this process.
    """

    chosen: Tensor
    rejected: Tensor
    has: Branches
    inside: Tensor
    mismatched: Tensor | None = None
    embeddings: Tensor | None = None
    gather: Gather = lambda rows: rows
    process: int = 0

    @property
    def margin(self) -> Tensor:
        """[B], chosen minus rejected, less what anchors take off."""
        return self.chosen - self.rejected - self.inside


@dataclass(frozen=True)
class LossKind:
    """A loss by name.

    Attributes:
        run: losses per example [B]; what it gives for rows without the responses it needs is not used.
        needs: the responses a row must have: both, the chosen one, or at least one of them.
        branches: those that go through the policy.
        reference: whether it compares with a reference.
        per_token: whether it is always of log-probs per token.
        couples: whether an example's loss depends on the others of its batch.
    """

    run: Callable[[Sides, LossConfig], Tensor]
    needs: Literal["both", "chosen", "either"] = "both"
    branches: tuple[str, ...] = PAIR
    reference: bool = True
    per_token: bool = False
    couples: bool = False


def _kto(sides: Sides, loss: LossConfig) -> Tensor:
    """Mean over the sides that a row has: a pair counts as much as a single response."""
    assert sides.mismatched is not None
    kl = mismatched_kl(sides.gather(sides.mismatched), sides.gather(sides.has[MISMATCHED]))
    weights = torch.stack(
        [sides.has["chosen"] * loss.desirable_weight, sides.has["rejected"] * loss.undesirable_weight]
    )
    values = torch.stack(
        [
            kto_loss(sides.chosen - sides.inside, kl=kl, beta=loss.beta, desirable=True),
            kto_loss(sides.rejected, kl=kl, beta=loss.beta, desirable=False),
        ]
    )
    count = sides.has["chosen"].to(values.dtype) + sides.has["rejected"].to(values.dtype)
    return (weights * values).sum(dim=0) / count.clamp(min=1)


def _contrast(sides: Sides, loss: LossConfig) -> Tensor:
    """A loss for every chosen response, against all rejected ones of the batch on all processes."""
    settings, has = loss.contrast, sides.has
    rows = has["chosen"] & has["rejected"] if settings.weights == "diagonal" else has["chosen"]
    chosen = (sides.chosen - sides.inside)[rows]
    there = sides.gather(has["rejected"])
    rejected = sides.gather(sides.rejected)[there]
    if settings.weights == "diagonal":
        before = int(there[: sides.process * len(rows)].sum())
        values = diagonal_contrast_loss(
            chosen, rejected, beta=loss.beta, diagonal_weight=settings.diagonal_weight, first=before
        )
    else:
        weights: Tensor | Uniform = "one"
        if settings.weights == "semantic":
            assert sides.embeddings is not None
            others = sides.gather(sides.embeddings)[there]
            weights = semantic_weights(sides.embeddings[rows], others, temperature=settings.temperature)
        elif settings.weights == "share":
            weights = "share"
        values = contrast_loss(chosen, rejected, beta=loss.beta, weights=weights)
    return torch.zeros_like(sides.chosen).index_put((rows.nonzero()[:, 0],), values)


LOSSES: dict[str, LossKind] = {
    "sigmoid": LossKind(lambda s, c: sigmoid_loss(s.margin, beta=c.beta, label_smoothing=c.label_smoothing)),
    "ipo": LossKind(lambda s, c: ipo_loss(s.margin, beta=c.beta)),
    "hinge": LossKind(lambda s, c: hinge_loss(s.margin, beta=c.beta)),
    "robust": LossKind(lambda s, c: robust_loss(s.margin, beta=c.beta, label_smoothing=c.label_smoothing)),
    "sppo_hard": LossKind(lambda s, c: sppo_hard_loss(s.chosen - s.inside, s.rejected, beta=c.beta)),
    "simpo": LossKind(
        lambda s, c: simpo_loss(s.margin, beta=c.beta, target_margin=c.target_margin),
        reference=False,
        per_token=True,
    ),
    "orpo": LossKind(
        lambda s, c: odds_ratio_loss(s.chosen - s.inside, s.rejected, beta=c.beta), reference=False, per_token=True
    ),
    "nll": LossKind(lambda s, c: -s.chosen, needs="chosen", branches=("chosen",), reference=False),
    "kto": LossKind(_kto, needs="either", branches=(*PAIR, MISMATCHED), couples=True),
    "contrast": LossKind(_contrast, needs="either", couples=True),
}
