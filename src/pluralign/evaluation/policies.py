"""People's policies on the one base: adapters of one shape together, anything else one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import nn

from pluralign.config import ModelConfig, ParametersConfig
from pluralign.errors import InputError
from pluralign.models.adapters import detach_adapter, load_adapter
from pluralign.models.bank import LoraBank
from pluralign.models.base import Base, load_base
from pluralign.models.scoring import RowsOf
from pluralign.storage import read_json

AT_ONCE = 32
"""Adapters in memory at a time."""
_SHAPE = {"r", "lora_alpha", "target_modules"}
_NO_MATTER = {
    "auto_mapping",
    "base_model_name_or_path",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "lora_dropout",
    "peft_version",
    "revision",
    "task_type",
}
"""Settings of an adapter that change nothing of what it computes once it is trained."""


@dataclass(frozen=True)
class Policy:
    """A person's model.

    Attributes:
        model: to score and generate with.
        base_model: opens a context that gives the bare base for as long as it is open.
    """

    model: Any
    base_model: Callable[[], AbstractContextManager[nn.Module]]


@contextmanager
def opened_policy(base: Base, folder: Path) -> Iterator[Policy]:
    """Load what a person owns, for the time of the `with` block; the base is bare again afterwards.

    Args:
        base: with no adapter attached.
        folder: an adapter as PEFT has it, or a whole model (`config.json`) where all weights were trained.

    Raises:
        InputError: the folder is missing, broken, or belongs to another base.
    """
    if not folder.is_dir():
        raise InputError("there is no such folder of an adapter", where=str(folder))
    if (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file():
        dtype = str(base.model.dtype).removeprefix("torch.")
        trained = load_base(ModelConfig(model=str(folder.resolve()), dtype=dtype, device=str(base.device)))  # type: ignore[arg-type]
        yield Policy(trained.model, lambda: _itself(base.model))
        return
    policy = load_adapter(base, folder)
    try:
        yield Policy(policy, lambda: _without_adapter(policy))
    finally:
        detach_adapter(policy)


@dataclass(frozen=True)
class Policies:
    """Some people's models, which run in the same batches.

    Attributes:
        model: to score and generate with, inside `rows_of`.
        rows_of: makes the context in which a batch's rows are those of the given people, by number.
        base_model: opens a context that gives the bare base for as long as it is open.
    """

    model: Any
    rows_of: RowsOf
    base_model: Callable[[], AbstractContextManager[nn.Module]]


@contextmanager
def opened_policies(base: Base, folders: Sequence[Path]) -> Iterator[tuple[Policies, dict[int, str]]]:
    """Load what some people own, for the time of the `with` block; the base is bare again afterwards.

    Args:
        base: with no adapter attached.
        folders: one of any kind, or several adapters of one shape; see `of_one_shape`.

    Yields:
        The policies, and by number why those that could not be loaded were not.
    """
    failed: dict[int, str] = {}
    if len(folders) == 1:
        with ExitStack() as stack:
            one = Policy(base.model, lambda: _itself(base.model))
            try:
                one = stack.enter_context(opened_policy(base, folders[0]))
            except InputError as error:
                failed[0] = str(error)
            yield Policies(one.model, lambda _: nullcontext(), one.base_model), failed
        return
    bank = LoraBank(base, _parameters(folders[0]), len(folders))
    try:
        for slot, folder in enumerate(folders):
            try:
                bank.load(slot, folder)
            except InputError as error:
                failed[slot] = str(error)
        yield Policies(base.model, lambda people: bank.rows(torch.tensor(people)), lambda: _itself(base.model)), failed
    finally:
        bank.detach()


def bare(base: Base) -> Policies:
    """The base alone, as if it were a person's policy."""
    return Policies(base.model, lambda _: nullcontext(), lambda: _itself(base.model))


def of_one_shape(base: Base, folders: Iterable[Path]) -> list[list[Path]]:
    """Folders in groups that `opened_policies` takes."""
    head = base.model.get_output_embeddings()
    names = [name.rpartition(".")[2] for name, module in base.model.named_modules() if module is head]
    alone: list[list[Path]] = []
    shaped: dict[Any, list[Path]] = {}
    for folder in folders:
        shape = _shape(folder)
        if shape is None or any(name in shape[2] for name in names):
            alone.append([folder])
        else:
            shaped.setdefault(shape, []).append(folder)
    cut = [own[start : start + AT_ONCE] for own in shaped.values() for start in range(0, len(own), AT_ONCE)]
    return [*cut, *alone]


def _shape(folder: Path) -> tuple[Any, ...] | None:
    """What adapters of one bank have in common; None for what no bank takes."""
    try:
        config = read_json(folder / "adapter_config.json")
        targets = config["target_modules"]
        if config["peft_type"] != "LORA":
            return None
        # What a bank does not have (DoRA, biases, ranks by layer, ...) stands in a setting that is not as usual.
        usual = LoraConfig().to_dict()
        if any(usual.get(name) != value for name, value in config.items() if name not in _SHAPE | _NO_MATTER):
            return None
        return config["r"], config["lora_alpha"], targets if isinstance(targets, str) else tuple(sorted(targets))
    except (InputError, KeyError, TypeError):
        return None


def _parameters(folder: Path) -> ParametersConfig:
    rank, alpha, targets = _shape(folder) or (0, 0, "")
    return ParametersConfig(rank=rank, alpha=alpha, target_modules=targets if isinstance(targets, str) else [*targets])


@contextmanager
def _itself(model: nn.Module) -> Iterator[nn.Module]:
    yield model


@contextmanager
def _without_adapter(policy: Any) -> Iterator[nn.Module]:
    with policy.disable_adapter():
        yield policy
