"""Floating-point operations: those that the work needs, and those that a side runs.

A multiplication and an addition count as two. What is needed is counted from the architecture and the tokens alone, and
is the same for every side that does the same work (`useful`). What is run (`Counter`, `attention`) is every matrix
product that PyTorch hands to the device, counted while it runs, and attention from the shapes that its kernel goes
over: fused kernels do not say what they compute.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from inputs import Pairs, Shape
from torch.utils._python_dispatch import TorchDispatchMode
from workloads import Side, Workload

BRANCHES = {"sft": 1, "dpo": 2, "bapo": 3}
BLOCK = 128
"""Positions of a block of FlexAttention."""
FLEX = "flex_attention"

_ATEN = torch.ops.aten
_PRODUCTS = {
    _ATEN.mm: 0,
    _ATEN.bmm: 0,
    _ATEN.addmm: 1,
    _ATEN.addmm_: 1,
    _ATEN.baddbmm: 1,
    _ATEN.baddbmm_: 1,
}
"""Operators -> the argument that the first matrix is; the second one follows it."""


class Counter(TorchDispatchMode):
    """Adds up the matrix products that run inside the block, backward passes too.

    Attributes:
        total: operations so far; what fused attention kernels and compiled code do is not in it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator, and count it if it is a product."""
        first = _PRODUCTS.get(func.overloadpacket)
        if first is not None:
            left, right = args[first], args[first + 1]
            self.total += 2 * left.numel() * right.shape[-1]
        return func(*args, **(kwargs or {}))


def count_first_step(trainer: Any) -> Counter:
    """A counter of the first forward and backward pass of a trainer, which is not among the measured ones."""
    counter, step = Counter(), trainer.training_step

    def counted(*args: Any, **kwargs: Any) -> Any:
        trainer.training_step = step
        with counter:
            return step(*args, **kwargs)

    trainer.training_step = counted
    return counter


def useful(workload: Workload, side: Side, examples: int) -> int:
    """What training on examples needs, however it is done.

    The prompt goes through the layers once and each response once, attention is over what is visible, the head is at
    the positions that predict a response's token. A forward is one product, a backward one by the inputs and, where the
    weights are trained, one by the weights; nothing is computed twice. Where references are a part of what is
    measured (people), one forward more.
    """
    shape, pairs, branches = workload.shape, workload.pairs, BRANCHES[side.method]
    tokens = pairs.prompt + branches * pairs.response
    layers = 2 * layer_weights(shape) * tokens
    head = 2 * shape.hidden * shape.vocabulary * branches * pairs.response
    seen = 2 * _product(shape) * visible(pairs, branches)
    times, adapters = (3, 0) if workload.rank is None else (2, 6 * adapter_weights(shape, workload.rank) * tokens)
    again = 1 if workload.kind == "people" and side.method != "sft" else 0
    # Attention has no weights: its backward is two products for each of the forward's.
    return examples * (adapters + (times + again) * (layers + head) + (3 + again) * seen)


def attention(workload: Workload, side: Side, examples: int) -> int:
    """What the attention kernels of a side run: two products forward, and five backward with the scores made again."""
    shape, pairs, branches = workload.shape, workload.pairs, BRANCHES[side.method]
    if side.who == "trl":
        length = pairs.prompt + pairs.response
        over = 2 * length * (length + 1) // 2  # a row for each response; the causal kernel leaves the rest out
    elif side.attention == FLEX:
        over = block_pairs(pairs, branches)
    else:
        over = (pairs.prompt + branches * pairs.response) ** 2  # with a mask it goes over everything
    forwards = 1 + (workload.kind == "people" or (side.who == "trl" and not side.precomputed))
    return examples * (2 * forwards + 5) * _product(shape) * over


def layer_weights(shape: Shape) -> int:
    """Weights of all layers' matrices."""
    inner, outer = _factors(shape)
    return shape.layers * sum(one * other for one, other in zip(inner, outer, strict=True))


def adapter_weights(shape: Shape, rank: int) -> int:
    """Weights of a LoRA adapter on all of them."""
    inner, outer = _factors(shape)
    return shape.layers * rank * (sum(inner) + sum(outer))


def visible(pairs: Pairs, branches: int) -> int:
    """Pairs of a query and a key that it sees, in a prompt and its responses."""
    prompt, response = pairs.prompt, pairs.response
    return prompt * (prompt + 1) // 2 + branches * (response * prompt + response * (response + 1) // 2)


def block_pairs(pairs: Pairs, branches: int) -> int:
    """The same with all of every block in which anything is seen."""
    segments = np.repeat(np.arange(branches + 1), [pairs.prompt, *[pairs.response] * branches])
    segments = np.pad(segments, (0, -len(segments) % BLOCK), constant_values=-1)
    seen = np.tri(len(segments), dtype=bool) & ((segments[:, None] == segments) | (segments == 0))
    blocks = seen.reshape(-1, BLOCK, len(segments) // BLOCK, BLOCK).any(axis=(1, 3))
    return int(blocks.sum()) * BLOCK**2


def _product(shape: Shape) -> int:
    """Operations of one product of attention, all layers, for a query and a key."""
    return 2 * shape.layers * shape.hidden


def _factors(shape: Shape) -> tuple[list[int], list[int]]:
    """Inputs and outputs of a layer's matrices: queries, keys, values, output, and the three of the block after."""
    hidden, wide = shape.hidden, shape.intermediate
    keys = hidden // shape.heads * (shape.kv_heads or shape.heads)
    return [hidden] * 4 + [hidden, hidden, wide], [hidden, keys, keys, hidden, wide, wide, hidden]
