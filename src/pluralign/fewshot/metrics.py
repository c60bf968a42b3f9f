"""How near predicted answers are to those of a group."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pluralign.fewshot.answers import Question

Values = Sequence[float] | np.ndarray


def wasserstein_alignment(predicted: Values, shares: Values, ordinals: Sequence[float]) -> float:
    """1 - W / W_max of two distributions on a line (Santurkar et al. 2023, OpinionQA).

    Args:
        predicted: `[options]`, at least 0; scaled to sum to 1.
        shares: of the group, likewise.
        ordinals: `[options]`, where each option stands on the line.

    Returns:
        In [0, 1]; NaN where it is undefined: all options stand at one place, or a distribution has no mass.
    """
    places, span = np.asarray(ordinals, float), np.ptp(ordinals)
    one, other = _scaled(predicted), _scaled(shares)
    if not span or one is None or other is None:
        return float("nan")
    order = np.argsort(places, kind="stable")
    gaps = np.diff(places[order])
    distance = float(np.abs(np.cumsum((one - other)[order])[:-1]) @ gaps)
    return 1 - distance / float(span)


def jensen_shannon_alignment(predicted: Values, shares: Values) -> float:
    """1 - the Jensen-Shannon distance (Durmus et al. 2023, GlobalOpinionQA): the root of the divergence in nats.

    Args:
        predicted: `[options]`, at least 0; scaled to sum to 1.
        shares: of the group, likewise.

    Returns:
        In [1 - sqrt(ln 2), 1], 0.167 for distributions that have nothing in common; NaN where one has no mass. (The
        official evaluation takes an undefined distance for a perfect match.)
    """
    one, other = _scaled(predicted), _scaled(shares)
    if one is None or other is None:
        return float("nan")
    middle = (one + other) / 2
    divergence = (_relative_entropy(one, middle) + _relative_entropy(other, middle)) / 2
    return 1 - float(np.sqrt(max(divergence, 0.0)))


def alignment(question: Question, predicted: Values, shares: Values) -> float:
    """Of a question whose options stand on a line Wasserstein alignment, of any other one Jensen-Shannon alignment.

    Args:
        question: what was asked.
        predicted: `[options]`, at least 0.
        shares: of the group, likewise.

    Returns:
        In [0, 1]; NaN where it is undefined.
    """
    if question.ordinals is not None:
        return wasserstein_alignment(predicted, shares, question.ordinals)
    return jensen_shannon_alignment(predicted, shares)


def _scaled(values: Values) -> np.ndarray | None:
    array = np.asarray(values, float)
    total = array.sum()
    return array / total if total > 0 and (array >= 0).all() else None


def _relative_entropy(one: np.ndarray, other: np.ndarray) -> float:
    there = one > 0
    return float((one[there] * np.log(one[there] / other[there])).sum())
