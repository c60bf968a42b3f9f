"""One policy at a time on the one base: an adapter attached, or fully trained weights beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from pluralign.config import ModelConfig
from pluralign.errors import InputError
from pluralign.models.adapters import detach_adapter, load_adapter
from pluralign.models.base import Base, load_base


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


@contextmanager
def _itself(model: nn.Module) -> Iterator[nn.Module]:
    yield model


@contextmanager
def _without_adapter(policy: Any) -> Iterator[nn.Module]:
    with policy.disable_adapter():
        yield policy
