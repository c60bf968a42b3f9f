"""FlexAttention on a GPU: block masks for shared rows, and rows packed one after another.

On a CPU FlexAttention has no backward pass, so what was run here is what a GPU does not change: the mask function, the
blocks, packing, and the forward without its compiled kernel. The compiled kernel, its backward and its speed are held
by tests that need a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from pluralign.models.rows import PADDING, ResponseBatch

BLOCK = 128
"""Positions of a block: FlexAttention leaves out blocks in which nothing is seen."""


def block_mask(sees: Callable[..., Tensor], segment_ids: Tensor) -> BlockMask:
    """The mask [R, 1, T, T], on which FlexAttention computes the blocks that are not empty.

    Args:
        sees: of `masks.mask_mod`.
        segment_ids: [R, T], for its shape and device.
    """
    rows, length = segment_ids.shape
    # Uncompiled, [R, T, T] numbers would be in memory for each of its operations.
    return create_block_mask(sees, rows, None, length, length, device=segment_ids.device, _compile=segment_ids.is_cuda)


def pack(batch: ResponseBatch, tokens: int, *, pad_id: int) -> ResponseBatch:
    """Put rows one after another into rows of a budget of tokens: little padding, however unequal they are.

    A row begins at a multiple of 128 and is filled up to one, so that a block of 128 positions belongs to one row of
    the batch, and to one person. `row_ids` names the row of every position; masks keep rows apart by it. Predictions
    stay in the order they had: labels, owners and lengths are those of the batch.

    Args:
        batch: shared rows, not packed yet.
        tokens: budget of a packed row; or the longest row, where that is more.
        pad_id: token in filled positions.

    Returns:
        P packed rows of T', a multiple of 128.

    Raises:
        ValueError: the rows are not shared ones, or packed already.
    """
    if batch.layout != "shared" or batch.row_ids is not None:
        raise ValueError("only shared rows that are not packed can be packed")
    present = batch.segment_ids != PADDING
    lengths = present.sum(dim=1)
    starts, width = _places(lengths.tolist(), tokens)
    # Where each token goes, and where it came from, both in flattened rows.
    origin = present.flatten().nonzero()[:, 0]
    row = origin // present.shape[1]
    before = (lengths.cumsum(0) - lengths)[row]
    target = torch.tensor(starts, device=row.device)[row] + torch.arange(len(origin), device=row.device) - before
    size = (max(starts) // width + 1) * width

    def moved(values: Tensor, fill: int) -> Tensor:
        return values.new_full((size,), fill).index_copy_(0, target, values.flatten()[origin]).view(-1, width)

    place = torch.zeros_like(batch.segment_ids).flatten().index_copy_(0, origin, target)
    return replace(
        batch,
        input_ids=moved(batch.input_ids, pad_id),
        position_ids=moved(batch.position_ids, 0),
        segment_ids=moved(batch.segment_ids, PADDING),
        predict_at=place[batch.predict_at],
        row_ids=_row_ids(starts, lengths.tolist(), size).to(row.device).view(-1, width),
    )


def _places(lengths: list[int], tokens: int) -> tuple[list[int], int]:
    """Where each row begins, counted through all packed rows; and the width of these. First fit, longest first."""
    aligned = [-(-length // BLOCK) * BLOCK for length in lengths]
    budget = max(tokens // BLOCK * BLOCK, *aligned, BLOCK)
    places = [0] * len(lengths)
    used: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -aligned[row]):
        bin_ = next((number for number, taken in enumerate(used) if taken + aligned[row] <= budget), len(used))
        used += [0] * (bin_ == len(used))
        places[row] = bin_ * budget + used[bin_]
        used[bin_] += aligned[row]
    width = max(used)
    return [place // budget * width + place % budget for place in places], width


def _row_ids(starts: list[int], lengths: list[int], size: int) -> Tensor:
    rows = torch.full((size,), PADDING)
    for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        rows[start : start + -(-length // BLOCK) * BLOCK] = row
    return rows
