"""The nano model of a world: a Llama of less than half a million parameters that knows all of it."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pluralign.progress import progress_bar
from pluralign.world.world import Conversation, World

STEPS = 1800
"""Optimiser steps of the packaged model."""

LEARNING_RATE = 3e-3
_TOKENS_PER_STEP = 3072
_WARM_UP = 60
_PAD, _BOS, _EOS = "<|pad|>", "<|bos|>", "<|end|>"
_ROLES = ("system", "user", "assistant", "tool")
_PUNCTUATION = ".,?!:;'\"()-"

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""One token a message, two an answer."""


def make_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """A token for every word of the world, bytes for everything else, so that any text round-trips.

    A word is the same token wherever it stands (a space is put before the first one and taken off again when decoding),
    so a prompt and a response tokenized apart give the tokens of the joined text.
    """
    words = sorted(world.vocabulary.union(str(number) for number in range(100)))
    specials = [_PAD, _BOS, _EOS, *(f"<|{role}|>" for role in _ROLES)]
    pieces = [
        *specials,
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        *_PUNCTUATION,
        *(f"▁{word}" for word in words),
    ]
    # Equal scores: the segmentation with the fewest pieces wins, and a whole word is one piece.
    model = models.Unigram([(piece, -1.0) for piece in pieces], unk_id=0, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    # A word ends where its letters and digits do; without this "3." could be looked up across the full stop.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"▁?\w+|▁|[^\w▁]"), behavior="isolated")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(special, special=True, normalized=False) for special in specials])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_BOS} $A", pair=f"{_BOS} $A $B", special_tokens=[(_BOS, specials.index(_BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=_BOS,
        eos_token=_EOS,
        pad_token=_PAD,
        additional_special_tokens=specials[3:],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
        padding_side="left",
    )


def make_model(tokenizer: PreTrainedTokenizerFast, *, seed: int) -> LlamaForCausalLM:
    """The untrained model: three layers of width 96, grouped queries, tied embeddings."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def train_nano(world: World, out: Path | str, *, steps: int = STEPS, seed: int = 0) -> LlamaForCausalLM:
    """Pre-train the nano model of a world on its corpus, on the CPU, and save model and tokenizer.

    The loss is that of all tokens: a model that learned the answers alone knows as much, but breaks sooner in training
    an adapter. Conversations of like length make a batch, so next to nothing is padding and none sees another.
    Cosine schedule with warm-up.

    Args:
        world: whose corpus.
        out: the folder to write (`config.json`, `model.safetensors` in float32, the tokenizer's files).
        steps: optimiser steps of about 3,000 tokens.
        seed: initial weights and order.

    Returns:
        The trained model, in evaluation mode.
    """
    tokenizer = make_tokenizer(world)
    model = make_model(tokenizer, seed=seed)
    rows = [_encode(tokenizer, conversation) for conversation in world.corpus()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    batches = _batches(rows, random.Random(f"{seed}/batches"))
    model.train()
    with progress_bar() as progress:
        task = progress.add_task("pre-training the nano model", total=steps)
        for _ in range(steps):
            loss = model(**_collate(next(batches), tokenizer.pad_token_id)).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            progress.update(task, advance=1, description=f"pre-training the nano model, loss {loss.item():.3f}")
    model.eval()
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return model


def _rate(step: int, steps: int) -> float:
    warm_up = min(_WARM_UP, steps // 4)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def _encode(tokenizer: PreTrainedTokenizerFast, conversation: Conversation) -> list[int]:
    """Tokens of a conversation, those that the chat template gives (which is slow for a whole corpus)."""
    tokens: list[int] = [tokenizer.bos_token_id]
    for message in conversation:
        tokens.append(tokenizer.convert_tokens_to_ids(f"<|{message['role']}|>"))
        tokens += tokenizer(message["content"], add_special_tokens=False)["input_ids"]
        if message["role"] == "assistant":
            tokens.append(tokenizer.eos_token_id)
    return tokens


def _batches(rows: Sequence[list[int]], rng: random.Random) -> Iterator[list[list[int]]]:
    """Batches of about `_TOKENS_PER_STEP` tokens for ever, the rows of each of like length."""
    while True:
        keyed = [(len(tokens), rng.random(), index) for index, tokens in enumerate(rows)]
        batches: list[list[list[int]]] = [[]]
        for length, _, index in sorted(keyed):
            if (len(batches[-1]) + 1) * length > _TOKENS_PER_STEP:
                batches.append([])
            batches[-1].append(rows[index])
        rng.shuffle(batches)
        yield from batches


def _collate(rows: Sequence[list[int]], pad: int) -> dict[str, torch.Tensor]:
    width = max(map(len, rows))
    tokens = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    labels = tokens.masked_fill(tokens == pad, -100)
    return {"input_ids": tokens, "attention_mask": (tokens != pad).long(), "labels": labels}
