"""The closed form without one of its choices, or as it was before: what each of them is worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np

from pluralign.config import ModuleTrainingConfig
from pluralign.fewshot import fitting, lifting
from pluralign.fewshot.answers import Answers, Shares
from pluralign.fewshot.features import Points
from pluralign.fewshot.kinds import KINDS
from pluralign.fewshot.methods import Learn, Predict, Told, methods

CHANGES: dict[str, tuple[ModuleType, dict[str, Any]]] = {
    # Without rounds there is nothing to choose by.
    "taste, fixed scales": (fitting, {"rounds_of": lambda *_: []}),
    # No table is one of single choices.
    "taste, chosen by alignment": (fitting, {"SINGLE": 2.0}),
    "taste, not sharper": (fitting, {"SHARPNESS": (1.0,)}),
    "taste, powers up to 3": (fitting, {"SHARPNESS": tuple(power for power in fitting.SHARPNESS if power <= 3.0)}),
    "taste, one start": (fitting, {"STARTS": fitting.STARTS[:1]}),
    "taste, without the plain mean": (
        fitting,
        {
            "GRID": {**fitting.GRID, "blend": (0.0,)},
            "STARTS": tuple(replace(start, blend=0.0) for start in fitting.STARTS),
        },
    ),
    "taste, not lifted": (fitting, {"LIFTED": ()}),
    "taste, lifted for known questions too": (fitting, {"LIFTED": KINDS}),
    "taste, 500 landmarks": (lifting, {"MARKS": 500}),
    "taste, 2000 landmarks": (lifting, {"MARKS": 2000}),
}
"""Name -> what is put in the place of what, and where."""
HARDER: dict[str, Callable[[Shares], Shares]] = {
    "taste, to the power of 3": lambda shares: shares**3 / (shares**3).sum(),
    "taste, one option": lambda shares: np.eye(len(shares))[shares.argmax()],
}
"""Name -> what becomes of predicted shares. All of the share on one option is what alignment with single choices likes
best."""
IDEAS = (*CHANGES, *HARDER)


def idea(name: str) -> Learn:
    """How a changed form is learned."""
    taste = methods(ModuleTrainingConfig(), seed=0)["taste"]
    if name in HARDER:
        return lambda answers, points: _hardened(taste(answers, points), HARDER[name])

    def learn(answers: Answers, points: Points) -> Predict:
        module, changes = CHANGES[name]
        with patch.multiple(module, **changes):
            return taste(answers, points)

    return learn


def _hardened(predict: Predict, harden: Callable[[Shares], Shares]) -> Predict:
    def hardened(context: Mapping[int, Shares], targets: Sequence[int]) -> list[Told | None]:
        return [(harden(one[0]), None, None) for one in predict(context, targets) if one is not None]

    return hardened
