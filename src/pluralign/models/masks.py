"""Who may attend to whom in a row that holds several responses, per type of layer.

A plain 4-D mask silently replaces a model's own sliding window, so the window is built in here, from distances in
restarted positions: a response token then sees exactly what it would see in a row of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pluralign.models.rows import PADDING, ResponseBatch

MASKED_KERNELS = ("eager", "sdpa")
"""Attention implementations of transformers that take a mask of one's own."""


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

    Separate rows leave masks to the model: it gets the padding mask [R, T]. Shared rows get [R, 1, T, T], or one such
    mask per layer type where layers differ.

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
    reaches = layer_reaches(lm.config.get_text_config())
    masks: dict[Reach, Tensor] = {}
    for reach in set(reaches.values()):
        mask = may_attend(batch.segment_ids, batch.position_ids, reach)
        masks[reach] = mask if kernel == "sdpa" else _additive(mask, lm.dtype)
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


def may_attend(segment_ids: Tensor, position_ids: Tensor, reach: Reach | None = None) -> Tensor:
    """[R, 1, T, T] bool: whether the query (third axis) sees the key (fourth).

    A token sees its own branch and the prompt, nothing later than itself, and nothing out of the layer's reach.

    Args:
        segment_ids: [R, T] as in `ResponseBatch`.
        position_ids: [R, T] as in `ResponseBatch`.
        reach: of the layer; by default no limit.
    """
    reach = reach or Reach()
    query, key = segment_ids[:, :, None], segment_ids[:, None, :]
    distance = position_ids[:, :, None] - position_ids[:, None, :]
    allowed = ((query == key) | (key == 0)) & (distance >= 0) & (query != PADDING)
    if reach.window is not None:
        allowed &= distance < reach.window
    if reach.chunk is not None:
        number = position_ids // reach.chunk
        allowed &= number[:, :, None] == number[:, None, :]
    # A softmax over nothing is NaN, which would spread from padding into gradients: every position sees itself.
    allowed |= torch.eye(segment_ids.shape[1], dtype=torch.bool, device=segment_ids.device)
    return allowed[:, None]


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a key is seen, the lowest finite value where it is not: what eager attention adds to its scores."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
