"""How far a policy moved from the base on given responses, and how likely the base finds them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pluralign.models.encoding import Encoded
from pluralign.models.logprobs import response_logits, sum_by_branch, token_logps
from pluralign.models.scoring import Forward, Request, RowsOf, batches, request_row


@dataclass
class Drift:
    """How far a policy moved on one response.

    Attributes:
        log_ratio: policy - base, summed over the tokens, nats.
        divergence: KL(policy || base) of the next token, summed over the positions, nats.
        tokens: of the response.
        base_logp: under the base, summed over the tokens, nats.
    """

    log_ratio: float
    divergence: float
    tokens: int
    base_logp: float = 0.0


@dataclass
class BaseLogits:
    """The base's logits on responses, kept for the next person while they fit.

    Attributes:
        base_model: opens a context that gives the bare base, also while an adapter is attached to it.
        limit: bytes that may be kept; 0 for responses that nobody else has.
    """

    base_model: Callable[[], AbstractContextManager[nn.Module]]
    limit: int = 2**30
    kept: dict[Request, Tensor] = field(default_factory=dict)

    def of(self, rows: Sequence[Encoded], forward: Forward) -> Tensor:
        """Logits [N, V] of rows with one response each, in the order of the rows."""
        # Several people's rows may hold the same response: the base runs it once.
        missing = list({_request(row): row for row in rows if _request(row) not in self.kept}.values())
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
    model: nn.Module,
    requests: Mapping[int, Iterable[Request]],
    base_logits: BaseLogits,
    forward: Forward,
    rows_of: RowsOf,
) -> dict[int, dict[Request, Drift]]:
    """Log-ratio and full-vocabulary KL divergence of policies from the base on each distinct response.

    Args:
        model: runs every row through its own person's policy inside `rows_of`.
        requests: person -> prompts with a response, neither empty.
        base_logits: where the base's side comes from.
        forward: layout, padding, device.
        rows_of: makes the context in which a batch's rows are those of the given people.
    """
    found: dict[int, dict[Request, Drift]] = {owner: {} for owner in requests}
    rows = [
        (owner, request_row(prompt, [response]))
        for owner, asked in requests.items()
        for prompt, response in dict.fromkeys(asked)
    ]
    with torch.no_grad():
        for group in batches(rows, forward):
            batch = forward.batch([row for _, row in group])
            base = base_logits.of([row for _, row in group], forward)
            with rows_of([owner for owner, _ in group]):
                policy = response_logits(model, batch)
            of_base = token_logps(base, batch.labels)
            sums = (token_logps(policy, batch.labels) - of_base, kl_divergence(policy, base), of_base)
            by_row = zip(*(sum_by_branch(one, batch)["o0"].tolist() for one in sums), strict=True)
            for (owner, row), (log_ratio, divergence, base_logp) in zip(group, by_row, strict=True):
                found[owner][_request(row)] = Drift(log_ratio, divergence, len(row.response_ids["o0"]), base_logp)
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


def _request(row: Encoded) -> Request:
    return tuple(row.prompt_ids), tuple(row.response_ids["o0"])
