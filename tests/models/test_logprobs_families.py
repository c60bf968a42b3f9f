"""One row a prompt against separate rows, for every supported architecture, in rows far longer than its window."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tf
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from pluralign.models.attention import BLOCKED
from pluralign.models.encoding import Encoded
from pluralign.models.layout import choose_layout
from pluralign.models.logprobs import branch_logps
from pluralign.models.rows import collate

WINDOW = 8
VOCABULARY = 96
BRANCHES = ("chosen", "rejected", "base", "other")

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in SIZES.items() if name not in names}


CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: tf.LlamaConfig(**SIZES),
    "qwen2": lambda: tf.Qwen2Config(
        **without("head_dim"), use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1
    ),
    "qwen2-no-window": lambda: tf.Qwen2Config(**without("head_dim"), use_sliding_window=False, sliding_window=WINDOW),
    "qwen3": lambda: tf.Qwen3Config(**SIZES, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1),
    "mistral": lambda: tf.MistralConfig(**SIZES, sliding_window=WINDOW),
    "mistral-no-window": lambda: tf.MistralConfig(**SIZES, sliding_window=None),
    "gemma2": lambda: tf.Gemma2Config(
        **{**SIZES, "num_hidden_layers": 3},
        sliding_window=WINDOW,
        layer_types=MIXED,
        query_pre_attn_scalar=8,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
    ),
    "gemma3": lambda: tf.Gemma3TextConfig(
        **{**SIZES, "num_hidden_layers": 3},
        sliding_window=WINDOW,
        layer_types=MIXED,
        query_pre_attn_scalar=8,
        final_logit_softcapping=3.0,
    ),
    "phi3": lambda: tf.Phi3Config(**without("head_dim"), sliding_window=WINDOW),
    "olmo2": lambda: tf.Olmo2Config(**without("head_dim")),
    "gpt_neox": lambda: tf.GPTNeoXConfig(**without("head_dim", "num_key_value_heads")),
    "granite": lambda: tf.GraniteConfig(
        **without("head_dim"), logits_scaling=4.0, attention_multiplier=0.3, residual_multiplier=0.5
    ),
    "cohere2": lambda: tf.Cohere2Config(
        **{**without("head_dim"), "num_hidden_layers": 3}, sliding_window=WINDOW, layer_types=MIXED, logit_scale=0.25
    ),
    "gpt2": lambda: tf.GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=128,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        # Dropout is the only one in the list that is on by default; gradients are compared in training mode too.
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
    ),
    "gpt_oss": lambda: tf.GptOssConfig(
        **SIZES,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"],
        num_local_experts=2,
        num_experts_per_tok=1,
    ),
    "llama4": lambda: tf.Llama4TextConfig(
        **SIZES,
        intermediate_size_mlp=48,
        num_local_experts=2,
        moe_layers=[],
        attention_chunk_size=WINDOW,
        layer_types=["chunked_attention", "full_attention"],
    ),
}
EAGER_ONLY = ("gemma2", "gpt_oss")
CASES = [
    (name, kernel)
    for name in CONFIGS
    for kernel in ("eager", "sdpa", BLOCKED)
    if kernel == "eager" or name not in EAGER_ONLY
]


def tiny_model(name: str, kernel: str = "eager", dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    config = CONFIGS[name]()
    model = tf.AutoModelForCausalLM.from_config(config, attn_implementation=kernel).to(dtype)
    # Biases and norms start at zeros and ones, where two wrong models can agree.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def examples() -> list[Encoded]:
    """Rows of 35 to 61 tokens, two to four responses of unequal length, one of a single token."""
    generator = torch.Generator().manual_seed(1)

    def draw(length: int) -> list[int]:
        return torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()

    return [
        Encoded(draw(21), {"chosen": draw(17), "rejected": draw(9), "base": draw(14)}),
        Encoded(draw(5), {"chosen": draw(12), "rejected": draw(19)}),
        Encoded(draw(12), {"chosen": draw(1), "rejected": draw(11), "base": draw(8), "other": draw(16)}),
    ]


def plain_logps(model: nn.Module, prompt: list[int], response: list[int]) -> Tensor:
    """The oracle: `prompt + response` alone through the model's plain forward, with the model's own mask."""
    tokens = torch.tensor([prompt + response])
    logits = model(input_ids=tokens).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(dim=-1).gather(1, torch.tensor(response)[:, None]).sum()


@pytest.mark.parametrize(("name", "kernel"), CASES)
def test_a_shared_row_gives_the_log_probs_and_gradients_of_separate_rows(name: str, kernel: str) -> None:
    model, encoded = tiny_model(name, kernel), examples()
    expected = {
        (b, k): plain_logps(model, e.prompt_ids, ids)
        for b, e in enumerate(encoded)
        for k, ids in e.response_ids.items()
    }
    signs = {key: (-1.0) ** index for index, key in enumerate(expected)}
    parameters = list(model.parameters())
    # Parameters that nothing reaches (experts not chosen) have no gradient on either side.
    wanted = torch.autograd.grad(
        sum(signs[key] * value for key, value in expected.items()), parameters, allow_unused=True
    )
    for layout, side in (("shared", "right"), ("shared", "left"), ("separate", "right"), ("separate", "left")):
        batch = collate(encoded, pad_id=0, branches=BRANCHES, layout=layout, padding_side=side)
        logps = branch_logps(model, batch)
        for (b, k), value in expected.items():
            assert logps[k][b].item() == pytest.approx(value.item(), abs=1e-4), (layout, side, b, k)
        assert logps["other"][0] == 0 and logps["base"][1] == 0
        got = torch.autograd.grad(sum(signs[b, k] * logps[k][b] for b, k in expected), parameters, allow_unused=True)
        for (parameter_name, _), have, want in zip(model.named_parameters(), got, wanted, strict=True):
            zero = torch.zeros(())
            have, want = zero if have is None else have, zero if want is None else want
            scale = max(1.0, want.abs().max().item())
            assert (have - want).abs().max().item() < 2e-5 * scale, (layout, side, parameter_name)


@pytest.mark.parametrize(("name", "kernel"), CASES)
def test_the_check_lets_every_supported_architecture_share_its_prompt(name: str, kernel: str) -> None:
    assert choose_layout(tiny_model(name, kernel)) == "shared"


@pytest.mark.parametrize("name", ["gemma3", "gpt2"])
def test_an_adapter_with_recomputed_activations_gets_the_gradients_of_separate_rows(name: str) -> None:
    gradients: list[list[Tensor]] = []
    for layout, recompute in (("separate", False), ("shared", False), ("shared", True)):
        model = get_peft_model(
            tiny_model(name, "sdpa"), LoraConfig(target_modules="all-linear", init_lora_weights=False)
        )
        torch.manual_seed(1)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        with torch.no_grad():
            for parameter in trained:
                parameter.normal_(std=0.1)
        if recompute:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable()
        batch = collate(examples(), pad_id=0, branches=BRANCHES, layout=layout)  # type: ignore[arg-type]
        logps = branch_logps(model.train(), batch)
        (logps["chosen"] - 0.5 * logps["rejected"] + 0.1 * logps["base"]).sum().backward()
        gradients.append([parameter.grad for parameter in trained])
    for other in gradients[1:]:
        for want, have in zip(gradients[0], other, strict=True):
            assert (have - want).abs().max().item() < 1e-5 * max(1.0, want.abs().max().item())


def test_a_model_of_text_and_images_shares_its_prompt_too() -> None:
    torch.manual_seed(0)
    text = CONFIGS["gemma3"]().to_dict()
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = tf.Gemma3Config(text_config=text, vision_config=vision, image_token_id=90, mm_tokens_per_image=4)
    model = tf.AutoModelForCausalLM.from_config(config).eval()
    assert choose_layout(model) == "shared"
    one = Encoded([5, 6, 7] * 6, {"chosen": [8, 9] * 6, "rejected": [10] * 5})
    logps = branch_logps(model, collate([one], pad_id=0, branches=BRANCHES))
    for name, response in one.response_ids.items():
        assert logps[name].item() == pytest.approx(plain_logps(model, one.prompt_ids, response).item(), abs=1e-4)
