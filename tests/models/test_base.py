"""Loading a base model: what is found, what is refused, and what it is identified by."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from pluralign.config import ModelConfig
from pluralign.errors import InputError
from pluralign.models import base as base_module
from pluralign.models import fingerprint
from pluralign.models.attention import BLOCKED
from pluralign.models.base import base_of, load_base
from pluralign.models.fingerprint import tokenizer_fingerprint

SIZES: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}


def make_tokenizer(size: int = 20, **special: str) -> Any:
    vocabulary = {token: number for number, token in enumerate(["<s>", "</s>", "<unk>", *map(str, range(size - 3))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def make_model(config: Any = None, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config or LlamaConfig(**SIZES))


def save(folder: Path, model: Any = None, tokenizer: Any = None, **keys: Any) -> Path:
    (model or make_model()).save_pretrained(folder, **keys)
    (tokenizer or make_tokenizer(bos_token="<s>", eos_token="</s>")).save_pretrained(folder)
    return folder


def load(folder: Path | str, **keys: Any) -> Any:
    return load_base(ModelConfig(model=str(folder), **{"device": "cpu", **keys}))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("something asked the network")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_a_local_model_is_loaded_frozen_and_without_the_network(tmp_path: Path, no_network: None) -> None:
    model = make_model()
    base = load(save(tmp_path, model))
    assert not base.model.training and base.device == torch.device("cpu") and base.name == str(tmp_path)
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(base.model.state_dict()[name], tensor)


def test_the_padding_token_falls_back_to_the_end_token_in_memory_only(tmp_path: Path) -> None:
    save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert load(tmp_path).tokenizer.pad_token == "</s>"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with_own = save(tmp_path / "own", tokenizer=make_tokenizer(eos_token="</s>", pad_token="<s>"))
    assert load(with_own).tokenizer.pad_token == "<s>"


@pytest.mark.parametrize("shards", [False, True])
def test_the_fingerprint_is_of_the_content_not_of_how_it_is_loaded(tmp_path: Path, shards: bool) -> None:
    keys = {"max_shard_size": "3KB"} if shards else {}
    first = load(save(tmp_path / "a", make_model(seed=0), **keys))
    second = load(save(tmp_path / "b", make_model(seed=1), **keys))
    assert shards == (tmp_path / "a" / "model.safetensors.index.json").exists()
    assert load(save(tmp_path / "c", make_model(seed=0), **keys)).fingerprint == first.fingerprint
    assert load(tmp_path / "a", dtype="bfloat16").fingerprint == first.fingerprint
    assert second.fingerprint != first.fingerprint
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    (tmp_path / "a" / "config.json").write_text(json.dumps(config | {"transformers_version": "9", "dtype": "float16"}))
    assert load(tmp_path / "a").fingerprint == first.fingerprint
    (tmp_path / "a" / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    assert load(tmp_path / "a").fingerprint != first.fingerprint


def test_weights_are_hashed_once_and_again_when_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    right = fingerprint.sha256_of_file

    def counting(path: Any) -> str:
        hashed.append(Path(path).name)
        return right(path)

    monkeypatch.setattr(fingerprint, "sha256_of_file", counting)
    folder, cache = save(tmp_path / "model"), tmp_path / "cache"
    first = load(folder, cache_dir=str(cache)).fingerprint
    assert load(folder, cache_dir=str(cache)).fingerprint == first and hashed == ["model.safetensors"]
    make_model(seed=1).save_pretrained(folder)
    assert load(folder, cache_dir=str(cache)).fingerprint != first and len(hashed) == 2
    for content in ("not json", "[]", '{"x": 1}'):
        (cache / fingerprint.MEMO).write_text(content)
        load(folder, cache_dir=str(cache))
    assert len(hashed) == 5


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path: Path) -> None:
    folder = save(tmp_path / "model")
    (tmp_path / "cache").write_text("a file where the cache folder should be")
    assert load(folder, cache_dir=str(tmp_path / "cache")).fingerprint == load(folder).fingerprint


def test_the_tokenizers_fingerprint_is_of_vocabulary_template_and_special_tokens(tmp_path: Path) -> None:
    first = tokenizer_fingerprint(make_tokenizer(eos_token="</s>"))
    saved = load(save(tmp_path, tokenizer=make_tokenizer(eos_token="</s>")))
    assert saved.tokenizer_fingerprint == first
    # Neither the padding token that was set in memory nor what a call left behind changes it.
    saved.tokenizer(["1 2", "3"], padding=True, truncation=True, max_length=1)
    assert tokenizer_fingerprint(saved.tokenizer) == first
    templated = make_tokenizer(eos_token="</s>")
    templated.chat_template = "{{ messages }}"
    others = [make_tokenizer(21, eos_token="</s>"), make_tokenizer(eos_token="<s>"), templated]
    assert len({first, *map(tokenizer_fingerprint, others)}) == 4


def test_a_base_can_be_made_from_a_model_in_memory() -> None:
    tokenizer = make_tokenizer(eos_token="</s>")
    first, same, other = (base_of(make_model(seed=seed), tokenizer) for seed in (0, 0, 1))
    assert first.fingerprint == same.fingerprint != other.fingerprint
    assert not any(parameter.requires_grad for parameter in first.model.parameters())
    with pytest.raises(InputError, match="no end-of-sequence token"):
        base_of(make_model(), make_tokenizer())


@pytest.mark.parametrize("softcap", [5.0, None])
def test_a_model_that_caps_its_attention_scores_runs_eager(tmp_path: Path, softcap: float | None) -> None:
    save(tmp_path, make_model(Gemma2Config(**SIZES, attn_logit_softcapping=softcap)))
    assert load(tmp_path).model.config._attn_implementation == "eager"
    with pytest.raises(InputError, match="cannot be loaded"):
        load(tmp_path, attn_implementation="sdpa")


def test_the_users_own_attention_kernel_is_taken(tmp_path: Path) -> None:
    save(tmp_path)
    # On a CPU, which this is, our own where transformers would take `sdpa`.
    assert load(tmp_path).model.config._attn_implementation == BLOCKED
    for kernel in ("eager", "sdpa"):
        assert load(tmp_path, attn_implementation=kernel).model.config._attn_implementation == kernel
    with pytest.raises(InputError, match="cannot be loaded"):
        load(tmp_path, attn_implementation="no_such_kernel")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_the_dtype_asked_for(tmp_path: Path, dtype: str) -> None:
    save(tmp_path, make_model().to(torch.bfloat16))
    assert load(tmp_path).model.dtype == torch.bfloat16
    assert load(tmp_path, dtype=dtype).model.dtype == getattr(torch, dtype)


def rewrite(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


def sharded_with_a_hole(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    make_model().save_pretrained(folder, max_shard_size="3KB")
    next(folder.glob("model-00002*")).unlink()


def one_layer_short(folder: Path) -> None:
    rewrite(folder / "config.json", lambda config: config.update(num_hidden_layers=3))


def other_shapes(folder: Path) -> None:
    rewrite(folder / "config.json", lambda config: config.update(intermediate_size=24))


def unknown_architecture(folder: Path) -> None:
    rewrite(folder / "config.json", lambda config: config.update(model_type="none_such"))


def no_eos(folder: Path) -> None:
    rewrite(folder / "tokenizer_config.json", lambda config: config.pop("eos_token"))


def no_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "not JSON"),
        (unknown_architecture, "cannot be loaded"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no weights"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x00" * 100), "cannot be loaded"),
        (pickled, "pickles.*save_pretrained"),
        (adapter, "an adapter, not a base"),
        (sharded_with_a_hole, "weights are missing: model-00002"),
        (one_layer_short, "lack 9 tensors"),
        (other_shapes, "cannot be loaded"),
        (no_tokenizer, "no tokenizer that can be read|there is no tokenizer"),
        (no_eos, "no end-of-sequence token"),
        (lambda folder: make_tokenizer(40, eos_token="</s>").save_pretrained(folder), "40 tokens and the model 32"),
    ],
)
def test_a_folder_that_is_no_usable_model_is_named(tmp_path: Path, damage: Any, words: str) -> None:
    save(tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError, match=words) as caught:
        load(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "~/nowhere-at-all", "a/b/c", "a\\b", "", "."])
def test_a_folder_that_is_not_there_is_never_sought_on_the_hub(
    name: str, no_network: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"there is no such folder|no config.json"):
        load(name)


def test_a_file_is_no_model_folder(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text("")
    with pytest.raises(InputError, match="a file, not a model's folder"):
        load(tmp_path / "model.gguf")


def test_a_hub_model_that_is_not_here_fails_at_once_when_offline() -> None:
    with pytest.raises(InputError, match=r"HF_HUB_OFFLINE.*not in the hub's local cache"):
        load("nobody/nothing")


def test_a_hub_model_that_is_not_here_fails_after_one_question(monkeypatch: pytest.MonkeyPatch) -> None:
    questions: list[float] = []

    class Unreachable:
        def model_info(self, name: str, *, revision: str | None, timeout: float) -> None:
            questions.append(timeout)
            raise ConnectionError("no route to host")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(base_module, "HfApi", Unreachable)
    with pytest.raises(InputError, match="the hub does not answer"):
        load("nobody/nothing")
    assert len(questions) == 1 and questions[0] <= 10


def test_a_package_without_its_model_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pluralign.world.NANO_PATH", tmp_path / "nano")
    with pytest.raises(InputError, match="nano model is not in the package"):
        load("nano")


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_named(tmp_path: Path, device: str) -> None:
    with pytest.raises(InputError, match=device):
        load(save(tmp_path), device=device)
