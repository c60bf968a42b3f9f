from __future__ import annotations

import json
import socket
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config

from pluralign.config import ParametersConfig
from pluralign.errors import InputError
from pluralign.models.adapters import (
    adapter_digest,
    adapter_parameters,
    check_adapter,
    detach_adapter,
    load_adapter,
    new_adapter,
    save_adapter,
)
from pluralign.models.base import Base, base_of

IDS = torch.arange(1, 30)[None]
HOSTILE = [
    "../..",
    "/etc/passwd",
    ".",
    "..",
    "a/b",
    "Ann.Lee",
    "ann",
    "ANN",
    "😀",
    "CON",
    "a" * 10_000,
    "\x00",
    " ",
    "..\\..",
    "~",
]


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(input_ids=IDS).logits.clone()


def train_a_little(policy: Any, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


def weights(policy: Any) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in policy.named_parameters() if "lora" in name}


def test_a_fresh_adapter_changes_nothing_and_is_all_that_trains(tiny_base: Base) -> None:
    before = logits(tiny_base.model)
    policy = new_adapter(tiny_base, ParametersConfig(rank=4), seed=0)
    assert torch.equal(logits(policy), before)
    assert all(parameter.requires_grad == ("lora" in name) for name, parameter in policy.named_parameters())
    assert {name.split(".")[-4] for name in weights(policy)} >= {"q_proj", "o_proj", "up_proj", "down_proj"}
    assert not any("lm_head" in name for name in weights(policy))
    assert policy.peft_config["default"].base_model_name_or_path == "tiny"


def test_initial_weights_depend_on_the_seed_alone(make_base: Callable[..., Base]) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = weights(new_adapter(make_base(), ParametersConfig(), seed=5))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again = weights(new_adapter(make_base(seed=1), ParametersConfig(), seed=5))
    other = weights(new_adapter(make_base(), ParametersConfig(), seed=6))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if "lora_A" in name)


def test_detaching_gives_the_bare_base_back_as_it_was(tiny_base: Base) -> None:
    before = {name: value.clone() for name, value in tiny_base.model.state_dict().items()}
    modules = [name for name, _ in tiny_base.model.named_modules()]
    values = logits(tiny_base.model)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=UserWarning)
        for turn in range(3):
            policy = new_adapter(tiny_base, ParametersConfig(dropout=0.1), seed=turn).train()
            train_a_little(policy)
            assert not torch.equal(logits(policy), values)
            assert detach_adapter(policy) is tiny_base.model
    assert torch.equal(logits(tiny_base.model), values)
    assert [name for name, _ in tiny_base.model.named_modules()] == modules
    after = tiny_base.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(module.training for module in tiny_base.model.modules())
    assert not any(parameter.requires_grad for parameter in tiny_base.model.parameters())
    assert not hasattr(tiny_base.model, "peft_config")


def test_two_adapters_at_once_are_refused(tiny_base: Base, tmp_path: Path) -> None:
    policy = new_adapter(tiny_base, ParametersConfig(), seed=0)
    save_adapter(policy, tmp_path / "a", base=tiny_base, user="a")
    with pytest.raises(RuntimeError, match="detach"):
        new_adapter(tiny_base, ParametersConfig(), seed=1)
    with pytest.raises(RuntimeError, match="detach"):
        load_adapter(tiny_base, tmp_path / "a")


def test_saved_and_loaded_it_is_the_same_policy(tiny_base: Base, tmp_path: Path) -> None:
    policy = new_adapter(tiny_base, ParametersConfig(rank=3, alpha=7.0), seed=0)
    train_a_little(policy)
    values = logits(policy.eval())
    save_adapter(policy, tmp_path / "a", base=tiny_base, user="Ann Lee")
    detach_adapter(policy)
    assert {path.name for path in (tmp_path / "a").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "pluralign.json",
    }
    info = json.loads((tmp_path / "a" / "pluralign.json").read_text())
    assert info.keys() == {"schema_version", "user", "base", "base_fingerprint", "versions"}
    assert (info["user"], info["base"], info["base_fingerprint"]) == ("Ann Lee", "tiny", tiny_base.fingerprint)
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    loaded = load_adapter(tiny_base, tmp_path / "a")
    assert torch.equal(logits(loaded), values)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_plain_peft_reads_the_folder(tiny_base: Base, tmp_path: Path) -> None:
    tiny_base.model.save_pretrained(tmp_path / "base")
    policy = new_adapter(tiny_base, ParametersConfig(), seed=0)
    train_a_little(policy)
    values = logits(policy.eval())
    save_adapter(policy, tmp_path / "a", base=tiny_base, user="a")
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "a")
    assert torch.allclose(logits(theirs), values, atol=1e-6)
    merged = theirs.merge_and_unload()
    assert torch.allclose(logits(merged), values, atol=1e-5)


def test_a_new_save_replaces_the_old_whole(tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = new_adapter(tiny_base, ParametersConfig(), seed=0)
    save_adapter(policy, tmp_path / "a", base=tiny_base, user="a")
    first = load_file(tmp_path / "a" / "adapter_model.safetensors")
    train_a_little(policy)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pluralign.models.adapters.json_bytes", full)
        with pytest.raises(OSError, match="No space"):
            save_adapter(policy, tmp_path / "a", base=tiny_base, user="a")
    kept = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert all(torch.equal(first[name], kept[name]) for name in first)
    save_adapter(policy, tmp_path / "a", base=tiny_base, user="a")
    changed = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert not any(torch.equal(first[name], changed[name]) for name in first)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_nothing_asks_the_network(tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def refuse(*arguments: Any, **_: Any) -> None:
        asked.append(arguments)
        raise OSError("no network here")

    # As with a hub model and the hub switched on: PEFT would ask it whether the vocabulary was resized.
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    tiny_base.name = tiny_base.model.name_or_path = tiny_base.model.config._name_or_path = "someone/some-model"
    policy = new_adapter(tiny_base, ParametersConfig(), seed=0)
    save_adapter(policy, tmp_path / "a", base=tiny_base, user="a")
    detach_adapter(policy)
    detach_adapter(load_adapter(tiny_base, tmp_path / "a"))
    # PEFT swallows the error and goes on: what counts is that nothing was asked.
    assert not asked


def test_an_adapter_of_another_base_is_refused(make_base: Callable[..., Base], tmp_path: Path) -> None:
    base, other = make_base(), make_base(seed=1)
    policy = new_adapter(base, ParametersConfig(), seed=0)
    save_adapter(policy, tmp_path / "a", base=base, user="a")
    with pytest.raises(
        InputError, match=f"a: the adapter belongs to the base 'tiny' .{base.fingerprint[:12]}.*trained on"
    ):
        load_adapter(other, tmp_path / "a")
    before = logits(make_base(seed=1).model)
    assert torch.equal(logits(other.model), before)


def test_a_peft_folder_of_other_origin_is_taken_with_a_warning_if_it_fits(
    make_base: Callable[..., Base], tmp_path: Path
) -> None:
    base = make_base()
    policy = new_adapter(base, ParametersConfig(target_modules=["q_proj", "up_proj"]), seed=0)
    policy.save_pretrained(tmp_path / "a", save_embedding_layers=False)
    detach_adapter(policy)
    with pytest.warns(UserWarning, match=r"has no pluralign\.json"):
        load_adapter(base, tmp_path / "a")
    # Other widths, more layers, fewer layers, other names.
    gpt2 = AutoModelForCausalLM.from_config(
        GPT2Config(vocab_size=264, n_embd=32, n_layer=1, n_head=4, bos_token_id=None, eos_token_id=256)
    )
    for other in (
        make_base(hidden_size=64),
        make_base(num_hidden_layers=3),
        make_base(num_hidden_layers=1),
        base_of(gpt2, base.tokenizer),
    ):
        modules, values = list(other.model.named_modules()), logits(other.model)
        with pytest.warns(UserWarning, match="has no"), pytest.raises(InputError, match=r"a: .* does not fit the base"):
            load_adapter(other, tmp_path / "a")
        assert list(other.model.named_modules()) == modules
        assert torch.equal(logits(other.model), values)
        new_adapter(other, ParametersConfig(), seed=0)


def test_what_is_no_adapter_is_named(tiny_base: Base, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no adapter_config\.json"):
        load_adapter(tiny_base, tmp_path / "absent")
    policy = new_adapter(tiny_base, ParametersConfig(), seed=0)
    save_adapter(policy, tmp_path / "a", base=tiny_base, user="a")
    detach_adapter(policy)
    weights_file = tmp_path / "a" / "adapter_model.safetensors"
    content = weights_file.read_bytes()
    weights_file.write_bytes(content[:100])
    with pytest.raises(InputError, match="a: "):
        load_adapter(tiny_base, tmp_path / "a")
    weights_file.unlink()
    torch.save({"pickled": torch.zeros(1)}, tmp_path / "a" / "adapter_model.bin")
    with pytest.raises(InputError, match=r"no adapter_model\.safetensors"):
        load_adapter(tiny_base, tmp_path / "a")
    weights_file.write_bytes(content)
    (tmp_path / "a" / "pluralign.json").write_text('{"schema_version": 99}')
    with pytest.raises(InputError, match="schema_version is 99"):
        load_adapter(tiny_base, tmp_path / "a")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_modules": ["q_proj", "query"]}, "names 'query', .*There are: .*gate_proj.*q_proj"),
        ({"target_modules": "query"}, "names 'query'"),
        ({"target_modules": "*("}, "names '\\*\\('"),
        ({"target_modules": []}, "names nothing"),
        ({"target_modules": ["norm"]}, "names 'norm'"),
        ({"rank": 0}, "parameters.rank is 0"),
        ({"dropout": 1.0}, "parameters.dropout is 1.0"),
    ],
)
def test_parameters_that_cannot_be_are_named(tiny_base: Base, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        new_adapter(tiny_base, ParametersConfig(**changes), seed=0)
    new_adapter(tiny_base, ParametersConfig(), seed=0)


def test_target_modules_by_name_pattern_and_in_conv1d(tiny_base: Base, byte_tokenizer: Any) -> None:
    policy = new_adapter(tiny_base, ParametersConfig(target_modules=["q_proj", "layers.1.mlp.up_proj"]), seed=0)
    assert len(weights(policy)) == 2 * 3
    detach_adapter(policy)
    policy = new_adapter(tiny_base, ParametersConfig(target_modules=r".*layers\.0\..*_proj"), seed=0)
    assert len(weights(policy)) == 2 * 7
    gpt2 = base_of(
        AutoModelForCausalLM.from_config(
            GPT2Config(vocab_size=264, n_embd=32, n_layer=1, n_head=4, bos_token_id=None, eos_token_id=256)
        ),
        byte_tokenizer,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=UserWarning)
        policy = new_adapter(gpt2, ParametersConfig(), seed=0)
    assert len(weights(policy)) == 2 * 4


def test_adapters_on_a_half_precision_base_train_in_float32(make_base: Callable[..., Base]) -> None:
    reference = weights(new_adapter(make_base(), ParametersConfig(), seed=3))
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        found = weights(new_adapter(make_base(dtype=dtype), ParametersConfig(), seed=3))
        assert {value.dtype for value in found.values()} == {expected}
        assert all(torch.allclose(found[name].float(), reference[name], atol=1e-2) for name in reference)


# ---- beginning with given weights ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_begun_with_an_adapter_it_is_that_adapter_and_trains(
    dtype: torch.dtype, make_base: Callable[..., Base], tmp_path: Path
) -> None:
    base = make_base(dtype=dtype)
    bare = logits(base.model)
    policy = new_adapter(base, ParametersConfig(rank=3, alpha=7.0, dropout=0.3, target_modules=["q_proj"]), seed=0)
    train_a_little(policy)
    save_adapter(policy, tmp_path / "a", base=base, user="a")
    detach_adapter(policy)
    loaded = load_adapter(base, tmp_path / "a")
    values, kept = logits(loaded), weights(loaded)
    detach_adapter(loaded)
    # What the parameters say of a fresh adapter does not matter.
    policy = new_adapter(base, ParametersConfig(rank=9, target_modules=["up_proj"]), seed=1, start=tmp_path / "a")
    assert torch.equal(logits(policy), values)
    assert not torch.equal(values, bare)
    found = weights(policy)
    assert found.keys() == kept.keys()
    assert all(torch.equal(found[name], kept[name]) and found[name].dtype == torch.float32 for name in kept)
    assert all(parameter.requires_grad == ("lora" in name) for name, parameter in policy.named_parameters())
    policy.train()
    policy(input_ids=IDS).logits.float().logsumexp(-1).sum().backward()
    assert all(weight.grad is not None for name, weight in policy.named_parameters() if "lora" in name)
    assert not torch.equal(logits(policy), logits(policy))  # its dropout is the given one's
    save_adapter(policy, tmp_path / "b", base=base, user="b")
    detach_adapter(policy)
    assert torch.equal(logits(base.model), bare)
    config = json.loads((tmp_path / "b" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (3, 7.0, 0.3)
    assert (config["base_model_name_or_path"], config["inference_mode"]) == ("tiny", True)
    again = load_file(tmp_path / "b" / "adapter_model.safetensors")
    first = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert all(torch.equal(again[name], first[name]) for name in first)


def test_parameters_of_a_saved_adapter(tiny_base: Base, tmp_path: Path) -> None:
    given = ParametersConfig(rank=3, alpha=7.0, dropout=0.3, target_modules=["v_proj", "q_proj"], start="a")
    policy = new_adapter(tiny_base, given, seed=0)
    save_adapter(policy, tmp_path / "a", base=tiny_base, user="a")
    config = policy.peft_config["default"]
    found = adapter_parameters(tmp_path / "a", ParametersConfig(per="group", start="a"))
    assert found == ParametersConfig(
        per="group", rank=3, alpha=7.0, dropout=0.3, target_modules=["q_proj", "v_proj"], start="a"
    )
    first = adapter_digest(tmp_path / "a")
    check_adapter(tiny_base, tmp_path / "a", config)
    config.r = 4
    with pytest.raises(InputError, match="a: the adapter has r 3, and the others 4"):
        check_adapter(tiny_base, tmp_path / "a", config)
    save_adapter(policy, tmp_path / "a", base=tiny_base, user="somebody else")
    assert adapter_digest(tmp_path / "a") != first  # its rank
    config.r = 3
    save_adapter(policy, tmp_path / "b", base=tiny_base, user="somebody else")
    assert adapter_digest(tmp_path / "b") == first
    (tmp_path / "b" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": []}')
    for use in (adapter_digest, lambda folder: adapter_parameters(folder, ParametersConfig())):
        with pytest.raises(InputError, match=r"no adapter_config\.json"):
            use(tmp_path)
