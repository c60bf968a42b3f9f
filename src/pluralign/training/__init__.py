"""Training: the Trainer with named branches, the loop over a population, the folder of a run."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pluralign.training.run import TrainResult, train
    from pluralign.training.trainer import PreferenceTrainer

__all__ = ["PreferenceTrainer", "TrainResult", "train"]
_MODULES = {"PreferenceTrainer": "trainer", "TrainResult": "run", "train": "run"}


def __getattr__(name: str) -> Any:
    # Only when one of them is asked for: the folder of a run is read without torch.
    if name not in _MODULES:
        raise AttributeError(name)
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
