"""How alike prompts are: a vector for each, computed once per distinct prompt."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pluralign.errors import InputError
from pluralign.models.anchored_table import Anchored
from pluralign.models.base import Base
from pluralign.models.cache import Cache
from pluralign.models.encoder import Encoder, find_encoder, in_batches, pooled
from pluralign.models.generation import evaluation_mode
from pluralign.models.given_references import fingerprint_of
from pluralign.models.masks import causal_lm
from pluralign.preferences.keys import text_key
from pluralign.preferences.schema import Text

KEY = "loss.contrast.embeddings"
COLUMN = "column:"
_FIX = "It is ngrams, hidden, column:NAME, or the folder or hub id of a model with weights in safetensors."
BUCKETS = 512
"""Length of hashed vectors."""
NGRAMS = (3, 4, 5)


class Embeddings:
    """Vectors of prompts, each made once: rows come some at a time, and prompts come again.

    Args:
        kind: as `loss.contrast.embeddings`.
        base: with no adapter attached while it is asked; for `hidden` only.
    """

    def __init__(self, kind: str, base: Base) -> None:
        self.kind, self.base = kind, base
        self._known: dict[str, Tensor] = {}
        self._size: int | None = None
        self._encoder: Encoder | None = None

    def of(self, rows: Sequence[Anchored]) -> list[Tensor]:
        """A vector for each row's prompt: [D] float32 on the CPU, the same D for all.

        Raises:
            InputError: a column that is not there or holds no vectors of one length, or a model that cannot be used.
        """
        if self.kind.startswith(COLUMN):
            return self._of_column(self.kind.removeprefix(COLUMN), rows)
        keys = [text_key(row.preference.prompt) for row in rows]
        new = {key: row for key, row in zip(keys, rows, strict=True) if key not in self._known}
        if new:
            self._known.update(zip(new, self._made(list(new.values())), strict=True))
        return [self._known[key] for key in keys]

    def _made(self, rows: Sequence[Anchored]) -> list[Tensor]:
        if self.kind == "ngrams":
            return [hashed_ngrams(_words(row.preference.prompt)) for row in rows]
        if self.kind == "hidden":
            return _hidden(self.base, [row.encoded.prompt_ids for row in rows])
        if self._encoder is None:
            self._encoder = Encoder(self.kind, self.base.device, key=KEY, fix=_FIX)
        return self._encoder.of([_words(row.preference.prompt) for row in rows])

    def _of_column(self, name: str, rows: Sequence[Anchored]) -> list[Tensor]:
        """Vectors that the table brings; zeros for a row without a side, which is in no contrast."""
        found: list[Tensor | None] = []
        for row in rows:
            preference = row.preference
            cell, where = preference.columns.get(name), f"{preference.place}, column {name!r}"
            if cell is None and preference.chosen is None and preference.rejected is None:
                found.append(None)
                continue
            if not isinstance(cell, list) or not _is_vector(cell):
                raise InputError("it holds no vector", where=where, fix=f"{KEY} names a column of lists of numbers.")
            self._size = self._size or len(cell)
            if len(cell) != self._size:
                raise InputError(f"it holds {len(cell)} numbers, and others {self._size}", where=where)
            found.append(torch.tensor(cell, dtype=torch.float32))
        return [torch.zeros(self._size or 1) if one is None else one for one in found]


def embedder_digest(kind: str, cache: Cache) -> str | None:
    """Hex digest of the model that embeds; None where it is not a model of its own.

    Raises:
        InputError: there is no such model.
    """
    if kind in ("ngrams", "hidden") or kind.startswith(COLUMN):
        return None
    return fingerprint_of(find_encoder(kind, key=KEY, fix=_FIX), cache)


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
    pad_id = base.tokenizer.pad_token_id
    with evaluation_mode(base.model):
        return in_batches(
            list(map(len, prompts)), lambda numbers: pooled(model, [prompts[n] for n in numbers], pad_id=pad_id)
        )
