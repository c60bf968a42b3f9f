"""The batch: one row a prompt, with all its responses side by side, or a row for each response."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

from pluralign.models.encoding import Encoded

Layout = Literal["shared", "separate"]
PaddingSide = Literal["left", "right"]

PADDING = -1
"""Segment of a position that holds nothing."""
LENGTH_STEP = 8
"""Rows of unequal lengths are filled up to a multiple of this: libraries of matrix products prepare themselves for
every new shape, which on a CPU can take ten times as long as the product."""


@dataclass
class ResponseBatch:
    """Rows of tokens and, of each response token, where its prediction stands and whose it is.

    In the layout `shared` a row is `[prompt | response | response ...]`, R = B rows in the order of the examples;
    positions restart after the prompt for every response, and masks keep responses apart (`masks.py`). In the layout
    `separate` a row is `[prompt | response]`. The first token of every response is predicted by the prompt's last
    position.

    Attributes:
        input_ids: [R, T] tokens.
        position_ids: [R, T] position of each token in its own `prompt + response`; 0 in padding.
        segment_ids: [R, T] 0 in a prompt, k in the k-th branch (from 1), -1 in padding.
        predict_at: [N] index into the flattened R*T positions of the one that predicts a response token.
        labels: [N] the response tokens, by example, branch and time.
        owner: [N] b*K + k of each of them, ascending.
        lengths: [B, K] tokens of each response; 0 where a row lacks the branch.
        branches: the K names, in order.
        layout: see above.
        row_ids: [R, T] where rows are packed (`flex.py`), the row each position belonged to, its filling included; -1
            in what is left over. None where they are not.
    """

    input_ids: Tensor
    position_ids: Tensor
    segment_ids: Tensor
    predict_at: Tensor
    labels: Tensor
    owner: Tensor
    lengths: Tensor
    branches: tuple[str, ...]
    layout: Layout
    row_ids: Tensor | None = None

    def to(self, device: Any, **kwargs: Any) -> ResponseBatch:
        """The same batch on another device; keywords as in `Tensor.to`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {name: value.to(device, **kwargs) for name, value in values.items() if isinstance(value, Tensor)}
        return ResponseBatch(**{**values, **moved})

    def branch_lengths(self) -> dict[str, Tensor]:
        """Branch name -> [B] response tokens, as objectives take them."""
        return dict(zip(self.branches, self.lengths.unbind(dim=1), strict=True))


@dataclass(slots=True)
class _Row:
    """One row before padding, and the responses in it: (b*K + k, offset of the response in the row, its tokens)."""

    tokens: list[int]
    positions: list[int]
    segments: list[int]
    prompt_length: int
    responses: list[tuple[int, int, list[int]]]


def collate(
    encoded: Sequence[Encoded],
    *,
    pad_id: int,
    branches: Sequence[str],
    layout: Layout = "shared",
    padding_side: PaddingSide = "right",
) -> ResponseBatch:
    """Put encoded examples into one batch.

    Args:
        encoded: B >= 1 examples; a branch of `branches` that one lacks gets length 0, other branches are left out.
        pad_id: token in padded positions; nothing attends to it.
        branches: K names.
        layout: one row an example, or one row a response (an example without any keeps a row of its prompt alone).
        padding_side: where shorter rows are padded.

    Raises:
        ValueError: there are no examples, or one has an empty prompt, which could predict nothing.
    """
    if not encoded:
        raise ValueError("a batch needs at least one example")
    rows: list[_Row] = []
    for index, example in enumerate(encoded):
        if not example.prompt_ids:
            raise ValueError(f"example {index} has an empty prompt")
        numbered = [
            (number, example.response_ids[name])
            for number, name in enumerate(branches)
            if example.response_ids.get(name)
        ]
        groups = [numbered] if layout == "shared" or not numbered else [[response] for response in numbered]
        rows += [_row(example.prompt_ids, group, first_owner=index * len(branches)) for group in groups]
    lengths = [[len(example.response_ids.get(name, ())) for name in branches] for example in encoded]
    return _pad(rows, lengths, pad_id=pad_id, branches=tuple(branches), layout=layout, padding_side=padding_side)


def examples_of(batch: ResponseBatch) -> Tensor:
    """The example that each row belongs to: [R] int64, ascending."""
    examples = torch.arange(len(batch.lengths), device=batch.lengths.device)
    if batch.layout == "shared":
        return examples
    # An example without any response keeps a row of its prompt alone.
    return examples.repeat_interleave((batch.lengths > 0).sum(dim=1).clamp(min=1))


def _row(prompt: list[int], responses: Sequence[tuple[int, list[int]]], *, first_owner: int) -> _Row:
    row = _Row(list(prompt), list(range(len(prompt))), [0] * len(prompt), len(prompt), [])
    for number, tokens in responses:
        row.responses.append((first_owner + number, len(row.tokens), tokens))
        row.tokens += tokens
        row.positions += range(len(prompt), len(prompt) + len(tokens))
        row.segments += [number + 1] * len(tokens)
    return row


def filled_width(lengths: Sequence[int]) -> int:
    """T of a batch with rows of these lengths, in tokens."""
    longest = max(lengths)
    return longest if min(lengths) == longest else -(-longest // LENGTH_STEP) * LENGTH_STEP


def _pad(
    rows: Sequence[_Row],
    lengths: list[list[int]],
    *,
    pad_id: int,
    branches: tuple[str, ...],
    layout: Layout,
    padding_side: PaddingSide,
) -> ResponseBatch:
    width = filled_width([len(row.tokens) for row in rows])
    tokens, positions, segments = [], [], []
    predict_at: list[int] = []
    labels: list[int] = []
    owner: list[int] = []
    for number, row in enumerate(rows):
        missing = width - len(row.tokens)
        before, after = (missing, 0) if padding_side == "left" else (0, missing)
        tokens.append([pad_id] * before + row.tokens + [pad_id] * after)
        positions.append([0] * before + row.positions + [0] * after)
        segments.append([PADDING] * before + row.segments + [PADDING] * after)
        start = number * width + before
        for whose, offset, response in row.responses:
            predict_at.append(start + row.prompt_length - 1)
            predict_at += range(start + offset, start + offset + len(response) - 1)
            labels += response
            owner += [whose] * len(response)
    return ResponseBatch(
        input_ids=torch.tensor(tokens),
        position_ids=torch.tensor(positions),
        segment_ids=torch.tensor(segments),
        predict_at=torch.tensor(predict_at, dtype=torch.long),
        labels=torch.tensor(labels, dtype=torch.long),
        owner=torch.tensor(owner, dtype=torch.long),
        lengths=torch.tensor(lengths, dtype=torch.long).reshape(len(lengths), len(branches)),
        branches=branches,
        layout=layout,
    )
