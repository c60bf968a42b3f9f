"""The bank computes what PEFT computes, row by row, and a row reaches no slot but its own."""

from __future__ import annotations

import filecmp
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, GPT2Config

from pluralign.config import ParametersConfig
from pluralign.errors import InputError
from pluralign.models.adapters import adapter_parameters, detach_adapter, load_adapter, new_adapter, save_adapter
from pluralign.models.bank import NONE, LoraBank
from pluralign.models.base import Base, base_of
from pluralign.models.dropout import keep_scale
from pluralign.training.conditions import recompute_activations

PARAMETERS = ParametersConfig(rank=3, alpha=5)


def filled(base: Base, slots: int, parameters: ParametersConfig = PARAMETERS) -> LoraBank:
    """A bank of adapters that differ, and change something."""
    bank = LoraBank(base, parameters, slots, trainable=True)
    draw = torch.Generator().manual_seed(0)
    for slot in range(slots):
        bank.admit(slot, seed=slot)
        bank.matrix[slot] += 0.05 * torch.randn(bank.matrix.shape[1], generator=draw, dtype=bank.matrix.dtype)
    return bank


def tokens(rows: int, width: int = 9) -> torch.Tensor:
    return torch.randint(5, 250, (rows, width), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def gpt2(byte_tokenizer: Any) -> Base:
    return make_gpt2(byte_tokenizer)


def make_gpt2(byte_tokenizer: Any, dtype: torch.dtype = torch.float32) -> Base:
    config = GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=264, n_positions=64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return base_of(AutoModelForCausalLM.from_config(config, dtype=dtype), byte_tokenizer, name="tiny-gpt2")


@pytest.mark.parametrize("kind", ["llama", "gpt2", "llama float64", "llama bfloat16", "llama checkpointed"])
def test_rows_equal_peft(kind: str, request: Any, make_base: Callable[..., Base], tmp_path: Path) -> None:
    """Values and gradients of every row's own adapter, and the bare base where a row has none."""
    name, _, how = kind.partition(" ")
    dtype = getattr(torch, how, torch.float32)
    base = request.getfixturevalue("gpt2") if name == "gpt2" else make_base(dtype=dtype)
    ids, slots = tokens(5), torch.tensor([2, 0, NONE, 1, 0])
    plain = base.model(input_ids=ids).logits
    bank = filled(base, 3)
    for slot in range(3):
        bank.save(slot, tmp_path / str(slot), user=str(slot))
    if how == "checkpointed":
        recompute_activations(base.model, on=True)
        base.model.train()
    with bank.rows(slots):
        logits = base.model(input_ids=ids).logits
        logits.logsumexp(-1).sum().backward()
    bank.detach()
    base.model.eval()
    bound = {"float64": 1e-11, "bfloat16": 0.15}.get(how, 2e-5)
    assert torch.equal(logits[2], plain[2])
    for slot in range(3):
        policy = load_adapter(base, tmp_path / str(slot))
        factors = {name: value for name, value in policy.named_parameters() if "lora" in name}
        for value in factors.values():
            value.requires_grad_(True)
        own = slots == slot
        expected = policy(input_ids=ids[own]).logits
        assert (expected - plain[own]).norm() > 1.5 * bound * expected.norm()
        assert (logits[own] - expected).norm() <= bound * expected.norm()
        expected.logsumexp(-1).sum().backward()
        for layer in bank.layers:
            for factor, grad in (("A", layer.grad_down[slot]), ("B", layer.grad_up[slot].T)):
                wanted = factors[f"base_model.model.{layer.name}.lora_{factor}.default.weight"].grad
                assert wanted is not None
                assert (grad - wanted).norm() <= bound * wanted.norm()
        detach_adapter(policy)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"], r".*\.1\..*_proj"])
def test_a_folder_is_pefts_to_the_byte(
    dtype: torch.dtype, targets: str | list[str], make_base: Callable[..., Base], tmp_path: Path
) -> None:
    base = make_base(dtype=dtype)
    parameters = ParametersConfig(rank=4, alpha=8, dropout=0.1, target_modules=targets)
    policy = new_adapter(base, parameters, seed=7)
    save_adapter(policy, tmp_path / "peft", base=base, user="a.b")
    detach_adapter(policy)
    bank = LoraBank(base, parameters, 2)
    bank.admit(1, seed=7)
    bank.save(1, tmp_path / "bank", user="a.b")
    names = sorted(path.name for path in (tmp_path / "peft").iterdir())
    assert filecmp.cmpfiles(tmp_path / "peft", tmp_path / "bank", names, shallow=False)[0] == names
    bank.load(0, tmp_path / "peft")
    assert torch.equal(bank.matrix[0], bank.matrix[1])


def test_nobody_elses_slot_is_touched(tiny_base: Base) -> None:
    """A row full of NaN breaks its own gradient and no other."""
    bank = filled(tiny_base, 3)
    bank.matrix[1] = float("nan")
    with bank.rows(torch.tensor([0, 1, 2])):
        tiny_base.model(input_ids=tokens(3)).logits.sum().backward()
    assert bank.grads is not None
    assert bank.grads[1].isnan().any()
    assert bank.grads[[0, 2]].isfinite().all()
    together = bank.grads[[0, 2]].clone()
    bank.grads.zero_()
    with bank.rows(torch.tensor([0, 2])):
        tiny_base.model(input_ids=tokens(3)[[0, 2]]).logits.sum().backward()
    torch.testing.assert_close(bank.grads[[0, 2]], together, rtol=1e-4, atol=1e-4)
    assert not bank.grads[1].any()


@given(order=st.permutations(range(6)), owners=st.lists(st.integers(-1, 5), min_size=6, max_size=6))
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_order_and_slots_do_not_matter(order: list[int], owners: list[int], make_base: Callable[..., Base]) -> None:
    base, ids = make_base(dtype=torch.float64), tokens(6)
    bank = filled(base, 6)
    with bank.rows(torch.tensor(owners)), torch.no_grad():
        plain = base.model(input_ids=ids).logits
    # Person k in slot order[k], rows turned around.
    moved = torch.empty_like(bank.matrix[:6])
    for person, slot in enumerate(order):
        moved[slot] = bank.matrix[person]
    bank.matrix[:6] = moved
    turned = [NONE if owner == NONE else order[owner] for owner in reversed(owners)]
    with bank.rows(torch.tensor(turned)), torch.no_grad():
        again = base.model(input_ids=ids.flip(0)).logits.flip(0)
    torch.testing.assert_close(again, plain, rtol=1e-10, atol=1e-10)


def test_generation_with_a_row_each(tiny_base: Base) -> None:
    """Decoding step by step with a cache of keys and values, every row by its own adapter."""
    bank = filled(tiny_base, 2)
    ids = tokens(3)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    slots = torch.tensor([1, NONE, 0])
    with bank.rows(slots):
        together = tiny_base.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
    for row, slot in enumerate(slots):
        with bank.rows(slot[None]):
            alone = tiny_base.model.generate(
                input_ids=ids[row : row + 1], attention_mask=torch.ones_like(ids[:1]), **options
            )
        assert torch.equal(together[row], alone[0])
    assert len({tuple(row.tolist()) for row in together}) == 3


def test_the_base_gets_its_layers_back(tiny_base: Base) -> None:
    before = tiny_base.model(input_ids=tokens(2)).logits
    bank = filled(tiny_base, 1)
    with bank.rows(torch.tensor([0, 0])):
        assert not torch.equal(tiny_base.model(input_ids=tokens(2)).logits, before)
    assert torch.equal(tiny_base.model(input_ids=tokens(2)).logits, before)
    bank.detach()
    assert torch.equal(tiny_base.model(input_ids=tokens(2)).logits, before)
    assert not any("forward" in vars(module) for module in tiny_base.model.modules())
    policy = new_adapter(tiny_base, PARAMETERS, seed=0)
    detach_adapter(policy)


def test_a_slot_begins_with_a_given_adapter(tiny_base: Base, tmp_path: Path) -> None:
    """The slot computes what the adapter computes, and trains from there; everybody else is as before."""
    given = ParametersConfig(rank=3, alpha=5.0, dropout=0.2, target_modules=["q_proj", "down_proj"])
    bank = filled(tiny_base, 1, given)
    bank.save(0, tmp_path / "a", user="a")
    bank.detach()
    ids = tokens(2)
    policy = load_adapter(tiny_base, tmp_path / "a")
    expected = policy(input_ids=ids).logits
    detach_adapter(policy)
    parameters = adapter_parameters(tmp_path / "a", ParametersConfig(rank=16))
    bank = LoraBank(tiny_base, parameters, 2, trainable=True)
    assert (bank.rank, bank.scale, bank.dropout) == (3, 5 / 3, 0.2)
    bank.admit(0, seed=0)
    fresh = bank.matrix[0].clone()
    assert bank.grads is not None
    bank.grads.fill_(1.0)
    bank.admit(1, seed=0, start=tmp_path / "a")
    assert torch.equal(bank.matrix[0], fresh)
    assert bank.grads[0].all() and not bank.grads[1].any()
    with bank.rows(torch.tensor([1, 1])):
        logits = tiny_base.model(input_ids=ids).logits
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
        logits.logsumexp(-1).sum().backward()
    assert bank.grads[1].any()
    bank.save(1, tmp_path / "b", user="a")
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert filecmp.cmpfiles(tmp_path / "a", tmp_path / "b", names, shallow=False)[0] == names
    with pytest.raises(InputError, match="has r 3, and the others 16"):
        LoraBank(tiny_base, ParametersConfig(rank=16), 1).admit(0, seed=0, start=tmp_path / "a")


def test_what_a_bank_refuses(tiny_base: Base, make_base: Callable[..., Base], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the head"):
        LoraBank(make_base(tie_word_embeddings=False), ParametersConfig(target_modules=["q_proj", "lm_head"]), 1)
    with pytest.raises(InputError, match=r"There are: .*q_proj"):
        LoraBank(tiny_base, ParametersConfig(target_modules=["query"]), 1)
    bank = filled(tiny_base, 1)
    bank.save(0, tmp_path / "a", user="a")
    with pytest.raises(InputError, match="has r 3, and the others 4"):
        LoraBank(tiny_base, ParametersConfig(rank=4), 1).load(0, tmp_path / "a")
    other = make_base(seed=1)
    with pytest.raises(InputError, match="belongs to the base"):
        LoraBank(other, PARAMETERS, 1).load(0, tmp_path / "a")
    fewer = LoraBank(tiny_base, ParametersConfig(rank=3, alpha=5, target_modules=["q_proj"]), 1)
    with pytest.raises(InputError, match="more layers"):
        fewer.load(0, tmp_path / "a")
    fewer.save(0, tmp_path / "q", user="q")
    with pytest.raises(InputError, match="other factors at"):
        bank.load(0, tmp_path / "q")


# ---- dropout ----


def test_dropout_is_the_rows_own(make_base: Callable[..., Base]) -> None:
    """The same draws in any batch, beside anybody, however wide the padding; others for another key or layer."""
    base = make_base(dtype=torch.float64)
    bank = filled(base, 2, ParametersConfig(rank=3, alpha=5, dropout=0.3))
    ids, keys = tokens(3, 12), torch.tensor([5, 6, 5])
    with bank.rows(torch.tensor([0, 1, 0]), keys=keys), torch.no_grad():
        together = base.model(input_ids=ids).logits
    with bank.rows(torch.tensor([0]), keys=keys[:1]), torch.no_grad():
        alone = base.model(input_ids=ids[:1, :7]).logits
    torch.testing.assert_close(together[:1, :7], alone, rtol=1e-10, atol=1e-10)
    with bank.rows(torch.tensor([0]), keys=keys[1:2]), torch.no_grad():
        assert not torch.allclose(base.model(input_ids=ids[:1]).logits, together[:1])
    with bank.rows(torch.tensor([0])), torch.no_grad():
        assert not torch.allclose(base.model(input_ids=ids[:1]).logits, together[:1])


def test_dropout_gradients(byte_tokenizer: Any) -> None:
    """The backward pass drops what the forward dropped: against finite differences."""
    # A model that computes in float64 throughout; Llama's norms do not.
    base = make_gpt2(byte_tokenizer, torch.float64)
    bank = filled(base, 1, ParametersConfig(rank=2, alpha=4, dropout=0.4))
    ids, rows = tokens(2), torch.tensor([0, 0])
    direction = torch.randn(bank.matrix.shape[1], generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def value(step: float) -> torch.Tensor:
        kept = bank.matrix[0].clone()
        bank.matrix[0] += step * direction
        with bank.rows(rows, keys=torch.tensor([1, 2])):
            result = base.model(input_ids=ids).logits.logsumexp(-1).sum()
            if step == 0:
                result.backward()
        bank.matrix[0] = kept
        return result.detach()

    value(0)
    assert bank.grads is not None
    slope = (value(1e-5) - value(-1e-5)) / 2e-5
    torch.testing.assert_close(bank.grads[0] @ direction, slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("probability", [0.05, 0.5])
def test_dropout_drops_as_often_as_it_says(probability: float) -> None:
    keys = torch.arange(8)
    kept = torch.stack([keep_scale(keys, layer, (50, 64), probability) for layer in range(4)])
    dropped = (kept == 0).float()
    total = dropped.numel()
    assert abs(dropped.mean() - probability) < 4 * (probability * (1 - probability) / total) ** 0.5
    assert kept.unique().tolist() == pytest.approx([0, 1 / (1 - probability)])
    # No row, layer, position or feature repeats another: what two of them share is chance.
    for axis in range(dropped.dim()):
        for one, other in itertools.pairwise(dropped.unbind(axis)):
            share = (one * other).mean()
            assert abs(share - probability**2) < 5 * (probability**2 / one.numel()) ** 0.5
