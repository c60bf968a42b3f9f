"""What the responses of a phase are like: how long, how repetitive, how far from the base."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from pluralign.training.online.files import Candidates, Pair

_PHRASE = 4
"""Words of a phrase that counts as repeated when it comes again."""


def figures(candidates: Sequence[Candidates], pairs: Sequence[Pair]) -> dict[str, float]:
    """Of one person's responses in one phase, as `metrics.jsonl` has them.

    Args:
        candidates: of the person, at least one.
        pairs: of the person.

    Returns:
        `sampled/tokens` mean of a response; `sampled/finished` share that ended; `sampled/repetition` share of a
        response's phrases of four words that it has had before, mean over responses; `sampled/kl_per_token` log-ratio
        to the base over tokens, nats: an estimate of KL(policy || base) where temperature is 1 and nothing is cut away;
        `sampled/paired` share of the prompts that gave a pair.
    """
    said = [one for row in candidates for one in row.responses]
    tokens = sum(one.tokens for one in said)
    return {
        "sampled/tokens": tokens / len(said),
        "sampled/finished": fmean(one.finished for one in said),
        "sampled/repetition": fmean(repetition(one.text) for one in said),
        "sampled/kl_per_token": sum(one.logp - one.base_logp for one in said) / max(tokens, 1),
        "sampled/paired": len({pair.row for pair in pairs}) / len(candidates),
    }


def repetition(text: str) -> float:
    """Share of a text's phrases of four words that it has had before, in [0, 1)."""
    words = text.split()
    phrases = [tuple(words[start : start + _PHRASE]) for start in range(len(words) - _PHRASE + 1)]
    return 1 - len(set(phrases)) / len(phrases) if phrases else 0.0
