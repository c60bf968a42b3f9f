"""The folder of a run: what it was made from, whether another run may use it, and where its parts stand."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from pluralign.config import TrainConfig
from pluralign.errors import InputError
from pluralign.preferences import folder_name
from pluralign.resolve import MADE_WITH, as_yaml, flat
from pluralign.storage import remove_staging, write_text
from pluralign.versions import versions

SCHEMA_VERSION = 1
CONFIG_FILE = "config.yaml"
_RESULTS = (CONFIG_FILE, "adapters", "model", "state", "metrics.jsonl", "evaluation.json")
_NOT_THE_RUN = ("output_dir", "overwrite", "device", "cache_dir", "training.report_to")
"""Keys that may differ between two calls of the same run: places, devices and who is told."""


class RunFolder:
    """An output folder and the places in it.

    Attributes:
        path: the folder.
        adapters: folders of finished people, and `index.json`.
        model: the fully trained model of `parameters.kind: full`.
        metrics: lines of metrics.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser().resolve()
        self.adapters = self.path / "adapters"
        self.model = self.path / "model"
        self.metrics = self.path / "metrics.jsonl"

    def result(self, user: str, kind: str) -> Path:
        """Where a person's finished adapter (or the one full model) stands."""
        return self.model if kind == "full" else self.adapters / folder_name(user)

    def state(self, user: str) -> Path:
        """Where a person in training has checkpoints."""
        return self.path / "state" / folder_name(user)

    def check(self, config: TrainConfig, data_hash: str) -> bool:
        """Whether the folder holds this very run already, to go on with.

        Raises:
            InputError: it holds another run, or results of unknown origin, and `overwrite` is not set.
        """
        place = next(folder for folder in (self.path, *self.path.parents) if folder.exists())
        if not place.is_dir():
            raise InputError("it is a file, not a folder", where=str(place), fix="Name another output_dir.")
        found = [name for name in _RESULTS if (self.path / name).exists()]
        if not found or (config.overwrite and CONFIG_FILE not in found):
            return False
        if CONFIG_FILE not in found:
            raise InputError(
                f"the folder has {', '.join(found)} and no {CONFIG_FILE}, so nothing says what run they are of",
                where=str(self.path),
                fix="Name another output_dir, or set --overwrite to replace them.",
            )
        there = _read(self.path / CONFIG_FILE)
        made_with = there.pop(MADE_WITH, None) or {}
        differing = _differing(flat(there), flat(asdict(config)))
        if made_with.get("data_hash") != data_hash:
            differing.append("the content of the data")
        if differing and not config.overwrite:
            raise InputError(
                f"the folder holds another run, which differs in {', '.join(differing)}",
                where=str(self.path),
                fix="Name another output_dir, or set --overwrite to replace it.",
            )
        return not differing

    def check_base(self, config: TrainConfig, base_fingerprint: str) -> bool:
        """Whether the run that is there, found the same by `check`, was begun on this very base.

        Raises:
            InputError: the weights behind the model's name have changed since, and `overwrite` is not set.
        """
        recorded = (_read(self.path / CONFIG_FILE).get(MADE_WITH) or {}).get("base_fingerprint")
        if recorded != base_fingerprint and not config.overwrite:
            raise InputError(
                f"the run was begun on a base with the fingerprint {str(recorded)[:12]}, and {config.model!r} now "
                f"has {base_fingerprint[:12]}",
                where=str(self.path),
                fix="Name another output_dir, bring the model back, or set --overwrite to begin anew.",
            )
        return bool(recorded == base_fingerprint)

    def claim(self, config: TrainConfig, *, data_hash: str, base_fingerprint: str, resume: bool) -> None:
        """Write `config.yaml` before anything else; another run's results are removed first."""
        path = self.path / CONFIG_FILE
        if resume:
            self._clean()
            return
        for name in _RESULTS:
            _remove(self.path / name)
        self._clean()
        made_with = {
            "schema_version": SCHEMA_VERSION,
            "data_hash": data_hash,
            "base_fingerprint": base_fingerprint,
            "versions": versions(),
        }
        text = as_yaml(config) + yaml.safe_dump({MADE_WITH: made_with}, sort_keys=False)
        write_text(path, text)

    def _clean(self) -> None:
        """Remove what killed writers left behind."""
        for folder in (self.path, self.adapters, self.path / "state"):
            remove_staging(folder)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"not a YAML file ({error})", where=str(path), fix="Name another output_dir.") from None
    if not isinstance(content, dict):
        raise InputError("holds no configuration", where=str(path), fix="Name another output_dir.")
    return content


def _differing(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    missing = object()
    keys = [*there, *(key for key in here if key not in there)]
    return [key for key in keys if key not in _NOT_THE_RUN and there.get(key, missing) != here.get(key, missing)]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
