"""What all rooms test with: one torch thread, no network, a cache and a tiny base of their own.

In `make test-all` a skip is a failure.
"""

import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"

import hypothesis
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from pluralign.models.base import Base, base_of

hypothesis.settings.register_profile("pluralign", deadline=None, max_examples=50, derandomize=True)
hypothesis.settings.load_profile("pluralign")

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test has a cache of its own: none reads or fills the user's."""
    monkeypatch.setenv("PLURALIGN_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of figures computed with other people's code."""
    return GOLDEN


CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] or '' }}"
    "{% if message['tool_calls'] %}{{ message['tool_calls'] | tojson }}{% endif %}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="session")
def byte_tokenizer() -> Any:
    """One token a byte, `<eos>`, `<bos>` (not added by itself) and `<pad>`."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate([*letters, "<eos>", "<bos>", "<pad>"])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<eos>",
        bos_token="<bos>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@pytest.fixture(scope="session")
def make_base(byte_tokenizer: Any) -> Callable[..., Base]:
    """A function of a seed (and changes to the configuration) that makes a base of 20k parameters."""

    def make(seed: int = 0, *, dtype: torch.dtype = torch.float32, **changes: Any) -> Base:
        settings = {
            "vocab_size": 264,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "initializer_range": 0.2,
            "bos_token_id": None,
            "eos_token_id": byte_tokenizer.eos_token_id,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(LlamaConfig(**{**settings, **changes}), dtype=dtype)
        return base_of(model, byte_tokenizer, name="tiny")

    return make


@pytest.fixture
def tiny_base(make_base: Callable[..., Base]) -> Base:
    return make_base()


class Quantized(nn.Linear):
    """As a layer of bitsandbytes: whole numbers for a weight, and a precision that it computes in."""

    def __init__(self, plain: nn.Linear, compute_dtype: torch.dtype | None) -> None:
        super().__init__(plain.in_features, plain.out_features, bias=False, device="meta")
        self.scale = plain.weight.detach().abs().amax().float() / 7
        self.weight = nn.Parameter((plain.weight.detach() / self.scale).round().to(torch.int8), requires_grad=False)
        self.compute_dtype = compute_dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = (self.weight * self.scale).to(self.compute_dtype)
        return functional.linear(x.to(self.compute_dtype), weight).to(x.dtype)


@pytest.fixture
def quantize() -> Callable[..., None]:
    """A function of a model that puts stand-ins for quantized layers in the place of its linear ones, but the head."""

    def replace(model: Any, compute_dtype: torch.dtype | None = torch.float32) -> None:
        for name, layer in list(model.named_modules()):
            if type(layer) is nn.Linear and layer is not model.get_output_embeddings():
                model.set_submodule(name, Quantized(layer, compute_dtype))
        model.is_loaded_in_4bit = True

    return replace


@pytest.fixture
def count_forwards() -> Callable[[Any], list[int]]:
    """A function of a model that returns a list, which grows by one number (rows) with each of its forwards."""

    def count(model: Any) -> list[int]:
        seen: list[int] = []

        def hook(_: Any, __: Any, inputs: dict[str, Any]) -> None:
            seen.append(inputs["input_ids"].shape[0])

        model.register_forward_pre_hook(hook, with_kwargs=True)
        return seen

    return count


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With everything asked for, what cannot run has not passed."""
    report = yield
    if report.skipped and os.environ.get("PLURALIGN_TEST_ALL"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which counts as a failure here: {report.longrepr}"
    return report
