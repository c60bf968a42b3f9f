"""Held-out pairs: does the adapter tell what its person preferred, on whose pairs, and where did the log-probs go."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pluralign.evaluation.drift import Drift
from pluralign.evaluation.statistics import bootstrap_interval, mean, share, wilson_interval
from pluralign.models.anchoring import Anchored
from pluralign.models.scoring import Request

CROSS_NEAREST = 4
CROSS_SAMPLE = 4
_BUCKETS = 4096


@dataclass(frozen=True, slots=True)
class Pair:
    """One held-out pair in tokens, with the base's log-probs.

    Attributes:
        chosen, rejected: prompt and response.
        reference_chosen, reference_rejected: log-probs under the base, summed, nats.
    """

    chosen: Request
    rejected: Request
    reference_chosen: float
    reference_rejected: float

    @property
    def requests(self) -> list[Request]:
        """What a policy must score for this pair."""
        return [self.chosen, self.rejected]


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """One pair under a policy; log-ratios are policy - base, summed over the response's tokens, nats."""

    pair: Pair
    chosen_ratio: float
    rejected_ratio: float

    @property
    def margin(self) -> float:
        """Log-ratio of the chosen less that of the rejected response; times beta, it is TRL's `rewards/margins`."""
        return self.chosen_ratio - self.rejected_ratio

    @property
    def ranking_margin(self) -> float:
        """Log-prob of the chosen less that of the rejected response under the policy itself."""
        return self.margin + self.pair.reference_chosen - self.pair.reference_rejected


def pairs_of(rows: Sequence[Anchored]) -> list[Pair]:
    """The rows that have both responses, as pairs; rows without (SFT, anchor-only) are none."""
    pairs: list[Pair] = []
    for row in rows:
        responses, prompt = row.encoded.response_ids, tuple(row.encoded.prompt_ids)
        chosen, rejected = responses.get("chosen"), responses.get("rejected")
        if chosen and rejected:
            reference = row.reference["chosen"], row.reference["rejected"]
            pairs.append(Pair((prompt, tuple(chosen)), (prompt, tuple(rejected)), *reference))
    return pairs


def scored_pairs(pairs: Sequence[Pair], policy: Mapping[Request, float]) -> list[ScoredPair]:
    """Pairs with their log-ratios, from the policy's log-probs."""
    return [
        ScoredPair(pair, policy[pair.chosen] - pair.reference_chosen, policy[pair.rejected] - pair.reference_rejected)
        for pair in pairs
    ]


def pair_results(scored: Sequence[ScoredPair], *, seed: int = 0) -> dict[str, Any]:
    """The `pairs` of one person, as in `evaluation.json`; a pair whose margin is no number counts as wrong."""
    margins = [item.margin for item in scored]
    right = sum(margin > 0 for margin in margins)
    return {
        "n": len(scored),
        "undefined": sum(not math.isfinite(margin) for margin in margins),
        "accuracy": right / len(scored) if scored else None,
        "accuracy_interval": wilson_interval(right, len(scored)),
        "ties": sum(margin == 0 for margin in margins),
        "margin": mean(margins),
        "margin_interval": bootstrap_interval(margins, seed=seed),
        "ranking_accuracy": share(item.ranking_margin > 0 for item in scored),
        "base_ranking_accuracy": share(item.pair.reference_chosen > item.pair.reference_rejected for item in scored),
        "chosen_log_ratio": mean(item.chosen_ratio for item in scored),
        "rejected_log_ratio": mean(item.rejected_ratio for item in scored),
        "chosen_log_ratio_per_token": mean(item.chosen_ratio / len(item.pair.chosen[1]) for item in scored),
        "rejected_log_ratio_per_token": mean(item.rejected_ratio / len(item.pair.rejected[1]) for item in scored),
    }


def cross_results(scored: Sequence[ScoredPair]) -> dict[str, Any]:
    """One cell of the cross table: an adapter on somebody's pairs."""
    margins = [item.margin for item in scored]
    return {"n": len(scored), "accuracy": share(margin > 0 for margin in margins), "margin": mean(margins)}


def drift_results(drifts: Sequence[Drift]) -> dict[str, Any]:
    """The `base_responses` of one person: how far the policy left what the base itself would say."""
    usable = [item for item in drifts if math.isfinite(item.log_ratio) and math.isfinite(item.divergence)]
    tokens = sum(item.tokens for item in usable)
    return {
        "n": len(drifts),
        "undefined": len(drifts) - len(usable),
        "tokens": tokens,
        "log_ratio": mean(item.log_ratio for item in usable),
        "log_ratio_per_token": math.fsum(item.log_ratio for item in usable) / tokens if tokens else None,
        "kl_per_token": math.fsum(item.divergence for item in usable) / tokens if tokens else None,
    }


def cross_plan(
    pairs: Mapping[str, Sequence[Pair]], *, limit: int, seed: int, only: Collection[str] | None = None
) -> dict[str, list[str]]:
    """Whose pairs each person's adapter is tried on: everybody's up to `limit` people; beyond, a few.

    Beyond `limit` people: its own, the 4 nearest by taste (`taste_profile`, cosine), and 4 people drawn by the seed,
    the same for all. With a limit of 0 there is no cross table.

    Args:
        pairs: held-out pairs of each person; those without any are on neither side as owners of pairs.
        limit: `evaluation.cross_table`.
        seed: fixes the sample.
        only: whose adapters are tried; everybody's by default.

    Returns:
        Person -> people, itself first, the others in the order of `pairs`.
    """
    asked = set(pairs if only is None else only)
    tried = [person for person in pairs if person in asked]
    if limit <= 0:
        return {person: [] for person in tried}
    owners = [person for person, own in pairs.items() if own]
    if len(pairs) <= limit:
        return {person: _self_first(person, owners, set(owners)) for person in tried}
    fixed = set(random.Random(f"cross table {seed}").sample(owners, min(CROSS_SAMPLE, len(owners))))
    profiles = np.stack([taste_profile(pairs[person]) for person in owners]) if owners else np.zeros((0, _BUCKETS))
    nearest = {person: _nearest(profiles, index, owners) for index, person in enumerate(owners) if person in asked}
    return {person: _self_first(person, owners, fixed | nearest.get(person, set())) for person in tried}


def taste_profile(pairs: Sequence[Pair]) -> np.ndarray:
    """What a person prefers, as a unit vector [4096] float32: token shares of the chosen less those of the rejected.

    Tokens share 4096 buckets, so that a thousand people with a vocabulary of 250k fit into 16 MB. What both responses
    have in common (the topic) cancels. All zeros without pairs or without a difference.
    """
    profile = np.zeros(_BUCKETS, dtype=np.float32)
    for pair in pairs:
        for sign, (_, response) in ((1.0, pair.chosen), (-1.0, pair.rejected)):
            np.add.at(profile, np.asarray(response) % _BUCKETS, sign / len(response))
    length = float(np.linalg.norm(profile))
    return profile / length if length > 0 else profile


def _nearest(profiles: np.ndarray, index: int, owners: Sequence[str]) -> set[str]:
    likeness = profiles @ profiles[index]
    likeness[index] = -np.inf
    # Stable, so that equals are taken in order.
    order = np.argsort(-likeness, kind="stable")[: min(CROSS_NEAREST, len(owners) - 1)]
    return {owners[position] for position in order}


def _self_first(person: str, owners: Sequence[str], wanted: set[str]) -> list[str]:
    own = [person] if person in owners else []
    return own + [other for other in owners if other in wanted and other != person]
