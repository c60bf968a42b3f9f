"""Which question to ask next: the one whose answer makes the others surest, by the closed form's own account."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pluralign.fewshot.answers import Shares
from pluralign.fewshot.kinds import KINDS, Views
from pluralign.fewshot.taste import View


def worth(
    views: Views, context: Mapping[int, Shares], pool: Sequence[int], targets: Sequence[int] | None = None
) -> np.ndarray:
    """How much variance of predicted shares an answer to each question would take away, `[pool]`.

    What is expected of a Gaussian posterior does not depend on the answer, so nothing is simulated (MacKay 1992,
    "Information-based objective functions for active data selection", in the variance of what is to be predicted).

    Args:
        views: of all questions.
        context: what has been answered.
        pool: questions that could be asked.
        targets: questions whose answers are wanted; the pool itself by default. A question's own answer counts, too.
    """
    wanted = pool if targets is None else targets
    found = np.zeros(len(pool))
    for kind in KINDS:
        if numbers := [number for number in wanted if views.kind(number) == kind]:
            found += _worth(views.of(kind), context, pool, numbers)
    return found


def _worth(view: View, context: Mapping[int, Shares], pool: Sequence[int], targets: Sequence[int]) -> np.ndarray:
    reading = view.read(context)
    covariance = np.eye(len(reading.mean)) - reading.whitened.T @ reading.whitened
    wanted = np.concatenate([reading.slopes(number) @ view.features[view.points.slice(number)] for number in targets])
    spread = wanted @ covariance
    found = []
    for number in pool:
        features = view.features[view.points.slice(number)]
        among = features @ covariance @ features.T + np.diag(view.spread[view.points.slice(number)])
        shared = spread @ features.T
        found.append(float(np.sum(shared * np.linalg.solve(among, shared.T).T)))
    return np.array(found)


def next_question(
    views: Views, context: Mapping[int, Shares], pool: Sequence[int], targets: Sequence[int] | None = None
) -> int:
    """The question of the pool that is worth most; of equal ones the first.

    Args:
        views: of all questions.
        context: what has been answered, perhaps nothing.
        pool: numbers of questions that could be asked, at least one.
        targets: as of `worth`.
    """
    return pool[int(np.argmax(worth(views, context, pool, targets)))]
