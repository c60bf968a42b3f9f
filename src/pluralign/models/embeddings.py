"""How alike prompts are: a vector for each, computed once per distinct prompt."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pluralign.errors import InputError
from pluralign.models.anchored_table import Anchored
from pluralign.models.base import Base
from pluralign.models.generation import evaluation_mode
from pluralign.models.masks import causal_lm
from pluralign.preferences.keys import text_key
from pluralign.preferences.schema import Text
from pluralign.progress import progress_bar

KEY = "loss.contrast.embeddings"
COLUMN = "column:"
BUCKETS = 512
"""Length of hashed vectors."""
NGRAMS = (3, 4, 5)
BATCH = 32


def prompt_embeddings(kind: str, rows: Sequence[Anchored], base: Base) -> list[Tensor]:
    """A vector for each row's prompt.

    Args:
        kind: as `loss.contrast.embeddings`.
        rows: with their tokens.
        base: with no adapter attached; asked for `hidden` only.

    Returns:
        [D] float32 each, on the CPU, the same D for all.

    Raises:
        InputError: a column that is not there or holds no vectors of one length, or a model that cannot be used.
    """
    if kind.startswith(COLUMN):
        return _of_column(kind.removeprefix(COLUMN), rows)
    keys = [text_key(row.preference.prompt) for row in rows]
    distinct = dict(zip(keys, rows, strict=True))
    if kind == "ngrams":
        found = [hashed_ngrams(_words(row.preference.prompt)) for row in distinct.values()]
    elif kind == "hidden":
        found = _hidden(base, [row.encoded.prompt_ids for row in distinct.values()])
    else:
        found = _encoded(kind, [_words(row.preference.prompt) for row in distinct.values()], base)
    known = dict(zip(distinct, found, strict=True))
    return [known[key] for key in keys]


def hashed_ngrams(text: str) -> Tensor:
    """A text's character n-grams, each counted in a bucket with a sign that its hash decides (Weinberger et al. 2009).

    Capitals and runs of spaces do not count.

    Returns:
        [BUCKETS] float32 of length 1; zeros of a text shorter than an n-gram.
    """
    plain = f" {' '.join(text.lower().split())} "
    vector = torch.zeros(BUCKETS)
    for length in NGRAMS:
        for start in range(len(plain) - length + 1):
            number = int.from_bytes(hashlib.blake2b(plain[start : start + length].encode(), digest_size=8).digest())
            vector[number % BUCKETS] += 1.0 if number >> 63 else -1.0
    return vector / vector.norm().clamp(min=torch.finfo(vector.dtype).tiny)


def _of_column(name: str, rows: Sequence[Anchored]) -> list[Tensor]:
    """Vectors that the table brings."""
    found: list[Tensor] = []
    for row in rows:
        cell, where = row.preference.columns.get(name), f"{row.preference.place}, column {name!r}"
        if not isinstance(cell, list) or not _is_vector(cell):
            raise InputError("it holds no vector", where=where, fix=f"{KEY} names a column of lists of numbers.")
        if found and len(cell) != len(found[0]):
            raise InputError(f"it holds {len(cell)} numbers, and others {len(found[0])}", where=where)
        found.append(torch.tensor(cell, dtype=torch.float32))
    return found


def _is_vector(cell: list[Any]) -> bool:
    return len(cell) > 0 and all(
        isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one) for one in cell
    )


def _words(prompt: Text) -> str:
    """The text of a prompt: of messages, their contents."""
    if isinstance(prompt, str):
        return prompt
    contents = [message.get("content") for message in prompt]
    return "\n".join(content if isinstance(content, str) else json.dumps(content) for content in contents if content)


@torch.no_grad()
def _hidden(base: Base, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
    """Mean of the last hidden states over a prompt's tokens."""
    model = causal_lm(base.model).base_model
    with evaluation_mode(base.model):
        return _in_batches(prompts, lambda batch: _pooled(model, batch, pad_id=base.tokenizer.pad_token_id))


@torch.no_grad()
def _encoded(name: str, texts: Sequence[str], base: Base) -> list[Tensor]:
    """Mean of the last hidden states of another model, as sentence-transformers pools by default."""
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModel.from_pretrained(name).to(base.device).eval()
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{KEY} is {name!r}, which cannot be loaded ({reason[:200]})",
            fix="It is ngrams, hidden, column:NAME, or the folder or hub id of a model.",
        ) from None
    _check_pooling(name)
    longest = min(int(tokenizer.model_max_length), int(getattr(model.config, "max_position_embeddings", 512)))
    ids = tokenizer(list(texts), truncation=True, max_length=longest)["input_ids"]
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    return _in_batches(ids, lambda batch: _pooled(model, batch, pad_id=pad))


def _check_pooling(name: str) -> None:
    """Raise where a sentence-transformers model is not of the kind whose vectors are means over tokens."""
    path = Path(name) / "1_Pooling" / "config.json"
    if path.is_file() and not json.loads(path.read_text(encoding="utf-8")).get("pooling_mode_mean_tokens", True):
        raise InputError("the model does not pool by the mean over tokens", where=str(path), fix="Take one that does.")


def _in_batches(sequences: Sequence[Sequence[int]], run: Any) -> list[Tensor]:
    """`run` on batches of like length; its rows in the order of the sequences."""
    found: list[Tensor] = [torch.empty(0)] * len(sequences)
    order = sorted(range(len(sequences)), key=lambda number: len(sequences[number]))
    with progress_bar() as progress:
        task = progress.add_task("embeddings", total=len(sequences))
        for start in range(0, len(order), BATCH):
            numbers = order[start : start + BATCH]
            for number, vector in zip(numbers, run([sequences[number] for number in numbers]), strict=True):
                found[number] = vector.float().cpu()
            progress.advance(task, len(numbers))
    return found


def _pooled(model: Any, batch: Sequence[Sequence[int]], *, pad_id: int) -> Tensor:
    width = max(map(len, batch))
    ids = torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in batch], device=model.device)
    lengths = torch.tensor([len(row) for row in batch], device=model.device)
    mask = torch.arange(width, device=model.device) < lengths[:, None]
    states = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state.float()
    summed: Tensor = (states * mask[:, :, None]).sum(dim=1)
    return summed / lengths.clamp(min=1)[:, None]
