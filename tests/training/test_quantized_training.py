"""People trained on a quantized base, together and one after another."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pluralign.config import ModelConfig
from pluralign.errors import InputError
from pluralign.models.base import Base, load_base
from pluralign.training import train, worker


def test_together_equals_one_after_another(
    quantize: Callable[..., None], make_rows: Any, make_config: Any, weights: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def quantized(config: ModelConfig) -> Base:
        base = load_base(config)
        quantize(base.model)
        return base

    monkeypatch.setattr(worker, "load_base", quantized)
    table = make_rows(["a", "b", "c"])
    runs = {name: train(make_config(table, name, engine=name)) for name in ("bank", "trainer")}
    monkeypatch.undo()
    plain = train(make_config(table, "plain"))
    for user, folder in runs["bank"].adapters.items():
        torch.testing.assert_close(weights(folder), weights(runs["trainer"].adapters[user]), rtol=1e-4, atol=1e-6)
        assert json.loads((Path(folder) / "pluralign.json").read_text())["quantization"] == "4bit"
        with pytest.raises(AssertionError):
            torch.testing.assert_close(weights(folder), weights(plain.adapters[user]), rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameters": {"kind": "full", "per": "none"}}, "quantization is 4bit and parameters.kind is full"),
        ({}, "needs a GPU"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    changes: dict[str, Any], message: str, make_rows: Any, make_config: Any
) -> None:
    config = make_config(make_rows(["a"], pairs=4), quantization="4bit", device="cpu", **changes)
    with pytest.raises(InputError, match=message):
        train(config)
    assert not Path(config.output_dir).exists()
