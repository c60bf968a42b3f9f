"""Two stages as one configuration: supervised fine-tuning, and the method that begins with it and is compared to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pluralign.config import AnchorConfig, LossConfig, ReferenceConfig, TrainConfig, WeightingConfig
from pluralign.errors import InputError

FOLDER = "sft"
"""Of the first stage, below the run's."""


def after_sft(config: TrainConfig, train: Callable[[TrainConfig], Any]) -> TrainConfig:
    """The configuration of the method's own stage, once the first one is made.

    The first stage is a run of its own, in a folder below: killed, it goes on; finished, it is left as it is.

    Args:
        config: of the run; without a first stage it comes back as it is.
        train: trains a configuration.

    Raises:
        InputError: there is more than one policy, or the seats contradict the stage.
    """
    if config.sft.num_train_epochs == 0:
        return config
    _check(config)
    train(first_stage(config))
    adapter = str(_folder(config) / "adapters" / "_all")
    return replace(
        config,
        parameters=replace(config.parameters, start=adapter),
        reference=replace(config.reference, models=[*config.reference.models, adapter]),
    )


def first_stage(config: TrainConfig) -> TrainConfig:
    """The run of the first stage: the likelihood of the chosen responses, conditioned as the method's own stage is."""
    sft, training = config.sft, config.training
    # A table of its own is there to be learned from.
    data = replace(config.data, path=sft.data, validation=0.0) if sft.data else config.data
    return replace(
        config,
        method="sft",
        data=data,
        output_dir=str(_folder(config)),
        loss=LossConfig(type="nll", length_average=True),
        anchor=AnchorConfig(),
        reference=ReferenceConfig(),
        weighting=WeightingConfig(column=config.weighting.column),
        sft=replace(sft, num_train_epochs=0.0, data=[]),
        training=replace(
            training,
            num_train_epochs=sft.num_train_epochs,
            max_steps=-1,
            learning_rate=sft.learning_rate,
            metric_for_best_model="loss",
        ),
        evaluation=replace(config.evaluation, probes=None, generate=False, identities=False),
    )


def _folder(config: TrainConfig) -> Path:
    return Path(config.output_dir).expanduser().resolve() / FOLDER


def _check(config: TrainConfig) -> None:
    stage = f"sft.num_train_epochs is {config.sft.num_train_epochs}"
    if not config.sft.num_train_epochs > 0:
        raise InputError(stage, fix="It is a number of 0 or more.")
    if config.parameters.per != "none" or config.parameters.kind != "lora":
        raise InputError(
            f"{stage}, and parameters.per is {config.parameters.per}, kind {config.parameters.kind}",
            fix="The first stage is of one adapter for all: take per none and kind lora.",
        )
    if config.reference.compute == "forward" or config.reference.ema is not None:
        raise InputError(
            f"{stage}, and the reference is computed in every step",
            fix="The method is compared with the first stage: leave reference.compute and reference.ema as they are.",
        )
