"""Training: the Trainer with named branches, and the loop over a population."""

from pluralign.training.run import TrainResult, train
from pluralign.training.trainer import PreferenceTrainer

__all__ = ["PreferenceTrainer", "TrainResult", "train"]
