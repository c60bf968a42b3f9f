"""Whether a model can run all responses to a prompt in one row, found out by running both ways."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pluralign.models.encoding import Encoded
from pluralign.models.generation import evaluation_mode
from pluralign.models.logprobs import response_logits, token_logps
from pluralign.models.masks import UnsupportedLayersError, causal_lm
from pluralign.models.rows import Layout, collate

_BRANCHES = ("first", "second", "third")
_CHECKED_REACH = 8
_LONGEST_REACH = 1024

TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""Mean difference of a token's log-prob, nats, that passes for rounding.

Measured on tiny random models of sixteen kinds: at most 3.3e-7 in float32, 5.3e-4 in float16 and 2.1e-3 in bfloat16,
against 3.4e-2 and more with a window that is one position too long, and 5.6e-2 with responses that see each other.
"""


def choose_layout(model: nn.Module, tokenizer: Any = None) -> Layout:
    """`shared` where a row of several responses gives the log-probs of separate rows, else `separate`, with a warning.

    Both ways run on random tokens, in rows several times longer than the model's window. A window (or chunk) of more
    than 8 positions is set to 8 in the configuration for the time of the check: the model builds its own masks from
    there in every forward, and so do we. A model that fails so is given a second chance at its true reach where that is
    at most 1024.

    Args:
        model: a causal language model, wrapped or not; its mode and the random state stay as they are.
        tokenizer: not needed; taken so that a caller may pass what belongs to the model.
    """
    lm = causal_lm(model)
    try:
        with _short_reach(lm.config.get_text_config()):
            difference, bound = _compare(model, _CHECKED_REACH)
        reach = _reach(lm.config.get_text_config())
        if difference > bound and reach is not None and _CHECKED_REACH < reach <= _LONGEST_REACH:
            difference, bound = _compare(model, reach)
    except torch.OutOfMemoryError:
        raise
    # Whatever an unknown architecture makes of a mask that it did not expect.
    except (UnsupportedLayersError, TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
        return _fall_back(lm, str(error).splitlines()[0])
    # Asked this way round, a difference that is not a number fails.
    if difference <= bound:
        return "shared"
    return _fall_back(
        lm, f"a token's log-prob differs by {difference:.1e} nats on average from that in a row of its own"
    )


def _fall_back(lm: Any, reason: str) -> Layout:
    warnings.warn(
        f"{lm.config.model_type}: a row cannot hold several responses ({reason}); every response gets a "
        "row of its own, which is slower and otherwise the same",
        stacklevel=3,
    )
    return "separate"


@torch.no_grad()
def _compare(model: nn.Module, reach: int) -> tuple[float, float]:
    """Mean difference of a token's log-prob between a shared row and a row of its own, and the bound it must keep."""
    encoded = _random_examples(causal_lm(model), reach)
    with evaluation_mode(model):
        shared = _logps(model, encoded, "shared")
        separate = _logps(model, encoded, "separate")
        alone = torch.cat([_logps(model, [example], "separate") for example in _apart(encoded)])
    # Two ways of running separate rows, both right, show what rounding alone does in this model on this machine.
    noise = (separate - alone).abs().mean().item()
    difference = (shared - alone).abs().mean().item()
    return difference, max(TOLERANCE.get(causal_lm(model).dtype, 1e-2), 4 * noise)


def _logps(model: nn.Module, encoded: list[Encoded], layout: Layout) -> Tensor:
    batch = collate(encoded, pad_id=0, branches=_BRANCHES, layout=layout).to(causal_lm(model).device)
    return token_logps(response_logits(model, batch), batch.labels)


def _apart(encoded: list[Encoded]) -> list[Encoded]:
    return [Encoded(one.prompt_ids, {name: ids}) for one in encoded for name, ids in one.response_ids.items()]


def _random_examples(lm: Any, reach: int) -> list[Encoded]:
    """Two prompts with three responses each, unequal and longer than the window, within parts and across them."""
    # The middle of a vocabulary: special tokens stand at its ends, and some (images) ask for more than themselves.
    size = lm.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)

    def draw(length: int) -> list[int]:
        return torch.randint(size // 8, max(size // 2, size // 8 + 1), (length,), generator=generator).tolist()

    return [
        Encoded(draw(reach + 5), {"first": draw(reach + 3), "second": draw(7), "third": draw(reach + 9)}),
        Encoded(draw(3), {"first": draw(5), "second": draw(reach + 6), "third": draw(2)}),
    ]


def _reach(config: Any) -> int | None:
    reaches = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return max((reach for reach in reaches if isinstance(reach, int)), default=None)


@contextlib.contextmanager
def _short_reach(config: Any) -> Iterator[None]:
    """Windows and chunks cut to a few positions, so that short rows go beyond them."""
    kept = {
        name: value
        for name in ("sliding_window", "attention_chunk_size")
        if isinstance(value := getattr(config, name, None), int) and value > _CHECKED_REACH
    }
    try:
        for name in kept:
            setattr(config, name, _CHECKED_REACH)
        yield
    finally:
        for name, value in kept.items():
            setattr(config, name, value)
