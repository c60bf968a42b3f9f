"""A base whose linear layers are quantized: what is asked for, what is refused, and what its adapters compute."""

from __future__ import annotations

import filecmp
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from pluralign.config import ModelConfig, ParametersConfig
from pluralign.errors import InputError
from pluralign.models import base as base_module
from pluralign.models.adapters import detach_adapter, load_adapter, new_adapter, save_adapter
from pluralign.models.bank import NONE, LoraBank
from pluralign.models.base import Base, load_base
from pluralign.models.cache import Cache
from pluralign.models.encoding import Encoded
from pluralign.models.references import reference_logps

PARAMETERS = ParametersConfig(rank=3, alpha=5)


@pytest.fixture
def make_quantized(make_base: Callable[..., Base], quantize: Callable[..., None]) -> Callable[..., Base]:
    def make(compute_dtype: torch.dtype | None = torch.float32) -> Base:
        base = make_base()
        quantize(base.model, compute_dtype)
        return base

    return make


def filled(base: Base, parameters: ParametersConfig) -> LoraBank:
    """A bank of two adapters that differ, and change something."""
    bank = LoraBank(base, parameters, 2, trainable=True)
    draw = torch.Generator().manual_seed(0)
    for slot in range(2):
        bank.admit(slot, seed=slot)
        bank.matrix[slot] += 0.05 * torch.randn(bank.matrix.shape[1], generator=draw)
    return bank


IDS = torch.randint(5, 250, (4, 9), generator=torch.Generator().manual_seed(1))
SLOTS = torch.tensor([1, NONE, 0, 1])


@pytest.mark.parametrize("targets", ["all-linear", ["down_proj"]])
def test_rows_equal_peft(targets: str | list[str], make_quantized: Callable[..., Base], tmp_path: Path) -> None:
    """Values and gradients of every row's own adapter, and the bare base where a row has none."""
    base = make_quantized()
    plain = base.model(input_ids=IDS).logits
    bank = filled(base, replace(PARAMETERS, target_modules=targets))
    for slot in range(2):
        bank.save(slot, tmp_path / str(slot), user=str(slot))
    with bank.rows(SLOTS):
        logits = base.model(input_ids=IDS).logits
        logits.logsumexp(-1).sum().backward()
    bank.detach()
    assert torch.equal(logits[1], plain[1])
    for slot in range(2):
        own = slot == SLOTS
        policy = load_adapter(base, tmp_path / str(slot))
        factors = {name: value.requires_grad_(True) for name, value in policy.named_parameters() if "lora" in name}
        expected = policy(input_ids=IDS[own]).logits
        expected.logsumexp(-1).sum().backward()
        assert (logits[own] - expected).norm() <= 2e-5 * expected.norm() < (expected - plain[own]).norm()
        for layer in bank.layers:
            for factor, grad in (("A", layer.grad_down[slot]), ("B", layer.grad_up[slot].T)):
                wanted = factors[f"base_model.model.{layer.name}.lora_{factor}.default.weight"].grad
                assert wanted is not None and (grad - wanted).norm() <= 2e-5 * wanted.norm()
        detach_adapter(policy)


def test_dropout_gradients(make_quantized: Callable[..., Base]) -> None:
    """The backward pass drops what the forward dropped: against finite differences."""
    base = make_quantized()
    bank = filled(base, replace(PARAMETERS, dropout=0.3))
    direction = torch.randn(bank.matrix.shape[1], generator=torch.Generator().manual_seed(2))

    def value(step: float) -> Tensor:
        kept = bank.matrix[1].clone()
        bank.matrix[1] += step * direction
        with bank.rows(SLOTS, keys=torch.arange(4)):
            result = base.model(input_ids=IDS).logits.double().logsumexp(-1).sum()
            if step == 0:
                result.backward()
        bank.matrix[1] = kept
        return result.detach()

    value(0)
    assert bank.grads is not None
    slope = (value(1e-3) - value(-1e-3)) / 2e-3
    assert (bank.grads[1] @ direction).item() == pytest.approx(slope.item(), rel=1e-2)


@pytest.mark.parametrize("compute", [torch.bfloat16, torch.float32, None])
def test_initial_values_are_pefts_to_the_byte(
    compute: torch.dtype | None, make_quantized: Callable[..., Base], tmp_path: Path
) -> None:
    """PEFT rounds them to what a layer computes in, whatever the rest of the base is in."""
    base = make_quantized(compute)
    policy = new_adapter(base, PARAMETERS, seed=7)
    save_adapter(policy, tmp_path / "peft", base=base, user="a")
    detach_adapter(policy)
    bank = LoraBank(base, PARAMETERS, 1)
    bank.admit(0, seed=7)
    bank.save(0, tmp_path / "bank", user="a")
    names = sorted(path.name for path in (tmp_path / "peft").iterdir())
    assert filecmp.cmpfiles(tmp_path / "peft", tmp_path / "bank", names, shallow=False)[0] == names


def test_an_adapter_says_what_it_was_trained_on_and_loads_on_either(
    make_quantized: Callable[..., Base], make_base: Callable[..., Base], tmp_path: Path
) -> None:
    quantized, plain = make_quantized(), make_base()
    # As of a folder: the weights on disk are the same.
    quantized.fingerprint = plain.fingerprint
    for base, other, said in ((quantized, plain, "4bit"), (plain, quantized, None)):
        policy = new_adapter(base, PARAMETERS, seed=0)
        save_adapter(policy, tmp_path / "a", base=base, user="a")
        detach_adapter(policy)
        assert json.loads((tmp_path / "a" / "pluralign.json").read_text()).get("quantization") == said
        detach_adapter(load_adapter(other, tmp_path / "a"))


def test_references_have_a_cache_of_their_own(
    make_quantized: Callable[..., Base],
    make_base: Callable[..., Base],
    count_forwards: Callable[[Any], list[int]],
    tmp_path: Path,
) -> None:
    quantized, plain = make_quantized(), make_base()
    quantized.fingerprint = plain.fingerprint
    encoded = [Encoded([1, 2, 3], {"chosen": [4, 5], "rejected": [6]})]
    found = {
        base.quantization: reference_logps(base, encoded, Cache(tmp_path), layout="shared")
        for base in (plain, quantized)
    }
    assert found["none"] != found["4bit"]
    forwards = [count_forwards(base.model) for base in (plain, quantized)]
    for base in (plain, quantized):
        assert reference_logps(base, encoded, Cache(tmp_path), layout="shared") == found[base.quantization]
    assert forwards == [[], []]
    facts = [json.loads(path.read_text()) for path in tmp_path.glob("reference_logps/*/facts.json")]
    assert sorted(one.get("quantization", "") for one in facts) == ["", "4bit"]


# ---- asked for ----


def test_what_is_missing_is_said_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"quantization is 4bit, and the base would be on cpu.* needs a GPU"):
        load_base(ModelConfig(quantization="4bit", device="cpu"))
    gpu = torch.device("cuda")
    monkeypatch.setattr(base_module, "find_device", lambda name: gpu)
    monkeypatch.setattr(base_module, "is_bitsandbytes_available", lambda: False)
    with pytest.raises(InputError, match=r"pip install 'pluralign\[quantized\]'"):
        load_base(ModelConfig(quantization="4bit"))
    with pytest.raises(InputError, match="dtype is float64"):
        load_base(ModelConfig(quantization="4bit", dtype="float64"))


def test_transformers_is_asked_for_what_qlora_trains_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    plain = AutoModelForCausalLM.from_pretrained

    def record(*args: Any, quantization_config: Any = None, **keywords: Any) -> Any:
        asked.append(quantization_config)
        return plain(*args, **keywords)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", record)
    monkeypatch.setattr(base_module, "_check_quantization", lambda config, device: None)
    load_base(ModelConfig(device="cpu"))
    load_base(ModelConfig(device="cpu", quantization="4bit"))
    none, four = asked
    assert none is None and four.load_in_4bit and not four.load_in_8bit
    assert (four.bnb_4bit_quant_type, four.bnb_4bit_use_double_quant) == ("nf4", True)
    assert four.bnb_4bit_compute_dtype is torch.bfloat16
