"""Responses of a model, batched by length: greedy, or sampled from a stream of random numbers that each prompt owns."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pluralign.config import GenerationConfig
from pluralign.errors import InputError
from pluralign.models.masks import causal_lm
from pluralign.progress import progress_bar


@dataclass(slots=True)
class Generated:
    """One response.

    Attributes:
        text: the decoded tokens, special tokens left out.
        token_ids: the tokens, without end-of-sequence and padding.
        finished: whether the model ended it by itself, with an end-of-sequence token.
        end: the token that ended it, or None.
        logps: nats, of `token_ids` and of `end`, under the model as it is (temperature 1, nothing cut away); empty
            where they were not asked for.
    """

    text: str
    token_ids: list[int]
    finished: bool
    end: int | None = None
    logps: list[float] = field(default_factory=list)


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    settings: GenerationConfig,
    *,
    seed: int | Sequence[int] = 0,
    description: str = "generating",
    around: Callable[[list[int]], AbstractContextManager[None]] = lambda _: contextlib.nullcontext(),
    logps: bool = False,
) -> list[Generated]:
    """Let a model answer prompts.

    Only `settings` decide how: whatever else the model's own `generation_config` asks for (repetition penalty, a
    temperature, a maximum length) does not apply, except which tokens end a response. A sampled response depends on
    the prompt's tokens and the seed, and on the batch it stands in only as far as rounding does; torch's random state
    is neither used nor changed.

    Args:
        model: a causal language model, a `PeftModel` (with its active adapter) or the bare base.
        tokenizer: the model's own.
        prompts: token ids, none empty.
        settings: see `GenerationConfig`. Where the model's context is too short for them, there are fewer new tokens.
        seed: of sampling, one for all or one a prompt; without effect otherwise.
        description: what the progress bar says.
        around: makes the context in which the prompts of the given numbers are answered together, as one that gives
            each of them an adapter of its own.
        logps: whether the log-probs of what is said are wanted, too: they cost no forward.

    Returns:
        One response a prompt, in the prompts' order.

    Raises:
        InputError: a setting is out of its range, or a prompt is empty or leaves no room in the context.
    """
    made = iterate_generated(
        model, tokenizer, prompts, settings, seed=seed, description=description, around=around, logps=logps
    )
    responses = dict(made)
    return [responses[index] for index in range(len(prompts))]


def iterate_generated(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    settings: GenerationConfig,
    *,
    seed: int | Sequence[int] = 0,
    description: str = "generating",
    around: Callable[[list[int]], AbstractContextManager[None]] = lambda _: contextlib.nullcontext(),
    logps: bool = False,
) -> Iterator[tuple[int, Generated]]:
    """`generate`, but as the batches get done: pairs of a prompt's index and its response, longest prompts first."""
    check_settings(settings)
    inner = causal_lm(model)
    batches = _batches(inner, prompts, settings)
    ends = end_tokens(inner, tokenizer)
    seeds = [seed] * len(prompts) if isinstance(seed, int) else seed
    with progress_bar() as progress:
        task = progress.add_task(description, total=len(prompts))
        for indices, limit in batches:
            recorder = _Recorder() if logps else None
            with _as_asked(inner, tokenizer, ends, limit), around(indices):
                asked, own = [prompts[index] for index in indices], [seeds[index] for index in indices]
                rows = _generate_batch(inner, asked, settings, own, recorder)
            progress.advance(task, len(indices))
            said = recorder.logps(rows) if recorder else [[] for _ in rows]
            for index, tokens, values in zip(indices, rows, said, strict=True):
                yield index, _response(tokenizer, tokens, ends, values)


def check_settings(settings: GenerationConfig) -> None:
    """Raise an `InputError` for a setting out of its range."""
    checks = {
        "max_new_tokens": (settings.max_new_tokens >= 1, "at least 1"),
        "temperature": (settings.temperature > 0, "greater than 0; for the most likely token set do_sample to false"),
        "top_p": (0 < settings.top_p <= 1, "greater than 0 and at most 1"),
        "top_k": (settings.top_k >= 0, "0 (all tokens) or more"),
        "batch_size": (settings.batch_size >= 1, "at least 1"),
    }
    for name, (fits, expected) in checks.items():
        if not fits:
            raise InputError(f"{name} of generation is {getattr(settings, name)}", fix=f"It must be {expected}.")


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end a response: those of the model's generation config and the tokenizer's own, sorted."""
    declared = model.generation_config.eos_token_id if model.generation_config is not None else None
    ends = set(declared if isinstance(declared, list) else [declared]) | {tokenizer.eos_token_id}
    return sorted(token for token in ends if token is not None)


def context_length(model: Any) -> int | None:
    """Positions that the model has, where its configuration says so."""
    return getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)


def _batches(model: Any, prompts: Sequence[Sequence[int]], settings: GenerationConfig) -> list[tuple[list[int], int]]:
    """Indices of prompts that go together, with the number of new tokens they may have."""
    context = context_length(model)
    limits = [
        settings.max_new_tokens if context is None else min(settings.max_new_tokens, context - len(prompt))
        for prompt in prompts
    ]
    for index, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
        if not prompt:
            raise InputError("a prompt of no tokens cannot be answered", where=f"prompt {index}")
        if limit < 1:
            raise InputError(
                f"a prompt of {len(prompt)} tokens leaves no room in the model's context of {context}",
                where=f"prompt {index}",
                fix="Shorten it, or lower max_prompt_length.",
            )
    batches: list[tuple[list[int], int]] = []
    # Longest first: what does not fit into memory fails at once, not at the end. A batch has one limit, so that what a
    # prompt may say does not depend on its neighbours.
    for index in sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index)):
        if batches and batches[-1][1] == limits[index] and len(batches[-1][0]) < settings.batch_size:
            batches[-1][0].append(index)
        else:
            batches.append(([index], limits[index]))
    return batches


@contextlib.contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """No dropout inside the block; afterwards every module is in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def _as_asked(model: Any, tokenizer: Any, ends: list[int], limit: int) -> Iterator[None]:
    """The model under a generation config that says nothing but what was asked for."""
    theirs = model.generation_config
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends or [0])[0]
    # generate() fills every value that a config passed to it leaves open from the model's own: that one is replaced.
    model.generation_config = transformers.GenerationConfig(
        max_new_tokens=limit, do_sample=False, eos_token_id=ends or None, pad_token_id=padding, use_cache=True
    )
    try:
        with evaluation_mode(model):
            yield
    finally:
        model.generation_config = theirs


@torch.no_grad()
def _generate_batch(
    model: Any,
    prompts: list[Sequence[int]],
    settings: GenerationConfig,
    seeds: Sequence[int],
    recorder: _Recorder | None,
) -> list[list[int]]:
    """New tokens of each prompt, with whatever follows an end token."""
    width = max(map(len, prompts))
    input_ids = torch.full((len(prompts), width), model.generation_config.pad_token_id)
    attention_mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        input_ids[row, width - len(prompt) :] = torch.tensor(prompt)
        attention_mask[row, width - len(prompt) :] = 1
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    # Models without positions of their own (ALiBi, recurrent ones) take none.
    if "position_ids" in inspect.signature(model.forward).parameters:
        # Padding takes position 0; it is masked, and the position only has to exist.
        inputs["position_ids"] = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    processors = _sampling(prompts, width, settings, seeds) if settings.do_sample else LogitsProcessorList()
    if recorder is not None:
        # First of all: what the model says before anything is cut away.
        processors.insert(0, recorder)
    moved = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    output = model.generate(**moved, logits_processor=processors)
    return output[:, width:].tolist()


def _response(tokenizer: Any, tokens: list[int], ends: list[int], logps: list[float]) -> Generated:
    stop = next((at for at, token in enumerate(tokens) if token in ends), None)
    kept = tokens if stop is None else tokens[:stop]
    text = tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    end = None if stop is None else tokens[stop]
    # Behind the end stands padding.
    return Generated(text, kept, stop is not None, end, logps if stop is None else logps[: stop + 1])


class _Recorder(LogitsProcessor):
    """Notes how likely the model found every token that was then drawn; changes nothing."""

    def __init__(self) -> None:
        self._last: Tensor | None = None
        self._found: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self._last is not None:
            self._found.append(self._last.gather(1, input_ids[:, -1:]))
        self._last = scores.float().log_softmax(-1)
        return scores

    def logps(self, rows: Sequence[Sequence[int]]) -> list[list[float]]:
        """Of every new token of each row, padding included."""
        assert self._last is not None
        last = torch.tensor([tokens[-1] for tokens in rows], device=self._last.device)
        return torch.cat([*self._found, self._last.gather(1, last[:, None])], 1).tolist()


def _sampling(
    prompts: list[Sequence[int]], width: int, settings: GenerationConfig, seeds: Sequence[int]
) -> LogitsProcessorList:
    """Temperature, top-k, top-p, then the draw itself."""
    processors = LogitsProcessorList()
    if settings.temperature != 1.0:
        processors.append(TemperatureLogitsWarper(float(settings.temperature)))
    if settings.top_k:
        processors.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1.0:
        processors.append(TopPLogitsWarper(float(settings.top_p)))
    processors.append(_Draw(prompts, width, settings.max_new_tokens, seeds))
    return processors


class _Draw(LogitsProcessor):
    """Leaves one token a row, drawn by inverting the distribution at a number that belongs to prompt, seed and step.

    Sampling inside `generate` draws all rows from one global stream: a response would depend on its neighbours.
    """

    def __init__(self, prompts: list[Sequence[int]], width: int, steps: int, seeds: Sequence[int]) -> None:
        self.width = width
        # 24 random bits: below 1 by more than float64 rounds, so that the draw never lands past the last token.
        self.numbers = torch.stack(
            [
                torch.from_numpy(_stream(prompt, seed).random(steps, np.float32))
                for prompt, seed in zip(prompts, seeds, strict=True)
            ]
        )

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        cumulative = scores.softmax(-1, dtype=torch.float32).double().cumsum(-1)
        number = self.numbers[:, input_ids.shape[1] - self.width].to(scores.device).double()
        # right=True steps over tokens of probability 0, whose sum equals their neighbour's.
        drawn = torch.searchsorted(cumulative, number[:, None] * cumulative[:, -1:], right=True)
        return torch.full_like(scores, float("-inf")).scatter(1, drawn, 0.0)


def _stream(prompt: Sequence[int], seed: int) -> np.random.Generator:
    content = np.asarray([seed, *prompt], dtype="<i8").tobytes()
    return np.random.default_rng(int.from_bytes(hashlib.sha256(content).digest()[:16], "little"))
