"""Whether a run can use the bank, and how many slots fit."""

from __future__ import annotations

import psutil  # type: ignore[import-untyped]
import torch
from transformers import TrainingArguments

from pluralign.config import TrainConfig, TrainingConfig
from pluralign.errors import InputError

USUAL_SLOTS = {"cpu": 64}
MOST_SLOTS = 256
"""Slots that a run takes by itself: more gain nothing once forwards are full, and wait for memory."""
USUAL_TOKENS = {"cpu": 4096}
MOST_TOKENS = 16384
_SHARE = 0.25
_VECTORS = 4
"""Vectors of a slot: the adapter, its gradient, Adam's two means."""

_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop")
"""Those that treat every number alike, so that an adapter may be one vector."""
_SCHEDULES_BY_METRIC = ("reduce_lr_on_plateau", "greedy")
_HONOURED = {
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "dataloader_num_workers",
    "dataloader_persistent_workers",
    "dataloader_pin_memory",
    "dataloader_prefetch_factor",
    "ddp_backend",
    "ddp_timeout",
    "disable_tqdm",
    "eval_delay",
    "eval_on_start",
    "greater_is_better",
    "log_level",
    "log_level_replica",
    "logging_dir",
    "logging_first_step",
    "logging_strategy",
    "lr_scheduler_kwargs",
    "optim",
    "optim_args",
    "tf32",
    "train_sampling_strategy",
}


def obstacle(config: TrainConfig, arguments: TrainingArguments) -> str | None:
    """Why a run cannot train people together, or None."""
    if config.parameters.kind != "lora":
        return f"parameters.kind is {config.parameters.kind}, and the bank holds adapters"
    if config.reference.ema is not None:
        return "reference.ema follows the steps of one policy"
    if arguments.fp16:
        return "training.fp16 scales everybody's loss alike; take bf16"
    optimizer = str(getattr(arguments.optim, "value", arguments.optim))
    if optimizer not in _OPTIMIZERS:
        return f"optim {optimizer} looks at whole matrices; the bank takes {', '.join(_OPTIMIZERS)}"
    if str(arguments.lr_scheduler_type.value) in _SCHEDULES_BY_METRIC:
        return f"lr_scheduler_type {arguments.lr_scheduler_type.value} is no function of the step"
    unknown = sorted(set(config.training.extra_arguments) - _HONOURED)
    if unknown:
        return f"training.extra_arguments has {', '.join(unknown)}"
    return None


def uses_bank(config: TrainConfig, arguments: TrainingArguments) -> bool:
    """Whether the run trains people together: where it is asked to, and by itself where there may be several.

    Raises:
        InputError: it is asked to, and cannot.
    """
    reason = obstacle(config, arguments)
    asked = config.engine in ("bank", "ray")
    if asked and reason:
        raise InputError(
            f"method {config.method} cannot train people together as configured ({reason})",
            where=f"engine {config.engine}",
            fix="Set engine to trainer: one person after another.",
        )
    return asked or (config.engine == "auto" and config.parameters.per != "none" and reason is None)


def slot_bytes(adapter_bytes: int, training: TrainingConfig) -> int:
    """Memory of one slot, of an adapter of so many bytes."""
    return adapter_bytes * (_VECTORS + int(training.load_best_model_at_end))


def choose_slots(config: TrainConfig, people: int, adapter_bytes: int, device: torch.device) -> int:
    """How many slots a run takes.

    Args:
        config: `bank.slots`, if it is given.
        people: to train.
        adapter_bytes: of one adapter.
        device: where they are to be.

    Raises:
        InputError: the slots that are asked for do not fit; the message says how many would.
    """
    each, free = slot_bytes(adapter_bytes, config.training), free_memory(device)
    asked = config.bank.slots
    if asked is None:
        usual = USUAL_SLOTS.get(device.type, MOST_SLOTS)
        return max(1, min(people, usual, int(free * _SHARE) // each))
    wanted = min(asked, people)
    if wanted * each > free:
        raise InputError(
            f"bank.slots is {asked}: {wanted} slots take {_size(wanted * each)}, and {_size(free)} are free",
            where=str(device),
            fix=f"At most {max(free // each, 0)} would fit beside the model, and forwards need room too.",
        )
    return max(1, wanted)


def forward_tokens(config: TrainConfig, device: torch.device) -> int:
    """Tokens of one forward, padding included: few on a CPU, whose caches they should fit."""
    return config.bank.batch_tokens or USUAL_TOKENS.get(device.type, MOST_TOKENS)


def check_bank(config: TrainConfig) -> None:
    """Raise where a setting of the bank is out of its range."""
    for name in ("slots", "batch_tokens"):
        value = getattr(config.bank, name)
        if value is not None and value < 1:
            raise InputError(f"bank.{name} is {value}", fix="It must be at least 1.")


def free_memory(device: torch.device) -> int:
    """Bytes that can still be taken on a device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return int(psutil.virtual_memory().available)


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
