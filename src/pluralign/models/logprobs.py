"""Log-probabilities of responses: the model once a row, its head at the predicting positions only, float32 sums."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pluralign.errors import InputError
from pluralign.models.masks import attention_inputs, causal_lm
from pluralign.models.rows import ResponseBatch

CHUNK_ELEMENTS = 2**22
"""Logits that are held in float32 at a time (16 MiB)."""


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
    head = causal_lm(model).get_output_embeddings()
    if head is None:
        raise InputError(f"a {type(causal_lm(model)).__name__} has no language-model head", fix="Use a causal model.")

    def gather(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = inputs[0]
        return hidden.reshape(-1, hidden.shape[-1]).index_select(0, batch.predict_at)[None], *inputs[1:]

    handle = head.register_forward_pre_hook(gather)
    try:
        output = model(input_ids=batch.input_ids, use_cache=False, **attention_inputs(model, batch))
    finally:
        handle.remove()
    return output.logits[0]


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
    logps = token_logps(response_logits(model, batch), batch.labels)
    return sum_by_branch(logps, batch)


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
