"""The closed form without one of its choices, or as it was before: what each of them is worth."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest.mock import patch

from pluralign.config import ModuleTrainingConfig
from pluralign.fewshot import fitting
from pluralign.fewshot.answers import Answers
from pluralign.fewshot.features import Points
from pluralign.fewshot.methods import Learn, Predict, methods

CHANGES: dict[str, dict[str, Any]] = {
    # Without rounds there is nothing to choose by.
    "taste, fixed scales": {"rounds_of": lambda *_: []},
    # No table is one of single choices.
    "taste, chosen by alignment": {"SINGLE": 2.0},
    "taste, not sharper": {"SHARPNESS": (1.0,)},
    "taste, one start": {"STARTS": fitting.STARTS[:1]},
    "taste, without the plain mean": {
        "GRID": {**fitting.GRID, "blend": (0.0,)},
        "STARTS": tuple(replace(start, blend=0.0) for start in fitting.STARTS),
    },
}
"""Name -> what is put in the place of what in `fitting`."""


def idea(name: str) -> Learn:
    """How a changed form is learned."""

    def learn(answers: Answers, points: Points) -> Predict:
        with patch.multiple(fitting, **CHANGES[name]):
            return methods(ModuleTrainingConfig(), seed=0)["taste"](answers, points)

    return learn
