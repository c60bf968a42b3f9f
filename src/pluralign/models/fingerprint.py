"""What a model and a tokenizer are, as a hash of their content: what the cache and the adapters are bound to."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from pluralign.errors import InputError
from pluralign.storage import read_json, sha256_of_file, sha256_of_json, write_json

VOLATILE_KEYS = ("dtype", "torch_dtype", "transformers_version", "_name_or_path", "_attn_implementation", "use_cache")
"""Keys of `config.json` that say how a model was saved, not what it is."""

MEMO = "fingerprints.json"


def folder_fingerprint(folder: Path, weights: list[Path], cache_dir: Path) -> str:
    """Hex digest of a model folder: its weight files and its `config.json` without volatile keys.

    The dtype it is loaded in makes no difference. Digests of files are remembered in the cache folder by path, size and
    time of change, so that large weights are read once.

    Args:
        folder: with a `config.json`.
        weights: the safetensors files.
        cache_dir: where digests are remembered; one that cannot be written costs time only.
    """
    config = _stable(read_json(folder / "config.json"))
    files = {path.name: _remembered_digest(path, cache_dir / MEMO) for path in sorted(weights)}
    return sha256_of_json({"config": config, "weights": files})


def model_fingerprint(model: Any) -> str:
    """Hex digest of a model in memory: names, types, shapes and bytes of its state, and its configuration."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(memoryview(raw.numpy()))
    config = json.loads(json.dumps(_stable(model.config.to_dict()), default=str))
    return sha256_of_json({"config": config, "weights": digest.hexdigest()})


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Hex digest of a tokenizer: its vocabulary and rules, its chat template, its special tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    # Truncation and padding are switched on and off by whoever used the tokenizer last; they are no part of it.
    rules = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
    if backend is not None:
        rules = {key: value for key, value in rules.items() if key not in ("truncation", "padding")}
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if name != "pad_token"}
    return sha256_of_json(
        {
            "rules": rules,
            "chat_template": tokenizer.chat_template,
            "special": special,
            # Tokenizers without rules of their own in a file differ in what they make of a text.
            "sample": tokenizer("Ab 1,\n\u00e9 \U0001f600")["input_ids"],
        }
    )


def _stable(config: Any) -> Any:
    """A configuration without volatile keys, in its parts too."""
    if not isinstance(config, dict):
        return config
    return {key: _stable(value) for key, value in config.items() if key not in VOLATILE_KEYS}


def _remembered_digest(path: Path, memo: Path) -> str:
    path = path.resolve()
    status = path.stat()
    stamp = [status.st_size, status.st_mtime_ns]
    remembered = _read_memo(memo)
    entry = remembered.get(str(path))
    if isinstance(entry, dict) and entry.get("stamp") == stamp and isinstance(entry.get("sha256"), str):
        return str(entry["sha256"])
    digest = sha256_of_file(path)
    remembered[str(path)] = {"stamp": stamp, "sha256": digest}
    # The memo only saves time: a cache that cannot be written is no reason to stop.
    with contextlib.suppress(OSError):
        write_json(memo, remembered)
    return digest


def _read_memo(memo: Path) -> dict[str, Any]:
    try:
        remembered = read_json(memo)
    except (InputError, OSError):
        return {}
    return remembered if isinstance(remembered, dict) else {}
