"""Log-probabilities of many responses under one model: each distinct text once, prompts shared, batched by length."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pluralign.models.encoding import Encoded
from pluralign.models.logprobs import branch_logps, response_logits, sum_by_branch, token_logps
from pluralign.models.rows import Layout, ResponseBatch, collate

Ids = tuple[int, ...]
Request = tuple[Ids, Ids]
"""Tokens of a prompt and of one response to it."""

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

    @property
    def tokens(self) -> int:
        """Tokens of one batch, padding included."""
        return BATCH_TOKENS.get(self.device.type, MOST_BATCH_TOKENS)

    def batch(self, rows: Sequence[Encoded]) -> ResponseBatch:
        """One batch of rows whose branches are named alike."""
        names = max((list(row.response_ids) for row in rows), key=len)
        return collate(rows, pad_id=self.pad_id, branches=names, layout=self.layout).to(self.device)


def score(model: nn.Module, requests: Iterable[Request], forward: Forward) -> dict[Request, float]:
    """Log-probability of each distinct response after its prompt, summed over its tokens, nats; NaN where it is none.

    Args:
        model: a causal language model, wrapped or not, in evaluation mode.
        requests: prompts and responses, neither empty; the same one may come again.
        forward: layout, padding, device.
    """
    scores: dict[Request, float] = {}
    with torch.no_grad():
        for rows in batches(shared_rows(requests, forward.layout), forward):
            logps = {name: sums.tolist() for name, sums in branch_logps(model, forward.batch(rows)).items()}
            for number, row in enumerate(rows):
                for name, response in row.response_ids.items():
                    scores[tuple(row.prompt_ids), tuple(response)] = logps[name][number]
    return scores


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
                rows.append(_encoded(prompt, row))
                row, length = [], len(prompt)
            row.append(response)
            length += len(response)
        rows.append(_encoded(prompt, row))
    return rows


def batches(rows: Sequence[Encoded], forward: Forward) -> Iterator[list[Encoded]]:
    """Rows of like length together, as many as memory allows."""
    most_labels = max(1, BATCH_LOGITS // forward.vocabulary)
    batch: list[Encoded] = []
    widest = labels = 0
    for row in sorted(rows, key=_tokens, reverse=True):
        more = sum(map(len, row.response_ids.values()))
        width = max(widest, _tokens(row))
        if batch and ((len(batch) + 1) * width > forward.tokens or labels + more > most_labels):
            yield batch
            batch, width, labels = [], _tokens(row), 0
        batch.append(row)
        widest, labels = width, labels + more
    if batch:
        yield batch


@dataclass
class Drift:
    """How far a policy moved on one response: summed log-ratio policy - base and KL(policy || base), nats; tokens."""

    log_ratio: float
    divergence: float
    tokens: int


@dataclass
class BaseLogits:
    """The base's logits on its own responses, kept for the next person while they fit.

    Attributes:
        base_model: opens a context that gives the bare base, also while an adapter is attached to it.
        limit: bytes that may be kept.
    """

    base_model: Callable[[], AbstractContextManager[nn.Module]]
    limit: int = 2**30
    kept: dict[Request, Tensor] = field(default_factory=dict)

    def of(self, rows: Sequence[Encoded], forward: Forward) -> Tensor:
        """Logits [N, V] of rows with one response each, in the order of the rows."""
        missing = [row for row in rows if _request(row) not in self.kept]
        if not missing:
            return torch.cat([self.kept[_request(row)] for row in rows])
        batch = forward.batch(missing)
        with self.base_model() as model:
            logits = response_logits(model, batch)
        pieces = dict(zip(map(_request, missing), logits.split(batch.lengths[:, 0].tolist()), strict=True))
        found = torch.cat([pieces[key] if (key := _request(row)) in pieces else self.kept[key] for row in rows])
        self._keep(pieces)
        return found

    def _keep(self, pieces: dict[Request, Tensor]) -> None:
        size = sum(piece.nbytes for piece in (*self.kept.values(), *pieces.values()))
        if size <= self.limit:
            self.kept.update({key: piece.clone() for key, piece in pieces.items()})


def drift(
    model: nn.Module, requests: Iterable[Request], base_logits: BaseLogits, forward: Forward
) -> dict[Request, Drift]:
    """Log-ratio and full-vocabulary KL divergence of a policy from the base on each distinct response of the base.

    Args:
        model: the policy.
        requests: prompts with the base's response, neither empty.
        base_logits: where the base's side comes from.
        forward: layout, padding, device.
    """
    found: dict[Request, Drift] = {}
    rows = [_encoded(prompt, [response]) for prompt, response in dict.fromkeys(requests)]
    with torch.no_grad():
        for group in batches(rows, forward):
            batch = forward.batch(group)
            base = base_logits.of(group, forward)
            policy = response_logits(model, batch)
            ratio = token_logps(policy, batch.labels) - token_logps(base, batch.labels)
            ratios = sum_by_branch(ratio, batch)["o0"].tolist()
            divergences = sum_by_branch(kl_divergence(policy, base), batch)["o0"].tolist()
            for row, log_ratio, divergence in zip(group, ratios, divergences, strict=True):
                found[_request(row)] = Drift(log_ratio, divergence, len(row.response_ids["o0"]))
    return found


def kl_divergence(policy: Tensor, base: Tensor) -> Tensor:
    """KL(policy || base) of each position's next-token distribution: [N] float32, nats, >= 0.

    Args:
        policy: logits [N, V].
        base: logits [N, V]. Neither is copied to float32 as a whole.
    """
    step = max(1, 2**22 // policy.shape[1])
    chunks = []
    for start in range(0, policy.shape[0], step):
        one = policy[start : start + step].float().log_softmax(dim=-1)
        other = base[start : start + step].float().log_softmax(dim=-1)
        # A token that the policy excludes (-inf) adds nothing: 0 log 0 = 0.
        terms = torch.where(one.isneginf(), 0.0, one.exp() * (one - other))
        # Rounding can leave a sum of signed terms a hair below zero.
        chunks.append(terms.sum(dim=-1).clamp(min=0))
    return torch.cat(chunks)


def _encoded(prompt: Ids, responses: Sequence[Ids]) -> Encoded:
    named = {f"o{number}": list(response) for number, response in enumerate(responses)}
    return Encoded(prompt_ids=list(prompt), response_ids=named)


def _request(row: Encoded) -> Request:
    return tuple(row.prompt_ids), tuple(row.response_ids["o0"])


def _tokens(row: Encoded) -> int:
    return len(row.prompt_ids) + sum(map(len, row.response_ids.values()))
