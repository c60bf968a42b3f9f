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
from pluralign.models.base import Base, find_model
from pluralign.models.cache import Cache
from pluralign.models.generation import evaluation_mode
from pluralign.models.given_references import fingerprint_of
from pluralign.models.masks import causal_lm
from pluralign.preferences.keys import text_key
from pluralign.preferences.schema import Text
from pluralign.progress import progress_bar

KEY = "loss.contrast.embeddings"
COLUMN = "column:"
_FIX = "It is ngrams, hidden, column:NAME, or the folder or hub id of a model with weights in safetensors."
BUCKETS = 512
"""Length of hashed vectors."""
NGRAMS = (3, 4, 5)
BATCH = 32


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
        self._encoder: _Encoder | None = None

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
            self._encoder = _Encoder(self.kind, self.base.device)
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
    return fingerprint_of(_found(kind), cache)


def _found(name: str) -> Path:
    try:
        return find_model(name)
    except InputError as error:
        raise InputError(f"{KEY} is {name!r}: {error.found}", where=error.where, fix=_FIX) from error


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
    with evaluation_mode(base.model):
        return _in_batches(prompts, lambda batch: _pooled(model, batch, pad_id=base.tokenizer.pad_token_id))


class _Encoder:
    """Another model: mean of its last hidden states, as sentence-transformers pools by default."""

    def __init__(self, name: str, device: torch.device) -> None:
        from transformers import AutoModel, AutoTokenizer

        folder = _found(name)
        _check_pooling(folder)
        options = {"local_files_only": True, "trust_remote_code": False}
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, **options)
            # Weights in a pickle are refused, as they are for the base.
            self.model: Any = AutoModel.from_pretrained(folder, use_safetensors=True, **options).to(device).eval()
        except (OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{KEY} is {name!r}, which cannot be loaded ({reason[:200]})", fix=_FIX) from None

    @torch.no_grad()
    def of(self, texts: Sequence[str]) -> list[Tensor]:
        limit = int(getattr(self.model.config, "max_position_embeddings", 512))
        longest = min(int(self.tokenizer.model_max_length), limit)
        ids = self.tokenizer(list(texts), truncation=True, max_length=longest)["input_ids"]
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
        return _in_batches(ids, lambda batch: _pooled(self.model, batch, pad_id=pad))


def _check_pooling(folder: Path) -> None:
    """Raise where a sentence-transformers model is not of the kind whose vectors are means over tokens."""
    path = folder / "1_Pooling" / "config.json"
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
