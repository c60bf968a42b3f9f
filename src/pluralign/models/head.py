"""Log-probs straight from hidden states: the head runs over some of the vocabulary at a time.

Peak memory does not grow with positions x vocabulary: the softmax is summed up block by block under a running maximum
(Milakov and Gimelshein 2018, "Online normalizer calculation for softmax"). Where the head is frozen, the derivative of
a position's log-prob by its hidden state is summed up beside it, while the logits are at hand:

    d log p(y) / d h = f'(z_y) (1 - p_y) W_y - sum over v != y of f'(z_v) p_v W_v,    z = W h + bias,  p = softmax(f(z))

with f what the model does to its logits (scaling, soft-capping). [N, H] numbers are kept for the backward, which then
costs one multiplication. Where the head is trained, its gradient needs the loss's: the backward runs the blocks again,
or keeps what it needs of a single one.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CHUNK_ELEMENTS = {"cpu": 2**22}
MOST_CHUNK_ELEMENTS = 2**26
"""Logits at a time, positions x vocabulary: few on a CPU, whose caches they must fit, many on anything else."""

_MULTIPLIERS = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap")
_TOLERANCE = 1e-5
"""Of a logit, relative to the largest: what rounding in float32 leaves."""


@dataclass(frozen=True)
class LogitMap:
    """What a model does to each logit that its head gives: `softcap * tanh(scale * z / softcap)`.

    Attributes:
        scale: a factor (Cohere, Granite).
        softcap: the bound (Gemma 2, equation in section 2 of its report); None leaves the scaled logit as it is.
    """

    scale: float = 1.0
    softcap: float | None = None

    def apply_(self, logits: Tensor) -> Tensor:
        """In place."""
        if self.softcap is None:
            return logits if self.scale == 1.0 else logits.mul_(self.scale)
        return logits.mul_(self.scale / self.softcap).tanh_().mul_(self.softcap)

    def slope(self, mapped: Tensor) -> Tensor | float:
        """The derivative, from mapped logits; a number where it is the same everywhere."""
        if self.softcap is None:
            return self.scale
        return (mapped / self.softcap).square_().neg_().add_(1.0).mul_(self.scale)


def find_logit_map(config: Any, probe: Tensor, image: Tensor) -> LogitMap | None:
    """The map under which a model turned `probe` into `image`, of those that its configuration has the numbers for.

    A number's name does not say what is done with it (Granite divides by `logits_scaling`, HyperCLOVA X multiplies, and
    MiniCPM 3 divides hidden states): the model itself decides.

    Args:
        config: of the language model.
        probe: [V] float32 numbers over the range that logits have.
        image: [..., V] what came out.

    Returns:
        None where no map fits: the model does something else to its logits.
    """
    if image.shape[-1] != probe.shape[-1] or image.numel() != probe.numel():
        return None
    multipliers, caps = _numbers(config, _MULTIPLIERS), _numbers(config, _SOFTCAPS)
    scales = [1.0, *multipliers, *(1.0 / number for number in multipliers)]
    candidates = [LogitMap(*one) for one in itertools.product(scales, [None, *caps])]
    image = image.detach().reshape(-1).to(probe.dtype)
    errors = [(one.apply_(probe.clone()) - image).abs().max().item() for one in candidates]
    best = min(range(len(errors)), key=errors.__getitem__)
    return candidates[best] if errors[best] <= _TOLERANCE * image.abs().max().item() else None


def map_numbers(config: Any) -> tuple[float, ...]:
    """The numbers of a configuration that a model may use on its logits."""
    return (*_numbers(config, _MULTIPLIERS), *_numbers(config, _SOFTCAPS))


def _numbers(config: Any, names: tuple[str, ...]) -> list[float]:
    values = [getattr(config, name, None) for name in names]
    return [float(value) for value in values if isinstance(value, int | float) and value > 0]


def is_plain_head(head: Any) -> bool:
    """Whether a head is its weight and bias and nothing more, all of them here.

    Adapted, quantized and wrapped heads are modules of other kinds; sharded weights (FSDP, DeepSpeed) are tensors of
    other kinds or shapes; offloaded modules have a forward of their own; a hook may want real logits.
    """
    if type(head) is not nn.Linear or "forward" in vars(head) or head._forward_hooks:
        return False
    weight = head.weight
    return (
        type(weight) is nn.Parameter
        and not hasattr(weight, "ds_id")
        and weight.is_floating_point()
        and weight.device.type != "meta"
        and weight.shape == (head.out_features, head.in_features)
    )


def head_dtype(head: nn.Linear, hidden: Tensor) -> torch.dtype:
    """The dtype in which the head would multiply here: autocast's where that is on."""
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind) and hidden.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return head.weight.dtype


def head_logps(head: nn.Linear, hidden: Tensor, labels: Tensor, logit_map: LogitMap, dtype: torch.dtype) -> Tensor:
    """Log-prob of each label: [N] float32 (float64 where `dtype` is), nats; differentiable by hidden states and head.

    Args:
        head: a plain head, V tokens.
        hidden: [N, H].
        labels: [N], in [0, V).
        logit_map: what the model does to its logits.
        dtype: of the matrix products; sums over the vocabulary are float32 at least.
    """
    return _HeadLogps.apply(hidden, head.weight, head.bias, labels, logit_map, dtype)


class _HeadLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        logit_map: LogitMap,
        dtype: torch.dtype,
    ) -> Tensor:
        by_hidden, by_weight, by_bias = ctx.needs_input_grad[:3]
        ctx.trained, ctx.logit_map, ctx.dtype, ctx.hidden_dtype = by_weight or by_bias, logit_map, dtype, hidden.dtype
        with torch.autocast(hidden.device.type, enabled=False):
            head = _Head(hidden.to(dtype), weight, bias, labels, logit_map, keeps=ctx.trained)
            sums, slopes, last = head.sum_up(slopes=by_hidden and not ctx.trained)
            if ctx.trained:
                kept = [head.residual(last, sums)] if len(head.blocks) == 1 else []
                ctx.save_for_backward(hidden, weight, bias, labels, *sums, *kept)
            elif slopes is not None:
                ctx.save_for_backward(slopes)
            return sums.logps

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(grad.device.type, enabled=False):
            if ctx.trained:
                return *_trained_backward(ctx, grad), None, None, None
            (slopes,) = ctx.saved_tensors
            return (grad[:, None] * slopes).to(ctx.hidden_dtype), None, None, None, None, None


class _Sums(NamedTuple):
    """What a softmax comes to, each [N, 1] float32 at least; `logps` [N]."""

    logps: Tensor
    highest: Tensor
    """The largest logit."""
    others: Tensor
    """Sum of exp(logit - highest) over all tokens but the label."""
    total: Tensor
    """The same over all tokens."""
    slope: Tensor
    """Derivative of the label's logit by what the head gave."""


class _Block(NamedTuple):
    """Some columns of the softmax, all [N, width] or [N, 1]."""

    likelihood: Tensor
    """exp(logit - highest), 0 at the label."""
    slope: Tensor | float
    at: Tensor
    """Where the label's column is, if it is `inside`."""
    inside: Tensor


@dataclass
class _Head:
    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    labels: Tensor
    logit_map: LogitMap
    keeps: bool = True
    """Whether a backward pass has a use for one block that is all of the vocabulary."""

    @property
    def blocks(self) -> list[slice]:
        positions, vocabulary = len(self.labels), len(self.weight)
        elements = CHUNK_ELEMENTS.get(self.hidden.device.type, MOST_CHUNK_ELEMENTS) // (1 if self.keeps else 2)
        width = max(1, min(vocabulary, elements // max(1, positions)))
        return [slice(start, start + width) for start in range(0, vocabulary, width)]

    def columns(self, block: slice) -> Tensor:
        """The head's weight, [width, H], in the dtype of the products."""
        return self.weight[block].to(self.hidden.dtype)

    def logits(self, block: slice) -> Tensor:
        """[N, width], as the model would have them, in float32 at least."""
        bias = None if self.bias is None else self.bias[block].to(self.hidden.dtype)
        logits = nn.functional.linear(self.hidden, self.columns(block), bias)
        return self.logit_map.apply_(logits if logits.dtype == torch.float64 else logits.float())

    def labels_in(self, block: slice, width: int) -> tuple[Tensor, Tensor]:
        """Column of each label in the block, and whether it is there at all; both [N, 1]."""
        column = self.labels[:, None] - block.start
        return column.clamp(0, width - 1), (column >= 0) & (column < width)

    def sum_up(self, *, slopes: bool) -> tuple[_Sums, Tensor | None, _Block]:
        """The softmax's sums; if asked for the derivatives [N, H] by the hidden states; and the last block."""
        kind = torch.float64 if self.hidden.dtype == torch.float64 else torch.float32
        highest = self.hidden.new_full((len(self.labels), 1), -torch.inf, dtype=kind)
        others, chosen = torch.zeros_like(highest), torch.zeros_like(highest)
        pulled = self.hidden.new_zeros(self.hidden.shape, dtype=kind) if slopes else None
        for columns in self.blocks:
            z = self.logits(columns)
            at, inside = self.labels_in(columns, z.shape[1])
            slope = self.logit_map.slope(z)
            chosen = torch.where(inside, z.gather(1, at), chosen)
            higher = torch.maximum(highest, z.amax(dim=1, keepdim=True))
            shrink, highest = (highest - higher).exp_(), higher
            block = _block(z, highest, slope, at, inside)
            others = others.mul_(shrink).add_(block.likelihood.sum(dim=1, keepdim=True))
            if pulled is not None:
                weighted = block.likelihood if isinstance(slope, float) else block.likelihood * slope
                pulled = pulled.mul_(shrink).add_(weighted.to(self.hidden.dtype) @ self.columns(columns))
        total = others + (chosen - highest).exp_()
        logps = (chosen - highest - total.log())[:, 0]
        own_slope = torch.as_tensor(self.logit_map.slope(chosen), dtype=kind, device=chosen.device)
        sums = _Sums(logps, highest, others, total, own_slope.expand_as(chosen))
        return sums, None if pulled is None else self._slopes(pulled, sums), block

    def _slopes(self, pulled: Tensor, sums: _Sums) -> Tensor:
        # 1 - p comes from the others' sum, not from a difference: exact also where a label is all but certain.
        push = self.columns_of_labels() * (sums.others * sums.slope / sums.total)
        factor = self.logit_map.scale if self.logit_map.softcap is None else 1.0
        return push.sub_(pulled.mul_(factor / sums.total))

    def columns_of_labels(self) -> Tensor:
        """[N, H], rounded as in the products."""
        return self.weight.index_select(0, self.labels).to(self.hidden.dtype)

    def residual(self, block: _Block, sums: _Sums) -> Tensor:
        """Derivatives of the log-probs by what the head gave, [N, width] in the dtype of the products."""
        residual = block.likelihood.mul_(block.slope).div_(-sums.total)
        own = torch.where(block.inside, sums.others * sums.slope / sums.total, residual.gather(1, block.at))
        return residual.scatter_(1, block.at, own).to(self.hidden.dtype)


def _block(z: Tensor, highest: Tensor, slope: Tensor | float, at: Tensor, inside: Tensor) -> _Block:
    """Logits to likelihoods, in place."""
    likelihood = z.sub_(highest).exp_()
    likelihood.scatter_(1, at, likelihood.gather(1, at).masked_fill_(inside, 0.0))
    return _Block(likelihood, slope, at, inside)


def _trained_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    hidden, weight, bias, labels, *rest = ctx.saved_tensors
    sums, kept = _Sums(*rest[:5]), rest[5:]
    by_hidden, by_weight, by_bias = ctx.needs_input_grad[:3]
    head = _Head(hidden.to(ctx.dtype), weight, bias, labels, ctx.logit_map)
    grad_hidden = torch.zeros_like(hidden, dtype=sums.total.dtype) if by_hidden else None
    grad_weight = torch.empty_like(weight) if by_weight else None
    grad_bias = torch.empty_like(bias) if by_bias and bias is not None else None
    # The loss's gradient multiplies what is [N, H], and not what is [N, width].
    scaled = (head.hidden * grad[:, None]).to(ctx.dtype)
    for columns in head.blocks:
        residual = kept[0] if kept else _residual_again(head, columns, sums)
        if grad_hidden is not None:
            grad_hidden += residual @ head.columns(columns)
        if grad_weight is not None and grad_weight.dtype == ctx.dtype:
            torch.mm(residual.t(), scaled, out=grad_weight[columns])
        elif grad_weight is not None:
            grad_weight[columns] = residual.t() @ scaled
        if grad_bias is not None:
            grad_bias[columns] = (residual * grad[:, None]).sum(dim=0, dtype=grad.dtype)
    if grad_hidden is not None:
        grad_hidden = grad_hidden.mul_(grad[:, None]).to(hidden.dtype)
    return grad_hidden, grad_weight, grad_bias


def _residual_again(head: _Head, columns: slice, sums: _Sums) -> Tensor:
    z = head.logits(columns)
    at, inside = head.labels_in(columns, z.shape[1])
    return head.residual(_block(z, sums.highest, head.logit_map.slope(z), at, inside), sums)
