"""A model that turns texts into vectors: the mean of its last hidden states, over all tokens or over the last ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pluralign.errors import InputError
from pluralign.models.base import find_model
from pluralign.progress import progress_bar

BATCH = 32
LAYERS = ("Transformer", "Pooling", "Normalize")
"""What a sentence-transformers model may be made of. Its vectors are not normalised here: what compares them does that,
or takes them as they are."""


def find_encoder(name: str, *, key: str, fix: str) -> Path:
    """Folder of a model.

    Args:
        name: folder or hub id.
        key: of the configuration that names it.
        fix: what the key may hold.

    Raises:
        InputError: there is no such model; the message names the key.
    """
    try:
        return find_model(name)
    except InputError as error:
        raise InputError(f"{key} is {name!r}: {error.found}", where=error.where, fix=fix) from error


class Encoder:
    """A transformers or sentence-transformers model whose vectors are means over tokens.

    Args:
        name: folder or hub id; weights in safetensors.
        device: where it runs.
        key: of the configuration that names it.
        fix: what the key may hold.

    Raises:
        InputError: it cannot be found or loaded, pools otherwise, or has layers behind the pooling.
    """

    def __init__(self, name: str, device: torch.device, *, key: str, fix: str) -> None:
        from transformers import AutoModel, AutoTokenizer

        folder = find_encoder(name, key=key, fix=fix)
        _check_layers(folder)
        options = {"local_files_only": True, "trust_remote_code": False}
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, **options)
            # Weights in a pickle are refused, as they are for the base.
            self.model: Any = AutoModel.from_pretrained(folder, use_safetensors=True, **options).to(device).eval()
        except (OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{key} is {name!r}, which cannot be loaded ({reason[:200]})", fix=fix) from None
        self.folder = folder

    @torch.no_grad()
    def of(self, texts: Sequence[str], heads: Sequence[str] | None = None) -> list[Tensor]:
        """A vector for each text, [D] float32 on the CPU.

        Args:
            texts: any.
                One that is too long for the model loses its beginning: what is asked or answered stands at the end.
            heads: how each text begins, where only the tokens behind that are pooled.
        """
        limit = int(getattr(self.model.config, "max_position_embeddings", 512))
        longest = min(int(self.tokenizer.model_max_length), limit)
        if heads is None:
            ids = [one[-longest:] for one in self.tokenizer(list(texts))["input_ids"]]
            counts = list(map(len, ids))
        else:
            pairs = [self._split(text, head, longest) for text, head in zip(texts, heads, strict=True)]
            ids, counts = [one for one, _ in pairs], [count for _, count in pairs]
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0

        def run(numbers: list[int]) -> Tensor:
            return pooled(self.model, [ids[n] for n in numbers], pad_id=pad, last=[counts[n] for n in numbers])

        return in_batches(list(map(len, ids)), run)

    def _split(self, text: str, head: str, longest: int) -> tuple[list[int], int]:
        """Tokens of a text, the last ones where there are too many, and how many of them lie behind the head."""
        found = self.tokenizer(text, return_offsets_mapping=True)
        ids: list[int] = found["input_ids"]
        # What is added at the end (an end token) has no place in the text, and is no part of it.
        behind = [place for place, (start, end) in enumerate(found["offset_mapping"]) if end > start >= len(head)]
        stop = behind[-1] + 1 if behind else len(ids)
        ids = ids[max(stop - longest, 0) : stop]
        return ids, min(len(behind), len(ids)) or len(ids)


def _check_layers(folder: Path) -> None:
    """Raise where a sentence-transformers model is not of the kind whose vectors are means over tokens."""
    listed = folder / "modules.json"
    for module in json.loads(listed.read_text(encoding="utf-8")) if listed.is_file() else []:
        layer = str(module["type"]).rsplit(".", 1)[-1]
        if layer not in LAYERS:
            found = f"the model has a layer {layer}, without which its vectors are others"
            raise InputError(found, where=str(listed), fix="Take a model of a transformer and a pooling.")
    path = folder / "1_Pooling" / "config.json"
    if path.is_file() and not json.loads(path.read_text(encoding="utf-8")).get("pooling_mode_mean_tokens", True):
        raise InputError("the model does not pool by the mean over tokens", where=str(path), fix="Take one that does.")


def in_batches(lengths: Sequence[int], run: Callable[[list[int]], Tensor]) -> list[Tensor]:
    """`run` on the numbers of batches of like length; its rows in the order of all."""
    found: list[Tensor] = [torch.empty(0)] * len(lengths)
    order = sorted(range(len(lengths)), key=lambda number: lengths[number])
    with progress_bar() as progress:
        task = progress.add_task("embeddings", total=len(lengths))
        for start in range(0, len(order), BATCH):
            numbers = order[start : start + BATCH]
            for number, vector in zip(numbers, run(numbers), strict=True):
                found[number] = vector.float().cpu()
            progress.advance(task, len(numbers))
    return found


def pooled(model: Any, batch: Sequence[Sequence[int]], *, pad_id: int, last: Sequence[int] | None = None) -> Tensor:
    """Means of the last hidden states, [batch, D] float32.

    Args:
        model: without a head.
        batch: token ids.
        pad_id: of the padding behind them.
        last: how many tokens at the end of each row are pooled; all by default.
    """
    width = max(map(len, batch))
    ids = torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in batch], device=model.device)
    lengths = torch.tensor([len(row) for row in batch], device=model.device)
    places = torch.arange(width, device=model.device)
    mask = places < lengths[:, None]
    states = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state.float()
    if last is not None:
        mask = mask & (places >= (lengths - torch.tensor(last, device=model.device))[:, None])
    summed: Tensor = (states * mask[:, :, None]).sum(dim=1)
    return summed / mask.sum(dim=1).clamp(min=1)[:, None]
