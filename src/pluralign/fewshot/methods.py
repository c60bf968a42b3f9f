"""What is compared: every baseline, the published module, and the closed form, learned of the same groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from pluralign.config import ModuleTrainingConfig
from pluralign.fewshot.answers import Answers, Shares
from pluralign.fewshot.baselines import TrainingGroups, ridge, uniform
from pluralign.fewshot.features import Points
from pluralign.fewshot.fitting import fit
from pluralign.fewshot.metrics import alignment

Told = tuple[Shares, np.ndarray | None, np.ndarray | None]
"""Shares, and ends of the intervals that should hold 80%, where there are any."""
Predict = Callable[[Mapping[int, Shares], Sequence[int]], list[Told | None]]
"""Context and numbers of targets -> what is predicted; None where a method has nothing to say."""
Learn = Callable[[Answers, Points], Predict]

LEVEL = 0.8
PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0)
TUNED_ON = 10
"""Answers from which training groups are predicted to choose the ridge regression's penalty."""


def methods(module: ModuleTrainingConfig, *, seed: int) -> dict[str, Learn]:
    """Name -> how it is learned.

    Args:
        module: how the published module is trained.
        seed: of what is drawn in learning.
    """
    return {
        "uniform": lambda _, points: _plain(lambda _, targets: uniform(points, targets)),
        "mean": lambda answers, points: _mean(TrainingGroups.of(answers, points)),
        "nearest": lambda answers, points: _of_groups(answers, points, TrainingGroups.nearest),
        "mixture": lambda answers, points: _of_groups(answers, points, TrainingGroups.mixture),
        "ridge": lambda answers, points: _ridge(answers, points, seed),
        "gpo": lambda answers, points: _gpo(answers, points, module, seed),
        "taste": lambda answers, points: _taste(answers, points, seed),
    }


def _plain(say: Callable[[Mapping[int, Shares], Sequence[int]], Sequence[Shares | None]]) -> Predict:
    return lambda context, targets: [None if one is None else (one, None, None) for one in say(context, targets)]


def _of_groups(
    answers: Answers,
    points: Points,
    say: Callable[[TrainingGroups, Mapping[int, Shares], Sequence[int]], Sequence[Shares | None]],
) -> Predict:
    groups = TrainingGroups.of(answers, points)
    return _plain(lambda context, targets: say(groups, context, targets))


def _mean(groups: TrainingGroups) -> Predict:
    """With the spread of the training groups as its interval."""

    def predict(_: Mapping[int, Shares], targets: Sequence[int]) -> list[Told | None]:
        return [
            None if one is None or spread is None else (one, np.clip(one - spread, 0, 1), np.clip(one + spread, 0, 1))
            for one, spread in zip(groups.mean(targets), groups.spread(targets, LEVEL), strict=True)
        ]

    return predict


def _ridge(answers: Answers, points: Points, seed: int) -> Predict:
    """The penalty is the one with which training groups are best predicted, each from some of its own answers."""
    draw = np.random.default_rng(seed)
    trials = []
    for own in answers.groups.values():
        order = [list(own)[place] for place in draw.permutation(len(own))]
        cut = min(TUNED_ON, len(order) // 2)
        if cut:
            trials.append(({number: own[number] for number in order[:cut]}, {n: own[n] for n in order[cut:]}))

    def score(penalty: float) -> float:
        found = [
            alignment(answers.questions[number], said, targets[number])
            for context, targets in trials
            for number, said in zip(targets, ridge(context, points, list(targets), penalty=penalty), strict=True)
        ]
        return float(np.nanmean(found))

    best = max(PENALTIES, key=score) if trials else 1.0
    return _plain(lambda context, targets: ridge(context, points, targets, penalty=best))


def _gpo(answers: Answers, points: Points, module: ModuleTrainingConfig, seed: int) -> Predict:
    from pluralign.fewshot.episodes import predict, train_module

    trained = train_module(answers, points, module, seed=seed).module
    return _plain(lambda context, targets: predict(trained, points, context, targets))


def _taste(answers: Answers, points: Points, seed: int) -> Predict:
    fitted = fit(answers, points, seed=seed)
    views, calibration = fitted.tastes.view(answers.questions, points), fitted.calibration

    def predict(context: Mapping[int, Shares], targets: Sequence[int]) -> list[Told | None]:
        found: list[Told | None] = []
        for number, one in zip(targets, views.read(context).predict(targets), strict=True):
            if calibration is None:
                found.append((one.shares, None, None))
            else:
                found.append((one.shares, *calibration.interval(one, views.kind(number), LEVEL, len(context))))
        return found

    return predict
