"""Tiny models and adapters in folders, to be given as references."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pluralign.config import ParametersConfig
from pluralign.models.adapters import detach_adapter, new_adapter, save_adapter
from pluralign.models.base import Base


@pytest.fixture
def other_tokenizer() -> Any:
    """Bytes in another order, some pairs of them as one token, and an end of its own."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=True)
    vocabulary = {letter: number for number, letter in enumerate(["<end>", *letters, "er", "es", "Ov"])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[("e", "r"), ("e", "s"), ("O", "v")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")


@pytest.fixture
def save_model(make_base: Callable[..., Base]) -> Callable[..., Path]:
    """A function that makes the folder of a tiny model, with the tokenizer it is given or the bytes'."""

    def save(folder: Path, seed: int = 1, tokenizer: Any = None, **changes: Any) -> Path:
        base = make_base(seed, vocab_size=300, **changes)
        base.model.save_pretrained(folder)
        (tokenizer or base.tokenizer).save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def save_one(tiny_base: Base) -> Callable[..., Path]:
    """A function that makes the folder of an adapter of the tiny base that changes something."""

    def save(folder: Path, seed: int = 0, base: Base = tiny_base, **parameters: Any) -> Path:
        policy = new_adapter(base, ParametersConfig(rank=3, alpha=5, **parameters), seed=seed)
        draw = torch.Generator().manual_seed(seed)
        for weight in policy.parameters():
            if weight.requires_grad:
                weight.data.add_(torch.randn(weight.shape, generator=draw), alpha=0.1)
        save_adapter(policy, folder, base=base, user="a")
        detach_adapter(policy)
        return folder

    return save
