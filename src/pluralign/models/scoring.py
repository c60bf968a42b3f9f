"""Log-probabilities of many responses under one model: each distinct text once, prompts shared, batched by length."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import nn

from pluralign.models.base import Base
from pluralign.models.encoding import Encoded
from pluralign.models.logprobs import branch_logps
from pluralign.models.rows import Layout, ResponseBatch, collate, examples_of

Ids = tuple[int, ...]
Request = tuple[Ids, Ids]
"""Tokens of a prompt and of one response to it."""

RowsOf = Callable[[Sequence[int]], AbstractContextManager[None]]
"""Takes the person of every row of a batch."""

ROW_TOKENS = 2048
"""Responses share a row up to so many tokens; further ones start a row of their own, so that masks stay small."""
ROW_BRANCHES = 32
BATCH_TOKENS = {"cpu": 2048}
MOST_BATCH_TOKENS = 16384
"""Tokens of one forward, padding included: few on a CPU, whose caches they must fit, many on anything else."""
BATCH_LOGITS = 2**28
"""Logits in memory at once: responses' tokens x vocabulary."""


@dataclass(frozen=True)
class Forward:
    """How this run puts tokens through a model.

    Attributes:
        pad_id: token in padded positions.
        layout: `shared` rows, or `separate` ones where the model cannot keep branches apart.
        device: where the models are.
        vocabulary: size of the models' head, which bounds the batches.
    """

    pad_id: int
    layout: Layout
    device: torch.device
    vocabulary: int

    @classmethod
    def of(cls, base: Base, layout: Layout) -> Forward:
        """For a base model and what is adapted from it."""
        vocabulary = base.model.get_output_embeddings().weight.shape[0]
        return cls(base.tokenizer.pad_token_id or 0, layout, base.device, vocabulary)

    @property
    def tokens(self) -> int:
        """Tokens of one batch, padding included."""
        return BATCH_TOKENS.get(self.device.type, MOST_BATCH_TOKENS)

    def batch(self, rows: Sequence[Encoded]) -> ResponseBatch:
        """One batch of rows whose branches are named alike."""
        names = max((list(row.response_ids) for row in rows), key=len)
        return collate(rows, pad_id=self.pad_id, branches=names, layout=self.layout).to(self.device)


def iterate_scores(model: nn.Module, requests: Iterable[Request], forward: Forward) -> Iterator[tuple[Request, float]]:
    """Each distinct request with the response's log-prob, summed over its tokens, nats; NaN where it is none.

    Long rows come first: what does not fit into memory fails at once, not at the end.

    Args:
        model: a causal language model, wrapped or not, in evaluation mode.
        requests: prompts and responses, neither empty; the same one may come again.
        forward: layout, padding, device.
    """
    rows = [(0, row) for row in shared_rows(requests, forward.layout)]
    for _, request, value in _iterate(model, rows, forward, lambda _: contextlib.nullcontext()):
        yield request, value


def score(model: nn.Module, requests: Iterable[Request], forward: Forward) -> dict[Request, float]:
    """`iterate_scores` as a dictionary."""
    return dict(iterate_scores(model, requests, forward))


def score_owned(
    model: nn.Module, requests: Mapping[int, Iterable[Request]], forward: Forward, rows_of: RowsOf
) -> dict[int, dict[Request, float]]:
    """`score` for several people at once, in batches of everybody's.

    Args:
        model: runs every row through its own person's adapter inside `rows_of`.
        requests: person -> prompts and responses.
        forward: layout, padding, device.
        rows_of: makes the context in which a batch's rows are those of the given people.
    """
    rows = [(owner, row) for owner, asked in requests.items() for row in shared_rows(asked, forward.layout)]
    found: dict[int, dict[Request, float]] = {owner: {} for owner in requests}
    for owner, request, value in _iterate(model, rows, forward, rows_of):
        found[owner][request] = value
    return found


def _iterate(
    model: nn.Module, rows: Sequence[tuple[int, Encoded]], forward: Forward, rows_of: RowsOf
) -> Iterator[tuple[int, Request, float]]:
    for some in batches(rows, forward):
        batch = forward.batch([row for _, row in some])
        # Not around the loop: between two values the caller's own gradient mode holds.
        with torch.no_grad(), rows_of([some[number][0] for number in examples_of(batch).tolist()]):
            by_branch = branch_logps(model, batch)
            logps = dict(zip(by_branch, torch.stack(list(by_branch.values())).tolist(), strict=True))
        for number, (owner, row) in enumerate(some):
            for name, response in row.response_ids.items():
                yield owner, (tuple(row.prompt_ids), tuple(response)), logps[name][number]


def shared_rows(requests: Iterable[Request], layout: Layout) -> list[Encoded]:
    """Rows of one prompt with its distinct responses as branches `o0`, `o1`, ...; split where long, or `separate`."""
    by_prompt: dict[Ids, dict[Ids, None]] = {}
    for prompt, response in requests:
        by_prompt.setdefault(prompt, {})[response] = None
    rows: list[Encoded] = []
    for prompt, responses in by_prompt.items():
        row, length = list[Ids](), len(prompt)
        for response in responses:
            if row and (layout == "separate" or len(row) == ROW_BRANCHES or length + len(response) > ROW_TOKENS):
                rows.append(request_row(prompt, row))
                row, length = [], len(prompt)
            row.append(response)
            length += len(response)
        rows.append(request_row(prompt, row))
    return rows


def batches(items: Sequence[tuple[int, Encoded]], forward: Forward) -> Iterator[list[tuple[int, Encoded]]]:
    """Rows of like length together, as many as memory allows.

    Args:
        items: rows, each with the number of the person whose it is.
        forward: how much fits.
    """
    most_labels = max(1, BATCH_LOGITS // forward.vocabulary)
    batch: list[tuple[int, Encoded]] = []
    widest = labels = 0
    for item in sorted(items, key=lambda item: _tokens(item[1]), reverse=True):
        row = item[1]
        more = sum(map(len, row.response_ids.values()))
        width = max(widest, _tokens(row))
        if batch and ((len(batch) + 1) * width > forward.tokens or labels + more > most_labels):
            yield batch
            batch, width, labels = [], _tokens(row), 0
        batch.append(item)
        widest, labels = width, labels + more
    if batch:
        yield batch


def request_row(prompt: Ids, responses: Sequence[Ids]) -> Encoded:
    """A prompt and its responses as branches `o0`, `o1`, ..."""
    named = {f"o{number}": list(response) for number, response in enumerate(responses)}
    return Encoded(prompt_ids=list(prompt), response_ids=named)


def _tokens(row: Encoded) -> int:
    return len(row.prompt_ids) + sum(map(len, row.response_ids.values()))
