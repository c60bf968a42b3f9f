"""What a model does number by number on a CPU, with fewer passes over memory: RMS norms and rotary embeddings.

Written as one operation after another, each leaves its result in new memory, forwards and backwards: in a small model
that takes more time than the matrix products. Here temporaries are few, or as small as a processor's cache. Numbers are
the model's own but for rounding in float32.

Which modules and functions these are is found out by trying, as their names do not say (Gemma adds 1 to a norm's
weight, GLM rotates neighbouring numbers): what comes to other results than ours is left alone.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CHUNK_ELEMENTS = 2**17
"""Of a temporary: half a MiB of float32."""
_TOLERANCE = 1e-5
_EPSILONS = ("variance_epsilon", "eps")
_OFFSETS = (0.0, 1.0)
_ROTATION = "apply_rotary_pos_emb"
_PARAMETERS = ["q", "k", "cos", "sin", "unsqueeze_dim"]
_SIGNED = "signed_sin"
"""Attribute of a cosine that says that its model's queries and keys are turned here, and holds what is needed."""


def quicken(model: nn.Module) -> None:
    """Have a model's norms and rotary embeddings computed here, where they are float32 (or autocast) on a CPU.

    Other dtypes and devices keep the model's own code.
    """
    for module in model.modules():
        if "forward" in vars(module):
            continue
        form = _form(module)
        if form is not None:
            # Reached through the instance: other models of the class stay as they are.
            module.forward = functools.partial(_norm, module, form)
        elif isinstance(getattr(module, "inv_freq", None), Tensor) and _knows_rotation(type(module).__module__):
            module.register_forward_hook(_mark)


# ---- RMS norms (Zhang and Sennrich 2019, equation 4) ----


def rms_norm(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """`weight * hidden / sqrt(mean(hidden ** 2) + epsilon)` over the last dimension, [..., H] float32."""
    return _RMSNorm.apply(hidden, weight, epsilon)


class _Form(NamedTuple):
    """What an RMS norm adds to its weight, and to the mean of squares."""

    offset: float
    epsilon: float


def _form(module: nn.Module) -> _Form | None:
    """How a norm computes; None where the module is no RMS norm of float32."""
    weight = getattr(module, "weight", None)
    epsilon = next((value for name in _EPSILONS if isinstance(value := getattr(module, name, None), float)), None)
    names = [name for name, _ in module.named_parameters()]
    if names != ["weight"] or weight is None or epsilon is None or list(module.buffers()):
        return None
    if weight.dim() != 1 or weight.dtype != torch.float32 or weight.device.type != "cpu":
        return None
    generator = torch.Generator().manual_seed(0)
    # Rows of which the epsilon is nothing, and half of the sum.
    probe = torch.randn(2, len(weight), generator=generator) * torch.tensor([[1.0], [epsilon**0.5]])
    with torch.no_grad():
        try:
            own = module(probe)
        except (TypeError, ValueError, RuntimeError):
            return None
        for offset in _OFFSETS:
            if _alike(own, rms_norm(probe, weight + offset, epsilon)):
                return _Form(offset, epsilon)
    return None


def _alike(one: Any, other: Tensor) -> bool:
    same = isinstance(one, Tensor) and one.shape == other.shape and one.dtype == other.dtype
    return same and bool((one - other).abs().max() <= _TOLERANCE * other.abs().max())


def _norm(module: nn.Module, form: _Form, hidden: Tensor) -> Tensor:
    weight = module.weight
    if not hidden.dtype == weight.dtype == torch.float32 or not hidden.device.type == weight.device.type == "cpu":
        return type(module).forward(module, hidden)
    return rms_norm(hidden, weight + form.offset if form.offset else weight, form.epsilon)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            length = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True)
            inverse = length.square_().div_(hidden.shape[-1]).add_(epsilon).rsqrt_()
            out = (hidden * inverse).mul_(weight)
        ctx.save_for_backward(hidden, weight, inverse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, inverse = ctx.saved_tensors
        width = hidden.shape[-1]
        with torch.autocast("cpu", enabled=False):
            normed = hidden * inverse
            along = (grad * normed).view(-1, width)
            by_weight = along.sum(0) if ctx.needs_input_grad[1] else None
            if not ctx.needs_input_grad[0]:
                return None, by_weight, None
            # A change along the row itself is normed away.
            lost = torch.mv(along, weight).div_(-width).view_as(inverse)
            return (grad * weight).addcmul_(normed, lost).mul_(inverse), by_weight, None


# ---- Rotary embeddings (Su et al. 2021, equation 34), halves of a head's numbers paired ----


def turn(states: Tensor, cos: Tensor, signed_sin: Tensor, dtype: torch.dtype) -> Tensor:
    """`states * cos + swapped(states) * signed_sin`, with the halves of the last dimension swapped.

    Args:
        states: [R, H, T, D] queries or keys.
        cos: [R or 1, 1, T, D] float32.
        signed_sin: the same of the sine, its first half negated.
        dtype: of the result; sums are float32.
    """
    return _Turn.apply(states, cos, signed_sin, dtype)


class _Turn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, cos: Tensor, signed_sin: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(cos, signed_sin)
        ctx.dtype = states.dtype

        def turned(numbers: Tensor, other: Tensor, angle: Tensor, sine: Tensor) -> None:
            _swap(numbers, other)
            numbers.mul_(angle).addcmul_(other, sine)

        return _by_rows(states, cos, signed_sin, turned, states.new_empty(states.shape, dtype=dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        cos, signed_sin = ctx.saved_tensors
        rows, heads, length, width = grad.shape
        # As the projection gave the states: positions before heads.
        out = grad.new_empty(rows, length, heads, width, dtype=ctx.dtype).transpose(1, 2)

        def turned(numbers: Tensor, other: Tensor, angle: Tensor, sine: Tensor) -> None:
            swapped = numbers * sine
            _swap(swapped, other)
            numbers.mul_(angle).add_(other)

        return _by_rows(grad, cos, signed_sin, turned, out), None, None, None


def _swap(numbers: Tensor, into: Tensor) -> None:
    half = numbers.shape[-1] // 2
    into[..., :half] = numbers[..., half:]
    into[..., half:] = numbers[..., :half]


def _by_rows(
    states: Tensor, cos: Tensor, sin: Tensor, change: Callable[[Tensor, Tensor, Tensor, Tensor], None], out: Tensor
) -> Tensor:
    """Some rows at a time: what `change` leaves in its first argument, a float32 copy; the second is room for it."""
    step = max(1, CHUNK_ELEMENTS // max(1, states[:1].numel()))
    numbers = torch.empty(min(step, len(states)), *states.shape[1:], dtype=torch.float32)
    other = torch.empty_like(numbers)
    for start in range(0, len(states), step):
        part = states[start : start + step]
        rows = slice(start, start + step) if len(cos) > 1 else slice(None)
        now, room = numbers[: len(part)], other[: len(part)]
        now.copy_(part)
        change(now, room, cos[rows], sin[rows])
        out[start : start + step] = now
    return out


def _mark(module: nn.Module, inputs: Any, output: Any) -> None:
    """Say to a cosine that it is one of a model that is turned here."""
    cos, sin = output
    if cos.dtype == torch.float32 and cos.device.type == "cpu" and cos.dim() == 3:
        half = sin.shape[-1] // 2
        setattr(cos, _SIGNED, torch.cat((-sin[..., :half], sin[..., half:]), dim=-1).unsqueeze(1))


def _knows_rotation(name: str) -> bool:
    """Whether a module of model code turns marked queries and keys here; that is set up, if it can be.

    Its attention layers look the function up there. What has no mark, as in any model that was not `quicken`ed, goes
    to the function that was there before.
    """
    code = sys.modules[name]
    own = getattr(code, _ROTATION, None)
    if own is None or getattr(own, _SIGNED, False):
        return own is not None
    if list(inspect.signature(own).parameters) != _PARAMETERS or not _rotates_halves(own):
        return False

    @functools.wraps(own)
    def rotation(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
        signed = getattr(cos, _SIGNED, None)
        if signed is None or unsqueeze_dim != 1 or not all(_turns(one, cos) for one in (q, k)):
            turned: tuple[Tensor, Tensor] = own(q, k, cos, sin, unsqueeze_dim)
            return turned
        # Attention would round what comes out, in its own pass.
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
        angle = cos.unsqueeze(1)
        return turn(q, angle, signed, dtype), turn(k, angle, signed, dtype)

    setattr(rotation, _SIGNED, True)
    setattr(code, _ROTATION, rotation)
    return True


def _turns(states: Tensor, cos: Tensor) -> bool:
    known = states.dtype in (torch.float32, torch.bfloat16) and states.device.type == "cpu" and states.dim() == 4
    return known and states.shape[-1] == cos.shape[-1] and not cos.requires_grad


def _rotates_halves(function: Callable[..., Any]) -> bool:
    """Whether a rotation is the one that is computed here."""
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 2, 3, 4, 8, generator=generator)
    cos, sin = torch.randn(2, 2, 4, 8, generator=generator)
    signed = torch.cat((-sin[..., :4], sin[..., 4:]), dim=-1).unsqueeze(1)
    try:
        found = function(q, k, cos, sin)
    except (TypeError, ValueError, RuntimeError):
        return False
    wanted = [turn(states, cos.unsqueeze(1), signed, torch.float32) for states in (q, k)]
    return all(_alike(one, other) for one, other in zip(found, wanted, strict=True))
