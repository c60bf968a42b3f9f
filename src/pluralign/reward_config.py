"""What a reward model is made of, as a dataclass that is command line, YAML and Python call alike.

No torch here: help and error messages must not pay for it. Each key's help is the docstring below it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pluralign.config import DataConfig, ModelConfig


@dataclass
class RewardTrainConfig(ModelConfig):
    """`pluralign reward train`: a reward model from a table of pairs, with a head for each person."""

    data: DataConfig = field(default_factory=DataConfig)
    output_dir: str = "runs/reward"
    """Folder of the reward model and its report."""
    overwrite: bool = False
    """Replace a reward model that is there."""
    heads: Literal["none", "user", "group"] = "user"
    """One head for all, or beside it an offset for each value of this column."""
    trunk: Literal["frozen", "lora"] = "lora"
    """What heads read: the base as it is (quick), or with a LoRA adapter that all people's pairs train."""
    rank: int = 8
    """Rank of the trunk's adapter, as in PEFT's `LoraConfig`."""
    alpha: float = 16.0
    """Scale of the trunk's adapter, as in PEFT's `LoraConfig`."""
    shared_penalty: float = 0.3
    """Ridge on the shared head, > 0."""
    offset_penalty: float = 0.1
    """Ridge on each person's offset from the shared head, > 0; the larger, the more pairs it takes to differ."""
    epochs: int = 1
    """Passes over the pairs, with a trunk that is trained; heads alone are fitted until nothing improves."""
    learning_rate: float = 1e-4
    """Of the trunk, at first; it falls to 0 along a line."""
    batch_size: int = 16
    """Pairs in a step of the trunk."""
