"""A predictor as one `safetensors` file: its arrays, and a head in JSON with everything else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pluralign.config import EmbeddingConfig
from pluralign.errors import InputError
from pluralign.fewshot.calibration import Calibration
from pluralign.fewshot.fitting import Fitted
from pluralign.fewshot.kinds import KNOWN, NEW, Tastes
from pluralign.fewshot.lifting import Lift
from pluralign.fewshot.predictor import Predictor
from pluralign.fewshot.taste import Known, Scales, Taste
from pluralign.storage import staged_file

SCHEMA_VERSION = 5
_HEAD = "pluralign"
_FIX = "It is a file that `pluralign fewshot fit` wrote."
_DIGEST = 32
"""Bytes of a question's key."""
_KNOWN = ("mean", "unsure", "shares", "directions")
_LIFT = ("middle", "marks", "weights")
"""Arrays of a taste that has a lift, behind `lift.`."""
_MODULE = "module."


def save_predictor(predictor: Predictor, path: str | Path) -> None:
    """Write a predictor, whole or not at all."""
    head: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "embeddings": asdict(predictor.embeddings),
        "fingerprint": predictor.fingerprint,
        "groups": predictor.groups,
        "config": dict(predictor.config),
    }
    fitted = predictor.fitted
    if isinstance(fitted, Fitted):
        arrays, kinds = _tastes_arrays(fitted.tastes, sorted(predictor.seen))
        intervals = asdict(fitted.calibration) if fitted.calibration else None
        head |= {"predictor": "taste", "tastes": kinds, "intervals": intervals}
        # JSON has no NaN.
        head["alignment"] = None if np.isnan(fitted.alignment) else fitted.alignment
    else:
        arrays = {f"{_MODULE}{name}": value.numpy() for name, value in fitted.module.state_dict().items()}
        head |= {"predictor": "gpo", "module": asdict(fitted.module.config), "step": fitted.step}
        head |= {"trace": fitted.trace}
    keys = b"".join(map(bytes.fromhex, sorted(predictor.seen)))
    arrays["questions"] = np.frombuffer(keys, np.uint8).reshape(-1, _DIGEST)
    with staged_file(path) as staging:
        save_file(arrays, staging, {_HEAD: json.dumps(head)})


def load_predictor(path: str | Path) -> Predictor:
    """Read a predictor.

    Raises:
        InputError: there is no such file, or it is another one.
    """
    head, arrays = _read(Path(path))
    try:
        seen = [bytes(row).hex() for row in arrays["questions"]]
        fitted = _fitted(head, arrays, seen) if head["predictor"] == "taste" else _module(head, arrays)
        embeddings = EmbeddingConfig(**head["embeddings"])
        return Predictor(embeddings, head["fingerprint"], fitted, frozenset(seen), head["groups"], head["config"])
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise InputError(
            f"something in it is not there, or not of its form ({reason})", where=str(path), fix=_FIX
        ) from None


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    if not path.is_file():
        raise InputError("there is no such file", where=str(path), fix=_FIX)
    try:
        with safe_open(path, "numpy") as file:
            head = json.loads((file.metadata() or {}).get(_HEAD, "{}"))
            arrays = {name: file.get_tensor(name) for name in list(file.keys())}
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise InputError(f"cannot be read ({error})", where=str(path), fix=_FIX) from None
    head = head if isinstance(head, dict) else {}
    if head.get("schema_version") != SCHEMA_VERSION:
        found = f"its schema version is {head.get('schema_version')}, and this program reads {SCHEMA_VERSION}"
        raise InputError(found, where=str(path), fix=f"{_FIX} Of another version: fit again.")
    return head, arrays


def _tastes_arrays(tastes: Tastes, seen: list[str]) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
    """Arrays with the kind of question in front of their names, and the rest; a taste for both kinds is there once."""
    arrays: dict[str, np.ndarray] = {}
    heads: dict[str, dict[str, Any]] = {}
    for kind, taste in ((KNOWN, tastes.known), (NEW, tastes.new)):
        if kind == NEW and tastes.new is tastes.known:
            break
        heads[kind] = {"scales": asdict(taste.scales), "sharpness": dict(taste.sharpness)}
        arrays |= {f"{kind}.{name}": value for name, value in _taste_arrays(taste, seen).items()}
    return arrays, heads


def _taste_arrays(taste: Taste, seen: list[str]) -> dict[str, np.ndarray]:
    known = [taste.known[key] for key in seen]
    starts = np.cumsum([0, *(len(one.mean) for one in known)])
    arrays = {name: np.concatenate([getattr(one, name) for one in known]) for name in _KNOWN}
    weights = {"mean_weights": taste.mean_weights, "direction_weights": taste.direction_weights}
    if taste.lift is not None:
        weights |= {f"lift.{name}": getattr(taste.lift, name) for name in _LIFT}
    return {"starts": starts, **arrays, **{name: np.ascontiguousarray(value) for name, value in weights.items()}}


def _fitted(head: Mapping[str, Any], arrays: Mapping[str, np.ndarray], seen: list[str]) -> Fitted:
    tastes = {kind: _taste(kind, one, arrays, seen) for kind, one in head["tastes"].items()}
    calibration = None if head["intervals"] is None else _calibration(**head["intervals"])
    alignment = float("nan") if head["alignment"] is None else head["alignment"]
    return Fitted(Tastes(tastes[KNOWN], tastes.get(NEW, tastes[KNOWN])), calibration, alignment)


def _taste(kind: str, head: Mapping[str, Any], arrays: Mapping[str, np.ndarray], seen: list[str]) -> Taste:
    starts = arrays[f"{kind}.starts"]
    known = {
        key: Known(**{name: arrays[f"{kind}.{name}"][starts[number] : starts[number + 1]] for name in _KNOWN})
        for number, key in enumerate(seen)
    }
    weights = arrays[f"{kind}.mean_weights"], arrays[f"{kind}.direction_weights"]
    # Keys of JSON are text.
    sharpness = {int(read): float(power) for read, power in head["sharpness"].items()}
    lifted = [arrays[f"{kind}.lift.{name}"] for name in _LIFT if f"{kind}.lift.{name}" in arrays]
    return Taste(Scales(**head["scales"]), known, *weights, sharpness, Lift(*lifted) if lifted else None)


def _calibration(factors: Mapping[str, Mapping[str, Mapping[str, float]]], shapes: Mapping[str, float]) -> Calibration:
    # Keys of JSON are text.
    numbered = {
        kind: {int(size): {float(level): one for level, one in some.items()} for size, some in by_size.items()}
        for kind, by_size in factors.items()
    }
    return Calibration(numbered, shapes)


def _module(head: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Any:
    import torch

    from pluralign.fewshot.episodes import TrainedModule
    from pluralign.fewshot.module import ModuleConfig, PreferenceModule

    module = PreferenceModule(ModuleConfig(**head["module"])).eval()
    named = {name.removeprefix(_MODULE): value for name, value in arrays.items() if name.startswith(_MODULE)}
    module.load_state_dict({name: torch.tensor(value) for name, value in named.items()})
    trace = tuple((int(step), float(value)) for step, value in head["trace"])
    best = max((value for _, value in trace), default=float("nan"))
    return TrainedModule(module, head["step"], best, trace)
