"""Two stages as one configuration: supervised fine-tuning, and the method that begins with it and is compared to it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pluralign.config import AnchorConfig, LossConfig, ReferenceConfig, TrainConfig, WeightingConfig
from pluralign.errors import InputError

FOLDER = "sft"
"""Of the first stage, below the run's: a run of its own. Killed, it goes on; finished, it is left as it is."""


def has_first_stage(config: TrainConfig) -> bool:
    """Whether supervised fine-tuning comes before the method.

    Raises:
        InputError: the number of epochs is out of its range.
    """
    if not config.sft.num_train_epochs >= 0:
        raise InputError(f"sft.num_train_epochs is {config.sft.num_train_epochs}", fix="It is a number of 0 or more.")
    return config.sft.num_train_epochs > 0


def second_stage(config: TrainConfig) -> TrainConfig:
    """The configuration of the method's own stage; without a first stage, as it is given.

    The adapter of the first stage is found below the output folder, wherever that stands now: so it is no part of what
    a run's folder says of its configuration.

    Raises:
        InputError: there is more than one policy, or the seats contradict the stage.
    """
    if not has_first_stage(config):
        return config
    _check(config)
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
    if config.parameters.per != "none" or config.parameters.kind != "lora":
        raise InputError(
            f"{stage}, and parameters.per is {config.parameters.per}, kind {config.parameters.kind}",
            fix="The first stage is of one adapter for all: take per none and kind lora.",
        )
    if config.reference.compute != "cached" or config.reference.ema is not None:
        raise InputError(
            f"{stage}, and the reference is computed in every step",
            fix="The method is compared with the first stage: leave reference.compute and reference.ema as they are.",
        )
