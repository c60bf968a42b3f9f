"""Which question to ask next: the one whose answer makes the others surest, by the closed form's own account."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pluralign.fewshot.answers import Shares
from pluralign.fewshot.taste import View


def worth(
    view: View, context: Mapping[int, Shares], pool: Sequence[int], targets: Sequence[int] | None = None
) -> np.ndarray:
    """How much variance of predicted shares an answer to each question would take away, `[pool]`.

    What is expected of a Gaussian posterior does not depend on the answer, so nothing is simulated (MacKay 1992,
    "Information-based objective functions for active data selection", in the variance of what is to be predicted).

    Args:
        view: of all questions.
        context: what has been answered.
        pool: questions that could be asked.
        targets: questions whose answers are wanted; the pool itself by default. A question's own answer counts, too.
    """
    reading = view.read(context)
    covariance = np.eye(len(reading.mean)) - reading.whitened.T @ reading.whitened
    numbers = pool if targets is None else targets
    wanted = np.concatenate(
        [
            _slopes(shares) @ view.features[view.points.slice(number)]
            for number, shares in zip(numbers, reading.shares(numbers), strict=True)
        ]
    )
    spread = wanted @ covariance
    found = []
    for number in pool:
        features = view.features[view.points.slice(number)]
        among = features @ covariance @ features.T + np.diag(view.spread[view.points.slice(number)])
        shared = spread @ features.T
        found.append(float(np.sum(shared * np.linalg.solve(among, shared.T).T)))
    return np.array(found)


def next_question(
    view: View, context: Mapping[int, Shares], pool: Sequence[int], targets: Sequence[int] | None = None
) -> int:
    """The question of the pool that is worth most; of equal ones the first.

    Args:
        view: of all questions.
        context: what has been answered, perhaps nothing.
        pool: numbers of questions that could be asked, at least one.
        targets: as of `worth`.
    """
    return pool[int(np.argmax(worth(view, context, pool, targets)))]


def _slopes(shares: Shares) -> np.ndarray:
    """How shares move with log-shares, `[options, options]`."""
    return np.diag(shares) - np.outer(shares, shares)
