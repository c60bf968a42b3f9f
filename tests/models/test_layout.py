"""The start-up check: who passes, who does not, and that it leaves no trace."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor

from pluralign.models import masks
from pluralign.models.encoding import Encoded
from pluralign.models.layout import choose_layout
from pluralign.models.logprobs import branch_logps
from pluralign.models.masks import Reach
from pluralign.models.rows import PADDING, collate

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
    "initializer_range": 0.2,
}


def build(config: Any, dtype: torch.dtype = torch.float32, kernel: str = "sdpa") -> Any:
    torch.manual_seed(0)
    return tf.AutoModelForCausalLM.from_config(config, attn_implementation=kernel).to(dtype).eval()


def mistral(window: int | None = 8) -> Any:
    return tf.MistralConfig(**SIZES, sliding_window=window)


def gemma3(window: int = 8) -> Any:
    return tf.Gemma3TextConfig(
        **SIZES, head_dim=8, sliding_window=window, layer_types=["sliding_attention", "full_attention"]
    )


def llama() -> Any:
    return tf.LlamaConfig(**SIZES)


def falcon_h1() -> Any:
    return tf.FalconH1Config(
        **SIZES, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_n_groups=1, mamba_d_state=8, mamba_chunk_size=16
    )


def mamba() -> Any:
    return tf.MambaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2, state_size=8)


MayAttend = Callable[[Tensor, Tensor, Reach | None], Tensor]


def without_window(right: MayAttend) -> MayAttend:
    return lambda segments, positions, reach=None, rows=None: right(segments, positions, Reach())


def window_off_by_one(right: MayAttend) -> MayAttend:
    return lambda segments, positions, reach=None, rows=None: right(segments, positions, Reach(window=reach.window + 1))  # type: ignore[union-attr, operator]


def branches_see_each_other(right: MayAttend) -> MayAttend:
    def broken(segments: Tensor, positions: Tensor, reach: Reach | None = None, rows: None = None) -> Tensor:
        merged = torch.where(segments == PADDING, PADDING, 0)
        columns = torch.arange(segments.shape[1]).expand_as(segments)
        return right(merged, columns, None)

    return broken


def prompt_is_hidden(right: MayAttend) -> MayAttend:
    return lambda segments, positions, reach=None, rows=None: right(segments + (segments != PADDING), positions, reach)


BROKEN = [
    (mistral, without_window),
    (mistral, window_off_by_one),
    (gemma3, without_window),
    (mistral, branches_see_each_other),
    (llama, branches_see_each_other),
    (llama, prompt_is_hidden),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("config", "broken"), BROKEN)
def test_a_broken_mask_is_caught(
    config: Callable[[], Any],
    broken: Callable[[MayAttend], MayAttend],
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build(config(), dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose_layout(model) == "shared"
    monkeypatch.setattr(masks, "may_attend", broken(masks.may_attend))
    with pytest.warns(UserWarning, match=rf"{model.config.model_type}.* differs by .* a row of its own"):
        assert choose_layout(model) == "separate"


def test_restarted_positions_are_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(llama())

    def running_on(model: Any, batch: Any) -> dict[str, Any]:
        inputs = masks.attention_inputs(model, batch)
        if batch.layout == "shared":
            inputs["position_ids"] = torch.arange(batch.input_ids.shape[1]).expand_as(batch.input_ids)
        return inputs

    monkeypatch.setattr("pluralign.models.logprobs.attention_inputs", running_on)
    with pytest.warns(UserWarning, match="llama"):
        assert choose_layout(model) == "separate"


@pytest.mark.parametrize("window", [9, 1024, 4096, None])
@pytest.mark.parametrize("broken", [None, without_window])
def test_windows_of_thousands_are_checked_in_short_rows(
    window: int | None, broken: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(mistral(window))
    widths: list[int] = []
    model.model.embed_tokens.register_forward_hook(lambda module, inputs, output: widths.append(output.shape[1]))
    if broken is None or window is None:
        assert choose_layout(model) == "shared"
        assert max(widths) < 64
    else:
        monkeypatch.setattr(masks, "may_attend", broken(masks.may_attend))
        with pytest.warns(UserWarning, match="mistral"):
            assert choose_layout(model) == "separate"
    assert model.config.sliding_window == window


class OwnWindow(tf.MistralForCausalLM):
    """A model that reads its window when it is made, not in every forward."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.window = config.sliding_window

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        kept = self.config.sliding_window
        self.config.sliding_window = self.window
        try:
            return super().forward(*args, **kwargs)
        finally:
            self.config.sliding_window = kept


def test_a_window_that_the_model_holds_itself_is_checked_at_its_true_length() -> None:
    torch.manual_seed(0)
    assert choose_layout(OwnWindow(mistral(40)).eval()) == "shared"
    with pytest.warns(UserWarning, match="mistral"):
        assert choose_layout(OwnWindow(mistral(4096)).eval()) == "separate"


@pytest.mark.parametrize(("config", "reason"), [(falcon_h1, "falcon_h1.*hybrid"), (mamba, "mamba")])
def test_models_that_carry_a_state_run_separate_rows_with_the_right_result(
    config: Callable[[], Any], reason: str
) -> None:
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(config()).eval()
    with pytest.warns(UserWarning, match=reason):
        layout = choose_layout(model)
    assert layout == "separate"
    generator = torch.Generator().manual_seed(1)
    encoded = [
        Encoded(draw(generator, 21), {"chosen": draw(generator, 17), "rejected": draw(generator, 3)}),
        Encoded(draw(generator, 4), {"chosen": draw(generator, 6)}),
    ]
    with torch.no_grad():
        logps = branch_logps(model, collate(encoded, pad_id=0, branches=("chosen", "rejected"), layout=layout))
        for index, one in enumerate(encoded):
            for name, response in one.response_ids.items():
                logits = model(input_ids=torch.tensor([one.prompt_ids + response])).logits[
                    0, len(one.prompt_ids) - 1 : -1
                ]
                expected = logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None]).sum()
                assert logps[name][index].item() == pytest.approx(expected.item(), abs=1e-4)


def draw(generator: torch.Generator, length: int) -> list[int]:
    return torch.randint(3, 96, (length,), generator=generator).tolist()


def test_a_hybrid_whose_layers_do_not_say_so_is_caught_by_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(falcon_h1()).eval()
    monkeypatch.setattr(masks, "layer_reaches", lambda config: {"full_attention": Reach()})
    with pytest.warns(UserWarning, match=r"falcon_h1.* differs by .* a row of its own"):
        assert choose_layout(model) == "separate"


def test_a_model_that_gives_nan_is_not_trusted() -> None:
    model = build(llama())
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.warns(UserWarning, match="llama"):
        assert choose_layout(model) == "separate"


def test_the_check_leaves_no_trace() -> None:
    model = build(tf.MistralConfig(**SIZES, sliding_window=4096, attention_dropout=0.5)).train()
    model.model.layers[0].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    state = torch.get_rng_state()
    assert choose_layout(model) == "shared"
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert model.config.sliding_window == 4096
    assert all(parameter.grad is None for parameter in model.parameters())
    with torch.no_grad():
        assert choose_layout(model) == "shared"


def test_a_shared_row_in_bfloat16_keeps_its_stated_bound() -> None:
    generator = torch.Generator().manual_seed(0)
    encoded = [
        Encoded(draw(generator, 30), {"chosen": draw(generator, 40), "rejected": draw(generator, 25)}) for _ in range(4)
    ]
    for config in (llama(), mistral(), gemma3()):
        model = build(config, torch.bfloat16)
        with torch.no_grad():
            sums = [
                branch_logps(model, collate(encoded, pad_id=0, branches=("chosen", "rejected"), layout=layout))
                for layout in ("shared", "separate")
            ]
        for name, length in (("chosen", 40), ("rejected", 25)):
            assert (sums[0][name] - sums[1][name]).abs().max() <= 1e-2 * length
