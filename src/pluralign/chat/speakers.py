"""Who answers: the base and one person on one base in memory, in the same forwards where a bank takes the adapter."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from pluralign.config import GenerationConfig, ParametersConfig
from pluralign.evaluation.policies import Policy, of_one_shape, opened_policy
from pluralign.models import Base, context_length
from pluralign.models.adapters import adapter_parameters
from pluralign.models.bank import NONE, LoraBank
from pluralign.models.generation import end_tokens, evaluation_mode
from pluralign.models.masks import causal_lm

BASE, PERSON = 0, 1
"""Numbers of the speakers."""
UNFINISHED = "\ufffd"
"""What the bytes of a character decode to as long as some are to come."""

Grow = Callable[[list[str], list[bool]], None]
"""Takes what has been said so far, and which answers are whole."""


class Speakers:
    """The base, and beside it nobody or one person; a context that leaves the base bare.

    Args:
        base: with no adapter attached.
        settings: how answers are made.
        seed: of sampling; every answer has random numbers of its own.
    """

    def __init__(self, base: Base, settings: GenerationConfig, *, seed: int = 0) -> None:
        self.base, self.settings, self.seed = base, settings, seed
        self._opened = ExitStack()
        self._bank: LoraBank | None = None
        self._policy: Policy | None = None

    def __enter__(self) -> Speakers:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def take(self, folder: Path | None) -> None:
        """Load what a person owns, in the place of who was there before; None leaves the base alone.

        Raises:
            InputError: the folder is missing, broken or of another base; the base is then alone.
        """
        self._opened.close()
        self._bank = self._policy = None
        if folder is None:
            return
        # Twice the same: what a bank takes comes back as one group.
        if len(of_one_shape(self.base, [folder, folder])) > 1:
            self._policy = self._opened.enter_context(opened_policy(self.base, folder))
            return
        with ExitStack() as opened:
            bank = LoraBank(self.base, adapter_parameters(folder, ParametersConfig()), 1)
            opened.callback(bank.detach)
            bank.load(0, folder)
            self._opened, self._bank = opened.pop_all(), bank

    @property
    def together(self) -> list[list[int]]:
        """Numbers of the speakers in their order, those who answer at the same time in one list."""
        if self._policy:
            return [[BASE], [PERSON]]
        return [[BASE, PERSON]] if self._bank else [[BASE]]

    def answer(
        self, speakers: Sequence[int], prompts: Sequence[list[int]], grow: Grow, stopped: Callable[[], bool]
    ) -> list[str]:
        """Let some speakers answer at the same time.

        Args:
            speakers: one entry of `together`.
            prompts: tokens for each of them.
            grow: told after every token; at the end, that all are whole.
            stopped: asked after every token whether it is enough.

        Returns:
            What each of them said, be it whole or not.
        """
        self.seed += 1
        with self._voices(speakers) as model:
            return _streamed(model, self.base, prompts, self.settings, self.seed, grow, stopped)

    @contextmanager
    def _voices(self, speakers: Sequence[int]) -> Iterator[Any]:
        """The model whose rows are these speakers."""
        if self._bank:
            with self._bank.rows(torch.tensor([NONE if number == BASE else 0 for number in speakers])):
                yield self.base.model
        elif self._policy and list(speakers) == [BASE]:
            with self._policy.base_model() as bare:
                yield bare
        else:
            yield self._policy.model if self._policy else self.base.model


@torch.no_grad()
def _streamed(
    model: Any,
    base: Base,
    prompts: Sequence[list[int]],
    settings: GenerationConfig,
    seed: int,
    grow: Grow,
    stopped: Callable[[], bool],
) -> list[str]:
    inner, tokenizer = causal_lm(model), base.tokenizer
    ends = end_tokens(inner, tokenizer)
    width = max(map(len, prompts))
    context = context_length(inner)
    room = settings.max_new_tokens if context is None else min(settings.max_new_tokens, context - width)
    growing = _Growing(tokenizer, len(prompts), ends, grow)
    enough = StoppingCriteriaList([_Stopped(stopped)])
    devices = [base.device] if base.device.type == "cuda" else []
    with _only(inner, _asked_for(settings, tokenizer, ends, room)), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        inner.generate(**_inputs(inner, prompts, width), streamer=growing, stopping_criteria=enough)
    return growing.close()


def _inputs(model: Any, prompts: Sequence[list[int]], width: int) -> dict[str, Tensor]:
    """Prompts filled up on the left: [B, T] each."""
    ids = torch.full((len(prompts), width), model.generation_config.pad_token_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    inputs = {"input_ids": ids, "attention_mask": mask}
    if "position_ids" in inspect.signature(model.forward).parameters:
        inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    return {name: tensor.to(model.device) for name, tensor in inputs.items()}


def _asked_for(settings: GenerationConfig, tokenizer: Any, ends: list[int], room: int) -> transformers.GenerationConfig:
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends or [0])[0]
    sampling = {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": settings.top_k}
    return transformers.GenerationConfig(
        max_new_tokens=room,
        do_sample=settings.do_sample,
        eos_token_id=ends or None,
        pad_token_id=padding,
        use_cache=True,
        **(sampling if settings.do_sample else {}),
    )


@contextmanager
def _only(model: Any, config: transformers.GenerationConfig) -> Iterator[None]:
    """The model under a generation config that stands alone: what is passed to `generate` is filled from its own."""
    theirs = model.generation_config
    model.generation_config = config
    try:
        with evaluation_mode(model):
            yield
    finally:
        model.generation_config = theirs


class _Growing(BaseStreamer):
    """Turns tokens into texts as they come, for as many answers at once as there are.

    Args:
        tokenizer: of the tokens.
        rows: answers.
        ends: tokens that end one.
        grow: told after every token.
    """

    def __init__(self, tokenizer: Any, rows: int, ends: Sequence[int], grow: Grow) -> None:
        self._tokenizer, self._ends, self._grow = tokenizer, set(ends), grow
        self._tokens: list[list[int]] = [[] for _ in range(rows)]
        self._whole = [False] * rows

    def put(self, value: Tensor) -> None:
        """One token of each answer, [B]; before the first ones, the prompts, [B, T]."""
        if value.dim() > 1:
            return
        for row, token in enumerate(value.tolist()):
            self._whole[row] |= token in self._ends
            if not self._whole[row]:
                self._tokens[row].append(token)
        # A character whose last bytes are to come is not shown as a broken one.
        texts = [
            text if whole else text.rstrip(UNFINISHED) for text, whole in zip(self._texts(), self._whole, strict=True)
        ]
        self._grow(texts, list(self._whole))

    def end(self) -> None:
        """Nothing: `close` has the last word, also where generating was cut short."""

    def close(self) -> list[str]:
        """All that was said."""
        texts = self._texts()
        self._grow(texts, [True] * len(texts))
        return texts

    def _texts(self) -> list[str]:
        return [
            self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            for tokens in self._tokens
        ]


class _Stopped(StoppingCriteria):
    """Ends all answers when it is enough."""

    def __init__(self, stopped: Callable[[], bool]) -> None:
        self._stopped = stopped

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        return torch.full((len(input_ids),), self._stopped(), device=input_ids.device)
