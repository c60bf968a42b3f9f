from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, GPT2Config, MistralConfig

from pluralign.config import GenerationConfig, ParametersConfig
from pluralign.errors import InputError
from pluralign.models.adapters import new_adapter
from pluralign.models.base import Base, base_of
from pluralign.models.generation import Generated, _Draw, generate

TEXTS = ["a", "What is it?", "Tell me of the long, long road to the sea.", "bcd", "Why", "no", "a longer one, of words"]


@pytest.fixture
def prompts(byte_tokenizer: Any) -> list[list[int]]:
    return [byte_tokenizer(text)["input_ids"] for text in TEXTS]


@torch.no_grad()
def greedy(model: Any, prompt: list[int], ends: set[int], new_tokens: int) -> tuple[list[int], bool]:
    """One prompt at a time, without a key-value cache: the whole row again for every token."""
    tokens: list[int] = []
    for _ in range(new_tokens):
        token = int(model(input_ids=torch.tensor([prompt + tokens])).logits[0, -1].argmax())
        if token in ends:
            return tokens, True
        tokens.append(token)
    return tokens, False


def gpt2(tokenizer: Any) -> Base:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=264, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.2)
    return base_of(AutoModelForCausalLM.from_config(config), tokenizer)


def without_positions(tokenizer: Any) -> Base:
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=264, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2)
    return base_of(AutoModelForCausalLM.from_config(config), tokenizer)


def sliding(tokenizer: Any) -> Base:
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=264,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=8,
        initializer_range=0.2,
    )
    return base_of(AutoModelForCausalLM.from_config(config), tokenizer)


@pytest.mark.parametrize("family", ["llama", "gpt2", "sliding", "without_positions"])
def test_a_batch_answers_as_one_prompt_at_a_time(
    family: str, make_base: Callable[..., Base], byte_tokenizer: Any, prompts: list[list[int]]
) -> None:
    others = {"gpt2": gpt2, "sliding": sliding, "without_positions": without_positions}
    base = others[family](byte_tokenizer) if family in others else make_base()
    eos = byte_tokenizer.eos_token_id
    # A random model ends nothing: a token that it does produce is declared an end, as chat models have several.
    end, _ = greedy(base.model, prompts[1], {eos}, 6)
    base.model.generation_config.eos_token_id = [eos, end[-1]]
    answers = generate(
        base.model, base.tokenizer, prompts, GenerationConfig(max_new_tokens=12, batch_size=3), description="test"
    )
    expected = [greedy(base.model, prompt, {eos, end[-1]}, 12) for prompt in prompts]
    assert [(one.token_ids, one.finished) for one in answers] == expected
    assert {True, False} == {one.finished for one in answers}
    assert all(one.text == byte_tokenizer.decode(one.token_ids) for one in answers)


def test_nothing_but_the_settings_decides_how(
    make_base: Callable[..., Base], prompts: list[list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    settings = GenerationConfig(max_new_tokens=8)
    plain = generate(make_base().model, make_base().tokenizer, prompts, settings)
    base = make_base()
    theirs = base.model.generation_config
    theirs.update(
        repetition_penalty=5.0, do_sample=True, temperature=3.0, max_length=3, no_repeat_ngram_size=1, top_k=2
    )
    base.model.train()
    base.model.model.layers[0].eval()
    with caplog.at_level(logging.WARNING), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert generate(base.model, base.tokenizer, prompts, settings) == plain
    assert not caplog.records
    assert base.model.generation_config is theirs
    assert base.model.training
    assert not base.model.model.layers[0].training


def test_a_policy_answers_with_its_adapter_and_like_the_base_without(tiny_base: Base, prompts: list[list[int]]) -> None:
    settings = GenerationConfig(max_new_tokens=8)
    bare = generate(tiny_base.model, tiny_base.tokenizer, prompts, settings)
    policy = new_adapter(tiny_base, ParametersConfig(dropout=0.5), seed=0)
    policy.train()
    assert generate(policy, tiny_base.tokenizer, prompts, settings) == bare
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    assert generate(policy, tiny_base.tokenizer, prompts, settings) != bare


def test_a_sampled_answer_depends_on_prompt_and_seed_alone(tiny_base: Base, prompts: list[list[int]]) -> None:
    def sample(asked: list[list[int]], seed: int = 0, batch_size: int = 3) -> list[list[int]]:
        settings = GenerationConfig(max_new_tokens=10, do_sample=True, top_k=50, top_p=0.95, batch_size=batch_size)
        return [one.token_ids for one in generate(tiny_base.model, tiny_base.tokenizer, asked, settings, seed=seed)]

    state = torch.get_rng_state()
    together = sample(prompts)
    assert torch.equal(torch.get_rng_state(), state)
    assert sample(prompts, batch_size=1) == together
    assert sample(prompts[::-1])[::-1] == together
    assert sample([prompts[3]]) == [together[3]]
    others = sample(prompts, seed=1)
    assert all(one != other for one, other in zip(together, others, strict=True))


def test_each_prompt_may_have_a_seed_of_its_own(tiny_base: Base, prompts: list[list[int]]) -> None:
    settings = GenerationConfig(max_new_tokens=6, do_sample=True)

    def sample(seed: int | list[int], asked: list[list[int]]) -> list[Generated]:
        return generate(tiny_base.model, tiny_base.tokenizer, asked, settings, seed=seed)

    several = sample([4, 5, 6], [prompts[0]] * 3)
    assert several == [sample(seed, prompts[:1])[0] for seed in (4, 5, 6)] and several[0] != several[1]


@pytest.mark.parametrize("do_sample", [False, True])
def test_what_is_said_is_noted_as_likely_as_a_later_forward_finds_it(
    make_base: Callable[..., Base], prompts: list[list[int]], do_sample: bool
) -> None:
    base = make_base()
    # Some random answers end by themselves.
    base.model.generation_config.eos_token_id = [base.tokenizer.eos_token_id, *range(60, 90)]
    settings = GenerationConfig(max_new_tokens=12, do_sample=do_sample, temperature=0.7, top_k=40, top_p=0.9)
    said = generate(base.model, base.tokenizer, prompts, settings, logps=True)
    assert {one.finished for one in said} == {True, False}
    for prompt, one in zip(prompts, said, strict=True):
        tokens = one.token_ids + ([] if one.end is None else [one.end])
        with torch.no_grad():
            logits = base.model(input_ids=torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]
        assert torch.tensor(one.logps) == pytest.approx(expected, abs=1e-5)
    assert generate(base.model, base.tokenizer, prompts[:1], settings)[0].logps == []


def test_the_draw_follows_the_distribution() -> None:
    scores = torch.log(torch.tensor([0.0, 0.5, 0.0, 0.3, 0.2, 0.0]))
    rows = 4000
    draw = _Draw([[number] for number in range(rows)], width=1, steps=2, seeds=[3] * rows)
    for step in range(2):
        chosen = draw(torch.zeros(rows, 1 + step), scores.repeat(rows, 1)).argmax(-1)
        shares = torch.bincount(chosen, minlength=6) / rows
        assert shares[[0, 2, 5]].eq(0).all()
        assert torch.allclose(shares, scores.exp(), atol=0.03)


def test_a_draw_at_the_very_end_lands_on_a_token_that_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = _Draw([[1]], width=1, steps=1, seeds=[0])
    for number, expected in ((0.0, 1), (1 - 2**-24, 2)):
        draw.numbers = torch.tensor([[number]])
        scores = torch.tensor([[float("-inf"), 0.3, 1.7, float("-inf")]])
        assert draw(torch.zeros(1, 1), scores).argmax().item() == expected


def test_near_the_end_of_the_context_there_are_fewer_new_tokens(make_base: Callable[..., Base]) -> None:
    base = make_base(max_position_embeddings=24)
    prompts = [[65] * length for length in (4, 20, 23, 21)]
    answers = generate(base.model, base.tokenizer, prompts, GenerationConfig(max_new_tokens=10))
    assert [len(one.token_ids) for one in answers] == [10, 4, 1, 3]
    assert not any(one.finished for one in answers)
    with pytest.raises(InputError, match=r"prompt 1: .*24 tokens leaves no room.*context of 24"):
        generate(base.model, base.tokenizer, [[65], [65] * 24], GenerationConfig())


@pytest.mark.parametrize(
    ("name", "value"), [("max_new_tokens", 0), ("temperature", 0.0), ("top_p", 0.0), ("top_p", 1.1), ("top_k", -1)]
)
def test_a_setting_out_of_range_is_named(tiny_base: Base, name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"{name} of generation is {value}"):
        generate(tiny_base.model, tiny_base.tokenizer, [[65]], GenerationConfig(**{name: value}))


def test_an_empty_prompt_is_refused_and_no_prompts_are_fine(tiny_base: Base) -> None:
    with pytest.raises(InputError, match="prompt 0: a prompt of no tokens"):
        generate(tiny_base.model, tiny_base.tokenizer, [[]], GenerationConfig())
    assert generate(tiny_base.model, tiny_base.tokenizer, [], GenerationConfig()) == []
