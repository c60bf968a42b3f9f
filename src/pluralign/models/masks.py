"""Who may attend to whom in a row that holds several responses, per type of layer.

A plain 4-D mask silently replaces a model's own sliding window, so the window is built in here, from distances in
restarted positions: a response token then sees exactly what it would see in a row of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pluralign.models.attention import BLOCKED, cut_rows
from pluralign.models.flex import block_mask
from pluralign.models.rows import PADDING, ResponseBatch

FLEX = "flex_attention"
MASKED_KERNELS = ("eager", "sdpa", BLOCKED, FLEX)
"""Attention implementations that take a mask of one's own."""

MaskMod = Callable[[Tensor, Tensor | None, Tensor, Tensor], Tensor]
"""Row, head, query, key (numbers, broadcast together) -> bool: whether the query sees the key."""


@dataclass(frozen=True)
class Reach:
    """How far back a layer looks.

    Attributes:
        window: a key is seen at a distance below this; None is no limit.
        chunk: keys are seen only inside the same chunk of so many positions; None is no chunks.
    """

    window: int | None = None
    chunk: int | None = None


class UnsupportedLayersError(ValueError):
    """The model has layers, or an attention kernel, that a mask cannot keep apart."""


def causal_lm(model: nn.Module) -> Any:
    """The transformers model inside what wraps it (DDP, FSDP, DeepSpeed, `torch.compile`, PEFT)."""
    inner: Any = model
    while True:
        if hasattr(inner, "get_base_model"):
            inner = inner.get_base_model()
        elif isinstance(getattr(inner, "_orig_mod", None), nn.Module):
            inner = inner._orig_mod
        elif isinstance(getattr(inner, "module", None), nn.Module):
            inner = inner.module
        else:
            return inner


def attention_inputs(model: nn.Module, batch: ResponseBatch) -> dict[str, Any]:
    """`attention_mask` and `position_ids` for the model's forward.

    Separate rows leave masks to the model: it gets the padding mask [R, T]. Shared rows get [R, 1, T, T], for
    `flex_attention` a block mask of that shape, or one such mask per layer type where layers differ.

    Raises:
        UnsupportedLayersError: the layout is `shared` and the model has layers that a mask cannot keep apart.
    """
    if batch.layout == "separate":
        present = (batch.segment_ids != PADDING).long()
        return {"attention_mask": present, "position_ids": batch.position_ids}
    lm = causal_lm(model)
    kernel = attention_kernel(lm)
    if kernel not in MASKED_KERNELS:
        raise UnsupportedLayersError(f"the attention kernel {kernel} takes no mask of one's own")
    if kernel == FLEX and batch.input_ids.device.type == "cpu" and torch.is_grad_enabled():
        raise UnsupportedLayersError(f"the attention kernel {kernel} has no backward pass on a CPU; take sdpa or eager")
    reaches = layer_reaches(lm.config.get_text_config())
    masks = {reach: _mask(batch, reach, kernel, lm.dtype) for reach in set(reaches.values())}
    # One tensor wherever one is enough: every architecture takes that, a mask per layer type only those that mix types.
    per_type = {kind: masks[reach] for kind, reach in reaches.items()}
    attention_mask = per_type if len(masks) > 1 else next(iter(masks.values()))
    return {"attention_mask": attention_mask, "position_ids": batch.position_ids}


def attention_kernel(lm: Any) -> str:
    """The attention implementation that a transformers model runs with."""
    return getattr(lm.config.get_text_config(), "_attn_implementation", None) or "eager"


def layer_reaches(config: Any) -> dict[str, Reach]:
    """Layer type -> how far back layers of this type look, read as transformers reads it.

    With `layer_types` in the configuration each type has its own reach; without, all layers slide if there is a
    `sliding_window` (Mistral, Phi-3), are chunked if there is an `attention_chunk_size`, and look all the way back
    otherwise.

    Raises:
        UnsupportedLayersError: a layer type is unknown here (recurrent, convolutional, sparse).
    """
    window, chunk = getattr(config, "sliding_window", None), getattr(config, "attention_chunk_size", None)
    known = {
        "full_attention": Reach(),
        "sliding_attention": Reach(window=window),
        "chunked_attention": Reach(chunk=chunk),
    }
    layer_types = getattr(config, "layer_types", None)
    if layer_types:
        unknown = sorted(set(layer_types) - set(known))
        if unknown:
            raise UnsupportedLayersError(f"layers of type {', '.join(unknown)} are not kept apart by a mask")
        return {kind: known[kind] for kind in dict.fromkeys(layer_types)}
    if window is not None and getattr(config, "use_sliding_window", True):
        return {"sliding_attention": known["sliding_attention"]}
    if chunk is not None:
        return {"chunked_attention": known["chunked_attention"]}
    return {"full_attention": known["full_attention"]}


def may_attend(
    segment_ids: Tensor, position_ids: Tensor, reach: Reach | None = None, row_ids: Tensor | None = None
) -> Tensor:
    """[R, 1, T, T] bool: whether the query (third axis) sees the key (fourth).

    A token sees its own branch and the prompt, nothing later than itself, and nothing out of the layer's reach.

    Args:
        segment_ids: [R, T] as in `ResponseBatch`.
        position_ids: [R, T] as in `ResponseBatch`.
        reach: of the layer; by default no limit.
        row_ids: [R, T] as in `ResponseBatch`.
    """
    size, length = segment_ids.shape
    rows = torch.arange(size, device=segment_ids.device)[:, None, None]
    places = torch.arange(length, device=segment_ids.device)
    return mask_mod(segment_ids, position_ids, reach, row_ids)(rows, None, places[:, None], places)[:, None]


def mask_mod(
    segment_ids: Tensor, position_ids: Tensor, reach: Reach | None = None, row_ids: Tensor | None = None
) -> MaskMod:
    """`may_attend` as a function of one query and one key, which FlexAttention takes; arguments as there."""
    reach = reach or Reach()

    def sees(row: Tensor, _: Tensor | None, query: Tensor, key: Tensor) -> Tensor:
        of_query, of_key = segment_ids[row, query], segment_ids[row, key]
        position, other = position_ids[row, query], position_ids[row, key]
        allowed = ((of_query == of_key) | (of_key == 0)) & (position >= other) & (of_query != PADDING)
        if row_ids is not None:
            allowed = allowed & (row_ids[row, query] == row_ids[row, key])
        if reach.window is not None:
            allowed = allowed & (position - other < reach.window)
        if reach.chunk is not None:
            allowed = allowed & (position // reach.chunk == other // reach.chunk)
        # A softmax over nothing is NaN, which would spread from padding into gradients: every position sees itself.
        return allowed | (query == key)

    return sees


def _mask(batch: ResponseBatch, reach: Reach, kernel: str, dtype: torch.dtype) -> Any:
    """The mask of layers of one reach, as the kernel wants it."""
    of_batch = batch.segment_ids, batch.position_ids, reach, batch.row_ids
    if kernel == FLEX:
        return block_mask(mask_mod(*of_batch), batch.segment_ids)
    mask = may_attend(*of_batch)
    if kernel == "eager":
        return _additive(mask, dtype)
    return _with_cuts(mask, batch, reach) if kernel == BLOCKED and batch.row_ids is None else mask


def _with_cuts(mask: Tensor, batch: ResponseBatch, reach: Reach) -> Tensor:
    """The mask, for the blocked kernel, with how to go over the rows without what it hides."""
    longest = int(batch.position_ids.max()) + 1
    limits = [limit for limit in (reach.window, reach.chunk) if limit is not None]
    mask.cuts = cut_rows(batch.segment_ids, causal=all(limit >= longest for limit in limits))  # type: ignore[attr-defined]
    return mask


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a key is seen, the lowest finite value where it is not: what eager attention adds to its scores."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
