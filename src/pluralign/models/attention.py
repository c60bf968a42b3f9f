"""Attention with a mask on a CPU: what the mask hides is left out, the rest is plain matrix products.

The kernel behind PyTorch's `scaled_dot_product_attention` takes two to three times as long there: with a mask it goes
over all keys, and its own products are slower than those of the libraries.

Rows are cut into pieces of consecutive queries. A piece has the keys that all its queries may see, and after them the
queries' own, which they see causally. In a shared row the prompt's pieces see the prompt so far, and a branch's see the
prompt and the branch so far; other branches are never touched. Short rows are taken whole instead, under the mask:
moving pieces would cost more than they save, most of all where rows have many shapes. Scores are rounded to the dtype
of the inputs before the softmax, which runs in float32, as in the `eager` attention of transformers.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from pluralign.models.rows import PADDING

BLOCKED = "blocked"
"""Name of this kernel among transformers' attention implementations."""
BLOCK = 128
"""Queries of a piece at most: fewer leave less to hide in the causal part, more make larger matrix products."""
PIECE_COST = 2**16
"""What handling a piece costs beside its products, in attention weights: of short rows cut in many ways it is most.
Products of a shape that was not there before take much longer than the next ones, in bfloat16 most of all."""
POSITION_COST = 64
"""What a query or key of a piece costs beside the products: it is moved, and so is what comes back for it."""
MASKED_ALIKE, MASKED_APART = 8, 4
"""As many weights cost one more where a mask has to be laid over them, the same for all rows or each row's own."""
KEPT_ELEMENTS = 2**22
"""Attention weights of a layer that are kept for the backward pass; where there are more, they are computed again."""


@dataclass(frozen=True)
class Piece:
    """Queries [start, stop) of a row, with the keys [first, first + seen) and, causally, [since, stop)."""

    start: int
    stop: int
    first: int
    seen: int
    since: int

    @property
    def length(self) -> int:
        """Number of keys."""
        return self.seen + self.stop - self.since

    def keys(self, rows: Tensor) -> Tensor:
        """The keys' part of [rows, T, ...]."""
        if self.first + self.seen == self.since:
            return rows[:, self.first : self.stop]
        own = rows[:, self.since : self.stop]
        return torch.cat([rows[:, self.first : self.first + self.seen], own], dim=1) if self.seen else own

    def add_to_keys(self, rows: Tensor, values: Tensor) -> None:
        """The reverse of `keys`."""
        rows[:, self.first : self.first + self.seen] += values[:, : self.seen]
        rows[:, self.since : self.stop] += values[:, self.seen :]


@dataclass(frozen=True)
class Cut:
    """Rows that are cut alike.

    Attributes:
        rows: their numbers.
        pieces: of each; positions in no piece are padding.
        causal: whether `keys` and causality say all that the mask says.
        alike: whether all these rows have the same mask.
    """

    rows: slice | list[int]
    pieces: tuple[Piece, ...]
    causal: bool
    alike: bool = True

    @functools.cached_property
    def weights(self) -> int:
        """Attention weights of a row and head that are computed."""
        return sum((piece.stop - piece.start) * piece.length for piece in self.pieces)

    @functools.cached_property
    def positions(self) -> int:
        """Queries and keys of all pieces of a row."""
        return sum(piece.stop - piece.start + piece.length for piece in self.pieces)

    def cost(self, rows: int, heads: int) -> int:
        """What going over a batch's rows of this cut costs, in attention weights."""
        masking = 0 if self.causal else self.weights // (MASKED_ALIKE if self.alike else MASKED_APART)
        each = self.weights + masking + POSITION_COST * self.positions
        return heads * self.count(rows) * each + PIECE_COST * len(self.pieces)

    def count(self, rows: int) -> int:
        """How many of a batch's rows these are."""
        return len(range(*self.rows.indices(rows))) if isinstance(self.rows, slice) else len(self.rows)


def cut_rows(segment_ids: Tensor, *, causal: bool) -> list[Cut]:
    """How attention goes over shared rows, `[prompt | branch | branch ...]` with padding on either side.

    Args:
        segment_ids: [R, T] as in `ResponseBatch`.
        causal: whether a token sees all of the prompt and of its own branch before it.
    """
    alike: dict[tuple[Piece, ...], list[int]] = {}
    for row, segments in enumerate(segment_ids.tolist()):
        alike.setdefault(_pieces(segments), []).append(row)
    return [Cut(_as_slice(rows), pieces, causal) for pieces, rows in alike.items()]


def _as_slice(rows: list[int]) -> slice | list[int]:
    """Neighbouring rows as a slice: which takes them without a copy."""
    together = rows[-1] - rows[0] == len(rows) - 1
    return slice(rows[0], rows[-1] + 1) if together else rows


def _pieces(segments: list[int]) -> tuple[Piece, ...]:
    pieces: list[Piece] = []
    start = first = prompt = 0
    for segment, stretch in groupby(segments):
        stop = start + len(list(stretch))
        if segment == 0:
            first, prompt = start, stop - start
        if segment != PADDING:
            pieces += _split(start, stop, first, prompt if segment else 0)
        start = stop
    return tuple(pieces)


def _split(since: int, end: int, first: int, seen: int) -> Iterator[Piece]:
    """Pieces of one segment, of like size."""
    count = -(-(end - since) // BLOCK)
    size = -(-(end - since) // count)
    for start in range(since, end, size):
        yield Piece(start, min(start + size, end), first if seen else since, seen, since)


# Not compiled: every batch is cut in another way.
@torch.compiler.disable
def blocked_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers' layers call it.

    Without such a mask, with dropout, or with keys of earlier calls, this is transformers' `sdpa`.

    Args:
        module: the attention layer.
        query: [R, H, T, D].
        key: [R, G, T, D], H a multiple of G.
        value: [R, G, T, D'].
        attention_mask: [R, 1, T, T] bool, with no key after its query in the row; its attribute `cuts`, if it has one,
            is that of `cut_rows`.
        dropout: of attention weights.
        scaling: of scores; by default 1 / sqrt(D).
        kwargs: for `sdpa`.

    Returns:
        [R, T, H, D'], and None for the weights.
    """
    plain = not dropout and kwargs.get("position_bias") is None and kwargs.get("softcap") is None
    if attention_mask is None or not plain or not _is_causal_square(module, query, key, attention_mask):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    cuts = _cheaper(getattr(attention_mask, "cuts", None), *query.shape[:3])
    kind = query.device.type
    autocast = torch.is_autocast_enabled(kind) and query.dtype != torch.float64
    dtype = torch.get_autocast_dtype(kind) if autocast else query.dtype
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    tensors = (part.to(dtype, memory_format=torch.contiguous_format) for part in (query, key, value))
    return _Blocked.apply(*tensors, attention_mask, cuts, scale), None


def _is_causal_square(module: nn.Module, query: Tensor, key: Tensor, mask: Tensor) -> bool:
    length = query.shape[2]
    square = mask.dtype == torch.bool and mask.shape[1:] == (1, length, length) and key.shape[2] == length > 1
    return square and getattr(module, "is_causal", True)


def _cheaper(cuts: list[Cut] | None, rows: int, heads: int, length: int) -> list[Cut]:
    """The cuts, or all rows under the whole mask where the cuts are so many that they cost more than they save."""
    whole = Cut(slice(None), _pieces([0] * length), causal=False, alike=cuts is not None and len(cuts) == 1)
    if cuts is None:
        return [whole]
    return cuts if sum(cut.cost(rows, heads) for cut in cuts) <= whole.cost(rows, heads) else [whole]


class _Blocked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, cuts: list[Cut], scale: float
    ) -> Tensor:
        query, key, value = (part.contiguous() for part in (query, key, value))
        rows, heads, length, _ = query.shape
        out = value.new_zeros(rows, length, heads, value.shape[-1])
        keep = rows * heads * max(cut.weights for cut in cuts) <= KEPT_ELEMENTS and any(ctx.needs_input_grad)
        kept: list[Tensor] = []
        with torch.autocast(query.device.type, enabled=False):
            for cut in cuts:
                part = _Part(query[cut.rows], key[cut.rows], value[cut.rows], mask, cut, scale)
                for piece in cut.pieces:
                    weights = part.weights(piece)
                    mixed = weights @ piece.keys(part.flat(part.value))
                    out[cut.rows, piece.start : piece.stop] = part.by_head(mixed).transpose(1, 2)
                    kept += [weights] * keep
        ctx.save_for_backward(query, key, value, mask, *kept)
        ctx.cuts, ctx.scale = cuts, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask, *kept = ctx.saved_tensors
        grad = grad.transpose(1, 2).contiguous()
        weights = iter(kept)
        grads: list[Tensor] = []
        with torch.autocast(query.device.type, enabled=False):
            for cut in ctx.cuts:
                part = _Part(query[cut.rows], key[cut.rows], value[cut.rows], mask, cut, ctx.scale)
                found = part.backward(grad[cut.rows], weights if kept else None)
                if len(ctx.cuts) == 1:
                    return *found, None, None, None
                grads = grads or [torch.zeros_like(part) for part in (query, key, value)]
                for all_rows, own in zip(grads, found, strict=True):
                    all_rows[cut.rows] = own
        return *grads, None, None, None


@dataclass
class _Part:
    """Rows that are cut alike: [rows, heads, T, D]."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor
    cut: Cut
    scale: float

    def flat(self, tensor: Tensor) -> Tensor:
        """[rows * key heads, ..., D]; of queries, those of all heads that share a key head are one after another."""
        return tensor.reshape(self.key.shape[0] * self.key.shape[1], -1, tensor.shape[-1])

    def by_head(self, tensor: Tensor) -> Tensor:
        """[rows, heads, queries, ...], from `flat`."""
        return tensor.view(*self.query.shape[:2], -1, tensor.shape[-1])

    def queries(self, tensor: Tensor, piece: Piece) -> Tensor:
        """A piece's queries, `flat`."""
        return self.flat(tensor[:, :, piece.start : piece.stop])

    def weights(self, piece: Piece) -> Tensor:
        """Softmax over the keys: [rows * key heads, queries, keys]."""
        queries, keys = self.queries(self.query, piece), piece.keys(self.flat(self.key)).transpose(1, 2)
        if not self.cut.causal:
            return self._masked(queries, keys, piece).softmax(dim=-1)
        scores, size = _product(queries, keys, self.scale), piece.stop - piece.start
        by_head = scores.view(*self.query.shape[:2], size, -1)
        by_head[..., -size:].masked_fill_(_later(BLOCK, scores.device)[:size, :size], -torch.inf)
        return scores.softmax(dim=-1)

    def _masked(self, queries: Tensor, keys: Tensor, piece: Piece) -> Tensor:
        """Scores, the lowest number where the mask hides the key."""
        # A query that sees nothing (padding) gets equal weights, and not NaN.
        lowest = torch.finfo(queries.dtype).min
        seen = self.mask[self.cut.rows, 0, piece.start : piece.stop][: 1 if self.cut.alike else None]
        hidden = ~piece.keys(seen.transpose(1, 2)).transpose(1, 2)
        if self.cut.alike:
            bias = torch.zeros_like(hidden, dtype=queries.dtype).masked_fill_(hidden, lowest)
            heads = self.query.shape[1] // self.key.shape[1]
            return torch.baddbmm(bias.repeat(1, heads, 1), queries, keys, alpha=self.scale)
        scores = _product(queries, keys, self.scale)
        scores.view(*self.query.shape[:2], *hidden.shape[1:]).masked_fill_(hidden[:, None], lowest)
        return scores

    def backward(self, grad: Tensor, kept: Iterator[Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        """These rows' gradients by queries, keys and values."""
        # Sums over pieces: in float32 where the parts are in half precision.
        wide = torch.promote_types(self.query.dtype, torch.float32)
        keys, values = self.flat(self.key), self.flat(self.value)
        of_queries = torch.zeros_like(self.query)
        of_keys, of_values = torch.zeros_like(keys, dtype=wide), torch.zeros_like(values, dtype=wide)
        for piece in self.cut.pieces:
            weights = self.weights(piece) if kept is None else next(kept)
            of_out = self.queries(grad, piece)
            by_values = weights.transpose(1, 2) @ of_out
            of_weights = of_out @ piece.keys(values).transpose(1, 2)
            of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
            by_queries = _product(of_scores, piece.keys(keys), self.scale)
            of_queries[:, :, piece.start : piece.stop] = self.by_head(by_queries)
            by_keys = _product(of_scores.transpose(1, 2), self.queries(self.query, piece), self.scale)
            if len(self.cut.pieces) == 1 and by_keys.shape == keys.shape:
                # Nothing is to be summed up.
                return of_queries, by_keys.view_as(self.key), by_values.view_as(self.value)
            piece.add_to_keys(of_keys, by_keys)
            piece.add_to_keys(of_values, by_values)
        return (
            of_queries,
            of_keys.view_as(self.key).to(self.key.dtype),
            of_values.view_as(self.value).to(self.value.dtype),
        )


def _product(one: Tensor, other: Tensor, scale: float) -> Tensor:
    return torch.baddbmm(one.new_empty(1, 1, 1), one, other, beta=0, alpha=scale)


@functools.lru_cache(maxsize=4)
def _later(size: int, device: torch.device) -> Tensor:
    return torch.ones(size, size, dtype=torch.bool, device=device).triu_(1)


AttentionInterface.register(BLOCKED, blocked_attention)
AttentionMaskInterface.register(BLOCKED, sdpa_mask)
