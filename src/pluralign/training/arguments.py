"""From the `training` group of a configuration to the Trainer's own arguments."""

from __future__ import annotations

import copy
import difflib
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_args

import torch
from transformers import TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_utils import IntervalStrategy

from pluralign.config import TrainingConfig
from pluralign.errors import InputError

_OURS = {
    "output_dir": "the configuration's own `output_dir` says where results go",
    "seed": "the configuration's own `seed` decides",
    "data_seed": "the configuration's own `seed` decides",
    "use_cpu": "the configuration's own `device` decides",
    "run_name": "trackers see the person's id",
    "remove_unused_columns": "batches carry every column",
    "label_names": "preferences have no labels",
    "save_only_model": "a checkpoint without the optimiser's state could not go on exactly",
    "ignore_data_skip": "a resumed run would see other rows",
    "auto_find_batch_size": "results would depend on the memory that is free",
    "resume_from_checkpoint": "the same command on the same folder resumes",
    "full_determinism": "it turns deterministic kernels on for the whole process: do so around the call",
    "batch_eval_metrics": "held-out rows have metrics of their own",
}
_OURS_BY_PREFIX = {
    "push_to_hub": "nothing is published",
    "hub_": "nothing is published",
    "do_": "a run trains",
    "logging_nan": "a loss that is no number stops the person",
}
_ORDERS = ("random", "sequential")


def training_arguments(training: TrainingConfig, *, output_dir: Path, device: str) -> TrainingArguments:
    """The arguments that all people of a run share.

    Args:
        training: the configuration's group.
        output_dir: where the Trainer may write; replaced for each person.
        device: `auto`, `cpu`, `cuda`, `cuda:1`.

    Raises:
        InputError: an unknown or contradictory argument, or a value that the Trainer refuses.
    """
    _check_ranges(training)
    values = asdict(training)
    extra = values.pop("extra_arguments")
    _check_extra(extra, taken=set(values) | {"extra_arguments"})
    values.pop("early_stopping_patience")
    names = {field.name for field in fields(TrainingArguments)}
    if "activation_checkpointing" in names:
        values["activation_checkpointing"] = values.pop("gradient_checkpointing")
    ours = {
        "output_dir": str(output_dir),
        "use_cpu": device == "cpu" or not _has_accelerator(),
        "remove_unused_columns": False,
        # It would average a NaN away and train on.
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        # Every weight of an adapter is used in every forward: no search for those that are not.
        "ddp_find_unused_parameters": False,
    }
    try:
        arguments = TrainingArguments(**{**values, **ours, **extra})
    except (ValueError, TypeError, RuntimeError, ImportError) as error:
        raise InputError(f"the Trainer refuses the arguments ({error})", where="training") from None
    if arguments.train_sampling_strategy not in _ORDERS:
        raise InputError(
            f"train_sampling_strategy is {arguments.train_sampling_strategy!r}",
            where="training.extra_arguments",
            fix=f"It is one of {', '.join(_ORDERS)}.",
        )
    _check_trackers(arguments)
    _place(arguments, device)
    return arguments


def personal_arguments(
    arguments: TrainingArguments, *, folder: Path, seed: int, user: str, has_held_out: bool
) -> TrainingArguments:
    """A run's arguments for one person: own folder and seed, and no validation where nothing is held out."""
    own = copy.copy(arguments)
    own.output_dir, own.seed, own.data_seed, own.run_name = str(folder), seed, seed, user
    if not has_held_out:
        own.eval_strategy, own.eval_on_start, own.load_best_model_at_end = IntervalStrategy.NO, False, False
    return own


def local_device(arguments: TrainingArguments, device: str) -> str:
    """Where this process loads the base: with several on GPUs, each has its own.

    A model that FSDP is to shard waits in the machine's memory: it may fit no device whole.
    """
    if arguments.fsdp:
        return "cpu"
    if arguments.world_size > 1 and arguments.device.type == "cuda":
        return f"cuda:{arguments.local_process_index}"
    return device


def _has_accelerator() -> bool:
    return bool(torch.accelerator.is_available())


def _place(arguments: TrainingArguments, device: str) -> None:
    """Let the Trainer use the one device that was asked for; by itself it takes the first GPU, or all of them."""
    default = arguments.device
    if arguments.world_size == 1 and default.type == "cuda":
        asked = torch.device(device if device != "auto" else "cuda")
        chosen = torch.device("cuda", asked.index or 0)
        torch.cuda.set_device(chosen)
        arguments.__dict__["_setup_devices"] = chosen
        # More than one would wrap the model in DataParallel, which cannot split our batches.
        arguments._n_gpu = 1


def _check_ranges(training: TrainingConfig) -> None:
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
        if getattr(training, name) < 1:
            raise InputError(f"training.{name} is {getattr(training, name)}", fix="It must be at least 1.")
    if training.max_steps <= 0 and not training.num_train_epochs > 0:
        raise InputError(
            f"training.num_train_epochs is {training.num_train_epochs} and max_steps {training.max_steps}",
            fix="One of them must be greater than 0.",
        )
    if not training.learning_rate > 0:
        raise InputError(f"training.learning_rate is {training.learning_rate}", fix="It must be greater than 0.")
    patience = training.early_stopping_patience
    if patience is not None and patience < 1:
        raise InputError(f"training.early_stopping_patience is {patience}", fix="It must be at least 1.")
    if patience is not None and training.eval_strategy == "no":
        raise InputError(
            "training.early_stopping_patience is set and eval_strategy is 'no'", fix="Choose when to validate."
        )


def _check_trackers(arguments: TrainingArguments) -> None:
    """Raise now, and not when the first person's Trainer is made, where a tracker is unknown or not installed."""
    try:
        for tracker in get_reporting_integration_callbacks(arguments.report_to):
            tracker()
    except (ValueError, RuntimeError, ImportError) as error:
        raise InputError(
            f"{arguments.report_to} cannot be reported to ({error})",
            where="training.report_to",
            fix="Install the tracker, or set report_to to none.",
        ) from None


def _check_extra(extra: dict[str, Any], *, taken: set[str]) -> None:
    names = {field.name: field.type for field in fields(TrainingArguments)}
    for name, value in extra.items():
        where = f"training.extra_arguments, {name!r}"
        reason = _OURS.get(name) or next(
            (why for start, why in _OURS_BY_PREFIX.items() if name.startswith(start)), None
        )
        if name in taken or name == "activation_checkpointing":
            own = "gradient_checkpointing" if name == "activation_checkpointing" else name
            raise InputError("it has a key of its own", where=where, fix=f"Set training.{own}.")
        if reason:
            raise InputError(f"it cannot be set: {reason}", where=where)
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise InputError("TrainingArguments has no such field", where=where, fix=f"See its documentation.{hint}")
        if isinstance(value, str) and _is_switch(names[name]):
            # It would be taken for true, whatever it says.
            raise InputError(f"it is the text {value!r}", where=where, fix="It must be true or false.")


def _is_switch(kind: Any) -> bool:
    """Whether a field holds true or false, or nothing, and no text."""
    kinds = {kind, *get_args(kind)}
    return bool in kinds and str not in kinds
