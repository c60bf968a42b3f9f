"""Log-probabilities of responses: the model once a row, its head at the predicting positions only, float32 sums."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pluralign.errors import InputError
from pluralign.models.head import LogitMap, find_logit_map, head_dtype, head_logps, is_plain_head, map_numbers
from pluralign.models.masks import attention_inputs, causal_lm
from pluralign.models.rows import ResponseBatch

CHUNK_ELEMENTS = 2**22
"""Logits that are held in float32 at a time (16 MiB)."""

_LOGIT_MAPS: WeakKeyDictionary[nn.Module, tuple[tuple[float, ...], LogitMap | None]] = WeakKeyDictionary()
"""What each model does to its logits (None: something unknown), with the numbers that its configuration had then."""
_PROBED_RANGE = 16.0


def response_logits(model: nn.Module, batch: ResponseBatch) -> Tensor:
    """Logits that predict the response tokens: [N, V] in the model's own dtype, post-processed as the model does.

    The outermost module is called, so that wrappers (DDP, PEFT, autocast) do their part; a hook hands the head the N
    hidden states that predict something instead of all R*T, so that soft-capping and scaling of logits stay the model's
    own.

    Args:
        model: a causal language model of transformers, wrapped or not.
        batch: on the model's device.

    Raises:
        InputError: the model has no language-model head.
    """
    with _head_at(_head_of(model), batch.predict_at):
        return _run(model, batch)[0]


def response_logps(model: nn.Module, batch: ResponseBatch) -> Tensor:
    """Log-probability of every response token: [N] float32 (float64 for float64 models), nats.

    The same as `token_logps(response_logits(model, batch), batch.labels)`, in memory that does not grow with N x V: the
    head is left out of the model's forward, and what it would have given is summed up block by block (`head.py`). What
    the model does to logits (scaling, soft-capping) is found out in its first forward, from numbers that go through it
    in their place. Where the head is not a plain linear layer, or the model does something unknown to its logits, the
    model's own logits are used.

    Args:
        model: a causal language model of transformers, wrapped or not.
        batch: on the model's device.

    Raises:
        InputError: the model has no language-model head.
    """
    lm, head = causal_lm(model), _head_of(model)
    numbers = map_numbers(lm.config.get_text_config())
    if not is_plain_head(head) or _LOGIT_MAPS.get(lm) == (numbers, None):
        return token_logps(response_logits(model, batch), batch.labels)
    # In the place of the model's own forward, not after the outermost one: wrappers look through what they are handed
    # (DDP for the parameters that a loss depends on), and PEFT calls `forward`, which no hook would see.
    with _forward_as(lm, functools.partial(_forward_with_logps, lm, lm.forward, batch, numbers)):
        return _run(model, batch)


# Not to be compiled, being called with another batch every time; what it calls may be.
@torch.compiler.disable(recursive=False)
def _forward_with_logps(
    lm: Any,
    own_forward: Callable[..., Any],
    batch: ResponseBatch,
    numbers: tuple[float, ...],
    *args: Any,
    **inputs: Any,
) -> Any:
    """The model's forward, with log-probs [N] for logits."""
    head = lm.get_output_embeddings()
    with _head_left_out(head, batch.predict_at) as (probe, seen):
        output = own_forward(*args, **inputs)
    if lm not in _LOGIT_MAPS or _LOGIT_MAPS[lm][0] != numbers:
        _LOGIT_MAPS[lm] = (numbers, _find_logit_map(lm, probe, output.logits) if len(seen) == 1 else None)
    logit_map = _LOGIT_MAPS[lm][1]
    if logit_map is not None:
        hidden, dtype = seen[0]
        output.logits = head_logps(head, hidden, batch.labels, logit_map, dtype)
        return output
    # Once: the next call sees at once that it takes the model's own logits.
    with _head_at(head, batch.predict_at):
        output = own_forward(*args, **inputs)
    output.logits = token_logps(output.logits[0], batch.labels)
    return output


def _run(model: nn.Module, batch: ResponseBatch) -> Tensor:
    output = model(input_ids=batch.input_ids, use_cache=False, **attention_inputs(model, batch))
    logits: Tensor = output.logits
    return logits


def _head_of(model: nn.Module) -> Any:
    lm = causal_lm(model)
    head = lm.get_output_embeddings()
    if head is None:
        raise InputError(f"a {type(lm).__name__} has no language-model head", fix="Use a causal model.")
    return head


@contextlib.contextmanager
def _head_at(head: nn.Module, predict_at: Tensor) -> Iterator[None]:
    """Inside the block the head sees N positions: [1, N, H]."""

    def gather(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return _gathered(inputs[0], predict_at)[None], *inputs[1:]

    handle = head.register_forward_pre_hook(gather)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def _head_left_out(head: nn.Linear, predict_at: Tensor) -> Iterator[tuple[Tensor, list[tuple[Tensor, torch.dtype]]]]:
    """Inside the block the head gives known numbers [1, 1, V], and notes what it was asked with: [N, H] and the dtype.

    Yields:
        The numbers [V], and the list of notes.
    """
    probe = torch.linspace(-_PROBED_RANGE, _PROBED_RANGE, head.out_features, device=head.weight.device)
    seen: list[tuple[Tensor, torch.dtype]] = []
    with _forward_as(head, functools.partial(_note, head, predict_at, probe, seen)):
        yield probe, seen


@torch.compiler.disable
def _note(
    head: nn.Linear, predict_at: Tensor, probe: Tensor, seen: list[tuple[Tensor, torch.dtype]], hidden: Tensor
) -> Tensor:
    seen.append((_gathered(hidden, predict_at), head_dtype(head, hidden)))
    return probe.clone()[None, None]


@contextlib.contextmanager
def _forward_as(module: Any, forward: Callable[..., Any]) -> Iterator[None]:
    """Another forward inside the block; then the one that was there, be it the class's or put there (Accelerate)."""
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


def _gathered(hidden: Tensor, predict_at: Tensor) -> Tensor:
    return hidden.reshape(-1, hidden.shape[-1]).index_select(0, predict_at)


@torch.compiler.disable
def _find_logit_map(lm: Any, probe: Tensor, image: Tensor) -> LogitMap | None:
    logit_map = find_logit_map(lm.config.get_text_config(), probe, image)
    if logit_map is None:
        warnings.warn(
            f"{lm.config.model_type}: the model does something unknown to its logits, which are therefore all held in "
            "memory at once; nothing else changes",
            stacklevel=4,
        )
    return logit_map


def token_logps(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of each label: [N] float32 (float64 for float64 logits), nats.

    The log-sum-exp runs in float32 over some rows at a time, and the backward pass recomputes the softmax in the same
    way. It keeps the logits as they are and three vectors [N]; no float32 copy of logits in lower precision.

    Args:
        logits: [N, V].
        labels: [N], in [0, V).
    """
    return _TokenLogps.apply(logits, labels)


def branch_logps(model: nn.Module, batch: ResponseBatch) -> dict[str, Tensor]:
    """Branch name -> [B] log-prob of the response, summed over its tokens, nats; 0 where a row lacks the branch."""
    return sum_by_branch(response_logps(model, batch), batch)


def sum_by_branch(logps: Tensor, batch: ResponseBatch) -> dict[str, Tensor]:
    """Sum values [N] of response tokens over each response: branch name -> [B], 0 where a row lacks the branch."""
    # Tokens of one response lie together, in the order of `lengths`; index_add would not be deterministic on a GPU.
    sums = torch.segment_reduce(logps, "sum", lengths=batch.lengths.reshape(-1), initial=0, unsafe=True)
    return dict(zip(batch.branches, sums.view(batch.lengths.shape).unbind(dim=1), strict=True))


class _TokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        # Kept apart, not as one log-sum-exp: the difference of two large logits is exact, that to a rounded sum is not.
        highest = torch.empty(labels.shape, dtype=dtype, device=logits.device)
        log_sum = torch.empty_like(highest)
        for rows in _chunks(logits):
            chunk = logits[rows].to(dtype)
            highest[rows] = chunk.amax(dim=-1)
            log_sum[rows] = (chunk - highest[rows, None]).exp_().sum(dim=-1).log_()
        ctx.save_for_backward(logits, labels, highest, log_sum)
        return logits.gather(1, labels[:, None])[:, 0].to(dtype) - highest - log_sum

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        logits, labels, highest, log_sum = ctx.saved_tensors
        grad_logits = torch.empty_like(logits)
        for rows in _chunks(logits):
            # d log p(label) / d logits = onehot(label) - softmax
            chunk = (logits[rows].to(highest.dtype) - highest[rows, None]).sub_(log_sum[rows, None])
            chunk = chunk.exp_().mul_(-grad[rows, None])
            chunk.scatter_add_(1, labels[rows, None], grad[rows, None])
            grad_logits[rows] = chunk
        return grad_logits, None


def _chunks(logits: Tensor) -> list[slice]:
    size = max(1, CHUNK_ELEMENTS // max(1, logits.shape[1]))
    return [slice(start, start + size) for start in range(0, logits.shape[0], size)]
