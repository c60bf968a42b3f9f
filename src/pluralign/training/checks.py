"""What a configuration may not ask for, found before anything is loaded."""

from __future__ import annotations

from transformers import TrainingArguments

from pluralign.config import TrainConfig
from pluralign.errors import InputError
from pluralign.models.combined_references import check_reference
from pluralign.preferences.conditioning import Conditioner
from pluralign.training.bank.capacity import check_bank
from pluralign.training.listeners import check_identities
from pluralign.training.weighting import check_weighting


def check_seats(config: TrainConfig) -> None:
    """Raise where the seats contradict each other, or a setting of theirs is out of its range.

    Raises:
        InputError: names the keys.
    """
    parameters = config.parameters
    check_bank(config)
    check_reference(config.reference)
    check_identities(config.conditioning, config.evaluation)
    check_weighting(config)
    Conditioner(config.conditioning)
    if config.reference.ema is not None and config.reference.compute != "cached":
        raise InputError(
            f"reference.ema is {config.reference.ema} and reference.compute is {config.reference.compute}",
            fix="The reference follows the adapter, and is neither the base's nor the table's: take cached.",
        )
    if parameters.kind == "full" and parameters.per != "none":
        raise InputError(
            f"parameters.kind is full and parameters.per is {parameters.per}",
            fix="A whole model for each would be its size many times: take kind lora, or per none.",
        )
    if parameters.kind == "full" and config.reference.compute == "forward":
        raise InputError(
            "reference.compute is forward and parameters.kind is full",
            fix="The forward leaves the adapter out, and there is none: take cached.",
        )
    if parameters.kind == "full" and config.quantization != "none":
        raise InputError(
            f"quantization is {config.quantization} and parameters.kind is full",
            fix="Quantized weights cannot be trained: take kind lora, or quantization none.",
        )


def check_sharding(config: TrainConfig, arguments: TrainingArguments) -> None:
    """Raise where a sharded policy cannot be trained as configured.

    Raises:
        InputError: names the keys.
    """
    if (arguments.fsdp or arguments.deepspeed) and config.parameters.per != "none":
        raise InputError(
            f"the model is sharded (fsdp or deepspeed) and parameters.per is {config.parameters.per}",
            where="training.extra_arguments",
            fix="A sharded base cannot pass from one person to the next: take per none, or DDP (torchrun alone).",
        )
    if (arguments.fsdp or arguments.deepspeed) and config.reference.ema is not None:
        raise InputError(
            f"the model is sharded (fsdp or deepspeed) and reference.ema is {config.reference.ema}",
            where="training.extra_arguments",
            fix="No process has all weights to follow: take DDP (torchrun alone), or leave ema out.",
        )
    if (arguments.fsdp or arguments.deepspeed) and config.quantization != "none":
        raise InputError(
            f"the model is sharded (fsdp or deepspeed) and quantization is {config.quantization}",
            where="training.extra_arguments",
            fix="Shard it, or hold it in 4 bits.",
        )
