"""The state that model and process are in while adapters train."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import Any

from torch import nn


def recompute_activations(model: Any, *, on: bool) -> None:
    """Turn gradient checkpointing on (not reentrant) or off."""
    # Its name changes between releases of transformers.
    new, old = ("activation_checkpointing", "gradient_checkpointing")
    name = new if hasattr(model, f"{new}_enable") else old
    if on:
        getattr(model, f"{name}_enable")(**{f"{name}_kwargs": {"use_reentrant": False}})
    else:
        getattr(model, f"{name}_disable")()


@contextlib.contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """The base without dropout of its own while its adapters train: the first step compares equals.

    The adapters' own dropout is `parameters.dropout`.
    """
    kept: list[tuple[nn.Module, str, float]] = []
    for module in model.modules():
        names = ["p"] if isinstance(module, nn.Dropout) else [name for name in vars(module) if "dropout" in name]
        values = [(module, name, getattr(module, name)) for name in names]
        kept += [(owner, name, value) for owner, name, value in values if isinstance(value, float) and value]
    for owner, name, _ in kept:
        setattr(owner, name, 0.0)
    try:
        yield
    finally:
        for owner, name, value in kept:
            setattr(owner, name, value)


@contextlib.contextmanager
def quick_collection() -> Iterator[None]:
    """Garbage collection that looks at new objects only.

    Accelerate collects for every person, and among all that is loaded by now that takes longer than a short training.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
