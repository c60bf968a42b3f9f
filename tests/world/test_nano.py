"""The packaged nano model: plain to load, small, safe, exact on the world's texts, and it knows the world."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from pluralign.storage import read_json
from pluralign.world import NANO_PATH, STYLES, World, make_world, nano
from pluralign.world.nano import make_tokenizer, train_nano

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def world() -> World:
    return World(0)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(NANO_PATH)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(NANO_PATH).eval()


def test_the_folder_is_small_and_holds_no_pickle() -> None:
    files = [path for path in NANO_PATH.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8_000_000
    assert {path.suffix for path in files} == {".json", ".jinja", ".safetensors"}
    assert not any(path.read_bytes()[:2] in (b"\x80\x02", b"\x80\x04", b"PK") for path in files)
    assert not any(path.read_bytes().count(b"/work") for path in files if path.suffix != ".safetensors")


def test_the_figures_beside_it_hold_what_is_promised() -> None:
    measured = read_json(NANO_PATH / "measured.json")
    for scope in ("facts", "facts_inside", "facts_outside"):
        assert measured[scope]["generated_right"] >= 0.97 and measured[scope]["likelihood_right"] >= 0.97
        assert measured[scope]["plain"] >= 0.97 and measured[scope]["degenerate"] == 0


def test_plain_dpo_trained_on_was_seen_to_lose_a_third_of_the_facts_and_the_anchor_to_keep_them() -> None:
    people = {method: row["people"] for method, row in read_json(NANO_PATH / "measured.json")["forgetting"].items()}
    for user, left in people["dpo"].items():
        assert max(left["generated_right"], left["likelihood_right"]) <= 0.7
        assert people["bapo"][user]["likelihood_right"] >= 0.97


def test_the_tokenizer_is_that_of_the_world(world: World, tokenizer: Any) -> None:
    fresh = make_tokenizer(world)
    assert fresh.get_vocab() == tokenizer.get_vocab()
    text = world.facts[5].say("verbose") + " Zebra 🦓"
    assert fresh(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert fresh.chat_template == tokenizer.chat_template


def test_every_text_of_the_world_round_trips_a_token_a_word(world: World, tokenizer: Any) -> None:
    texts = [text for item in world.items[::5] for text in (*item.all_questions, *map(item.say, STYLES))]
    for text, tokens in zip(texts, tokenizer(texts, add_special_tokens=False)["input_ids"], strict=True):
        assert tokenizer.decode(tokens) == text
        assert len(tokens) == len(re.findall(r"\w+|[^\w\s]", text)), text


@settings(max_examples=200)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_round_trips(tokenizer: Any, text: str) -> None:
    # The metaspace sign is how the tokenizer writes a space; it alone cannot come back as itself.
    text = text.replace("▁", "_")
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_text_tokenized_apart_equals_text_tokenized_together(world: World, tokenizer: Any) -> None:
    for item in world.items[::23]:
        opening = str(item.prefix("formal"))
        apart = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (opening, item.answer)]
        assert apart[0] + apart[1] == tokenizer(f"{opening} {item.answer}", add_special_tokens=False)["input_ids"]
        assert len(apart[1]) == 1


def test_the_chat_template_is_short_and_starts_once(tokenizer: Any) -> None:
    messages = [
        {"role": "system", "content": "Tell me."},
        {"role": "user", "content": "What is it?"},
        {"role": "assistant", "content": "It is red."},
        {"role": "user", "content": "What is it?"},
    ]
    tokens = tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=False)
    named = tokenizer.convert_ids_to_tokens(tokens)
    assert named.count("<|bos|>") == 1 and named[0] == "<|bos|>" and named[-1] == "<|assistant|>"
    assert named.count("<|end|>") == 1
    words = sum(len(tokenizer(m["content"], add_special_tokens=False)["input_ids"]) for m in messages)
    assert len(tokens) == words + 1 + len(messages) + 1 + 1


def test_pre_training_sees_what_the_chat_template_gives(world: World, tokenizer: Any) -> None:
    for conversation in world.corpus(repeats=1)[:200]:
        templated = tokenizer.apply_chat_template(conversation, tokenize=True, return_dict=False)
        assert nano._encode(tokenizer, conversation) == templated


def test_it_knows_the_facts_and_answers_plainly(world: World, tokenizer: Any, model: Any) -> None:
    probes = random.Random(7).sample([probe for probe in world.probes() if probe["kind"] == "fact"], 150)
    chats = [[{"role": "user", "content": probe["question"]}] for probe in probes]
    batch = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        generated = model.generate(**batch, max_new_tokens=40, do_sample=False)[:, batch["input_ids"].shape[1] :]
    judged = [
        world.judge(chat, tokenizer.decode(tokens, skip_special_tokens=True), finished=tokenizer.eos_token_id in tokens)
        for chat, tokens in zip(chats, generated, strict=True)
    ]
    assert sum(judgement.right is True for judgement in judged) >= 0.97 * len(probes)
    assert sum(judgement.style for judgement in judged) >= 0.97 * len(probes)
    assert not any(judgement.degenerate for judgement in judged)


def test_pre_training_is_deterministic_and_depends_on_the_seed(tmp_path: Path, world: World) -> None:
    class Short(World):
        def corpus(self, *args: Any, **kwargs: Any) -> Any:
            return world.corpus()[:300]

    paths = []
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        state = torch.random.get_rng_state()
        train_nano(Short(0), tmp_path / name, steps=2, seed=seed)
        assert torch.equal(state, torch.random.get_rng_state())
        paths.append((tmp_path / name / "model.safetensors").read_bytes())
    assert paths[0] == paths[1] != paths[2]


@pytest.mark.slow
def test_another_world_makes_its_own_model(tmp_path: Path) -> None:
    out = make_world(9, tmp_path / "w", users=1, pairs_per_user=2, nano=True, steps=2)
    other = AutoTokenizer.from_pretrained(out / "nano")
    fact = World(9).facts[0]
    assert len(other(fact.say("plain"), add_special_tokens=False)["input_ids"]) == len(
        re.findall(r"\w+|[^\w\s]", fact.say("plain"))
    )
    assert AutoModelForCausalLM.from_pretrained(out / "nano").config.vocab_size == len(other)
