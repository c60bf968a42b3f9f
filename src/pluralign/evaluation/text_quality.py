"""What answers are like as texts: how long, how varied, how repetitive, and how likely the base finds them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pluralign.evaluation.statistics import mean
from pluralign.models.generation import Generated

DISTINCT = (1, 2, 3)
"""Lengths n of distinct-n."""
REPEATED = 4
"""Tokens of a phrase that counts as repeated when it comes again."""
_MOST_NATS = 700.0
"""Nats a token beyond which a perplexity is no number of float64."""


def text_quality(answers: Sequence[Generated], base_logps: Sequence[float]) -> dict[str, Any]:
    """Figures of the answers of one person, or of the base, that `behaviour` of `evaluation.json` has.

    N-grams are of the model's tokens, not of words: not every language has spaces between these.

    Args:
        answers: to the person's held-out prompts.
        base_logps: of the same answers under the base (see `spoken`), summed, nats.
    """
    texts = [answer.token_ids for answer in answers]
    return {
        "characters": mean(float(len(answer.text)) for answer in answers),
        **{f"distinct_{n}": distinct(texts, n) for n in DISTINCT},
        "repetition": repetition(texts),
        "base_perplexity": perplexity(base_logps, [len(spoken(answer)) for answer in answers]),
    }


def distinct(texts: Sequence[Sequence[int]], n: int) -> float | None:
    """Distinct n-grams of all texts over their number (distinct-n of Li et al. 2016), in (0, 1]; None without any.

    It falls as there is more text: to be compared over the same number of texts of like length.
    """
    grams = [gram for text in texts for gram in ngrams(text, n)]
    return len(set(grams)) / len(grams) if grams else None


def repetition(texts: Sequence[Sequence[int]]) -> float | None:
    """Share of a text's 4-grams that it has had before (seq-rep-4 of Welleck et al. 2020), mean over texts, in [0, 1).

    Texts of fewer than four tokens are left out; None where all are.
    """
    grams = [ngrams(text, REPEATED) for text in texts]
    return mean(1 - len(set(some)) / len(some) for some in grams if some)


def perplexity(logps: Sequence[float], tokens: Sequence[int]) -> float | None:
    """A model's perplexity on responses: exp of the mean negative log-prob of a token, >= 1.

    Args:
        logps: of each response, summed over its tokens, nats; those that are no number are left out.
        tokens: of each.
    """
    usable = [(logp, count) for logp, count in zip(logps, tokens, strict=True) if math.isfinite(logp)]
    total = sum(count for _, count in usable)
    nats = -math.fsum(logp for logp, _ in usable) / total if total else math.inf
    return math.exp(nats) if nats < _MOST_NATS else None


def spoken(answer: Generated) -> list[int]:
    """The tokens of an answer as they were drawn, with the one that ended it."""
    return [*answer.token_ids, *([] if answer.end is None else [answer.end])]


def ngrams(text: Sequence[int], n: int) -> list[tuple[int, ...]]:
    """Every n tokens in a row, in order."""
    return [tuple(text[start : start + n]) for start in range(len(text) - n + 1)]
