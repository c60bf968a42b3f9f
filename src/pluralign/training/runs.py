"""The folder of a run: what it was made from, whether another run may use it, and where its parts stand."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from pluralign.config import TrainConfig
from pluralign.errors import InputError
from pluralign.preferences import folder_name
from pluralign.resolve import MADE_WITH, as_yaml, flat
from pluralign.storage import (
    STAGING_PREFIX,
    read_json,
    remove_staging,
    sha256_of_file,
    write_bytes,
    write_json,
    write_text,
)
from pluralign.training.index import index_path, read_index
from pluralign.training.lock import locked
from pluralign.training.shares import Share
from pluralign.versions import versions

SCHEMA_VERSION = 1
CONFIG_FILE = "config.yaml"
UNFINISHED_FILE = "unfinished.json"
CALLS_FILE = "calls.json"
ONLINE_FILE, PHASES = "online.yaml", "phases"
WIN_RATES = "winrate"
"""Folder of win rates, with the answers and verdicts behind them."""
_MADE = ("adapters", "model", "state", PHASES, "metrics.jsonl", "evaluation.json", CALLS_FILE, WIN_RATES)
_RESULTS = (CONFIG_FILE, ONLINE_FILE, UNFINISHED_FILE, *_MADE)
_NOT_THE_RUN = ("output_dir", "overwrite", "update", "plan", "device", "cache_dir", "training.report_to")
"""Keys that may differ between two calls of the same run: places, devices, who is told, who is trained again."""
_WHERE_THE_DATA_IS = ("data.path", "data.source", "data.split", "data.revision", "anchor.base.prompts")
"""Keys that may differ between two calls on one population, whose table moves and grows."""
_HOW_IT_IS_TRAINED = ("engine", "bank.slots", "bank.batch_tokens")
"""Keys that make the same adapters up to rounding: a finished population may grow with others, what is begun not."""
CONTENTS = {
    "anchor.base.prompts": "anchor_prompts_hash",
    "parameters.start": "start_hash",
    "loss.contrast.embeddings": "embeddings_hash",
    "reference.models": "references_hash",
    "pairs.prompts": "prompts_hash",
    "pairs.ensemble": "ensemble_hash",
}
"""Key of the configuration that names files -> under which name a run's `made_with` has the hash of their content."""


class Standing(Enum):
    """What a folder is to a run that is given it."""

    NEW = "nothing is there, or what is there is to be replaced"
    SAME = "this very run, finished or not"
    GROWN = "a finished run of the same configuration, on another table"


@dataclass
class Unfinished:
    """What a call has begun and not finished; its file is there as long as that is so.

    Attributes:
        data_hash: of the table that it works on.
        update: people to train anew -> stamp of the adapter that is to be replaced, empty where there was none.
    """

    data_hash: str
    update: dict[str, str] = field(default_factory=dict)


class RunFolder:
    """An output folder and the places in it.

    Attributes:
        path: the folder.
        adapters: folders of finished people, and `index.json`.
        model: the fully trained model of `parameters.kind: full`.
        metrics: lines of metrics.
        evaluation: the evaluation of everybody.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser().resolve()
        self.adapters = self.path / "adapters"
        self.model = self.path / "model"
        self.metrics = self.path / "metrics.jsonl"
        self.evaluation = self.path / "evaluation.json"

    # -- places ---------------------------------------------------------------------------------------------------

    def result(self, user: str, kind: str) -> Path:
        """Where a person's finished adapter (or the one full model) stands."""
        return self.model if kind == "full" else self.adapters / folder_name(user)

    @property
    def is_bare(self) -> bool:
        """Whether nothing has been made here yet, whatever was noted of what is begun."""
        return not any((self.path / name).exists() for name in _MADE)

    def state(self, user: str) -> Path:
        """Where a person in training has checkpoints."""
        return self.path / "state" / folder_name(user)

    def stamp(self, user: str, kind: str) -> str:
        """What tells a person's adapter from the one that replaces it; empty where there is none."""
        names = ("adapter_model.safetensors", "pluralign.json")
        files = (self.result(user, kind) / name for name in names)
        return next((sha256_of_file(file) for file in files if file.is_file()), "")

    def share(self, share: Share) -> RunFolder:
        """The folder for one of several workers: its lines of metrics stand by themselves until they are gathered."""
        own = copy.copy(self)
        if share.count > 1:
            own.metrics = self.path / "state" / f"@metrics-{share.index}-of-{share.count}.jsonl"
            own.metrics.parent.mkdir(parents=True, exist_ok=True)
        return own

    # -- who may use it -------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def locked(self, command: str) -> Iterator[None]:
        """Hold the folder against other processes that write to it, for the time of the block.

        Raises:
            InputError: another one is at work on it.
        """
        self._check_place()
        with locked(self.path, command=command):
            yield

    def check(self, config: TrainConfig, data_hash: str) -> Standing:
        """What the folder is to a run.

        Raises:
            InputError: it holds another run, or results of unknown origin, and `overwrite` is not set.
        """
        self._check_place()
        found = [name for name in _RESULTS if (self.path / name).exists()]
        if not found or (config.overwrite and CONFIG_FILE not in found):
            return Standing.NEW
        if CONFIG_FILE not in found:
            raise InputError(
                f"the folder has {', '.join(found)} and no {CONFIG_FILE}, so nothing says what run they are of",
                where=str(self.path),
                fix="Name another output_dir, or set --overwrite to replace them.",
            )
        there = _read(self.path / CONFIG_FILE)
        made_with = there.pop(MADE_WITH, None) or {}
        finished, begun = self.is_finished(config.parameters.kind), self.unfinished()
        there, here = _keys(there), _keys(asdict(config))
        differing = _differing(there, here, movable=finished or begun is not None, finished=finished)
        if (begun.data_hash if begun else made_with.get("data_hash")) != data_hash:
            if finished and not differing and not config.overwrite:
                return Standing.GROWN
            differing.append("the content of the data")
        if differing and not config.overwrite:
            if set(differing) <= {*_HOW_IT_IS_TRAINED}:
                raise InputError(
                    f"the run is not finished, and was begun with {_named(there, differing)}",
                    where=str(self.path),
                    fix=f"Go on with that; {', '.join(differing)} may be another once it is finished.",
                )
            fix = "Name another output_dir, or set --overwrite to replace it."
            if not finished:
                fix = f"It is not finished, and goes on with what it was begun with only. {fix}"
            raise InputError(
                f"the folder holds another run, which differs in {', '.join(differing)}", where=str(self.path), fix=fix
            )
        return Standing.NEW if differing else Standing.SAME

    def check_base(self, config: TrainConfig, base_fingerprint: str) -> bool:
        """Whether the run that is there, found the same by `check`, was begun on this very base.

        Raises:
            InputError: the weights behind the model's name have changed since, and `overwrite` is not set.
        """
        recorded = self.made_with().get("base_fingerprint")
        if recorded != base_fingerprint and not config.overwrite:
            raise InputError(
                f"the run was begun on a base with the fingerprint {str(recorded)[:12]}, and {config.model!r} now "
                f"has {base_fingerprint[:12]}",
                where=str(self.path),
                fix="Name another output_dir, bring the model back, or set --overwrite to begin anew.",
            )
        return bool(recorded == base_fingerprint)

    def check_contents(self, config: TrainConfig, digests: Mapping[str, str | None]) -> bool:
        """Whether the run that is there, found the same by `check`, was made from the same files beside its table.

        Args:
            config: of the call.
            digests: key of the configuration that names files -> of their content, None where there are none.

        Raises:
            InputError: one has changed, and `overwrite` is not set.
        """
        recorded = self.made_with()
        differing = [key for key, digest in digests.items() if recorded.get(CONTENTS[key]) != digest]
        if differing and not config.overwrite:
            raise InputError(
                f"the folder holds another run, which differs in the content of {', '.join(differing)}",
                where=str(self.path),
                fix="Name another output_dir, bring the files back, or set --overwrite to begin anew.",
            )
        return not differing

    def is_finished(self, kind: str) -> bool:
        """Whether everybody of the run's table is decided; one that an older version left is known by its parts."""
        if (self.path / UNFINISHED_FILE).exists() or (self.path / "state").exists():
            return False
        if kind == "full":
            return self.model.is_dir()
        if not index_path(self.path).exists():
            return False
        indexed = set(read_index(self.path).people.values())
        with os.scandir(self.adapters) as entries:
            folders = {entry.name for entry in entries if entry.is_dir()}
        return all(name in indexed for name in folders if not name.startswith(STAGING_PREFIX))

    def unfinished(self) -> Unfinished | None:
        """What a call has begun and not finished, if any.

        Raises:
            InputError: the file that says so cannot be read.
        """
        path = self.path / UNFINISHED_FILE
        if not path.exists():
            return None
        content = read_json(path)
        if not isinstance(content, dict) or not isinstance(content.get("update"), dict):
            raise InputError("it does not say what was begun", where=str(path), fix="Begin anew with --overwrite.")
        return Unfinished(str(content.get("data_hash")), content["update"])

    def made_with(self) -> dict[str, Any]:
        """What the run was made with: hashes of data and anchoring prompts, the base's fingerprint, versions."""
        return _read(self.path / CONFIG_FILE).get(MADE_WITH) or {}

    # -- metrics --------------------------------------------------------------------------------------------------

    def keep_metrics(self, last: Mapping[str, int]) -> None:
        """Drop the lines of steps that will be made again.

        Args:
            last: person -> last step that will not be; of others every line is kept.
        """
        if not self.metrics.exists():
            return
        kept: dict[bytes, None] = {}
        content = self.metrics.read_bytes()
        for line in content.split(b"\n"):
            with contextlib.suppress(ValueError):  # the torn end of a line that a kill cut off
                read = json.loads(line)
                if read["step"] <= last.get(read["user"], read["step"]):
                    kept[line] = None
        remaining = b"".join(line + b"\n" for line in kept)
        if remaining != content:
            write_bytes(self.metrics, remaining)

    def gather_metrics(self) -> None:
        """Put the lines of all workers into the one file; after a kill in between, again to the same end."""
        parts = sorted(self.path.glob("state/@metrics-*"))
        files = [path for path in (self.metrics, *parts) if path.exists()]
        if parts:
            lines = dict.fromkeys(line for path in files for line in path.read_bytes().split(b"\n") if line)
            write_bytes(self.metrics, b"".join(line + b"\n" for line in lines))
        for path in parts:
            path.unlink()

    # -- begin and end --------------------------------------------------------------------------------------------

    def begin(
        self,
        config: TrainConfig,
        work: Unfinished,
        *,
        base_fingerprint: str,
        standing: Standing,
        contents: Mapping[str, str | None],
    ) -> None:
        """Note what is begun, before anything is trained; results of another run are removed first."""
        if standing is Standing.NEW:
            for name in _RESULTS:
                _remove(self.path / name)
        self.clean()
        if standing is Standing.NEW:
            made_with = {
                "schema_version": SCHEMA_VERSION,
                "data_hash": work.data_hash,
                "base_fingerprint": base_fingerprint,
                "versions": versions(),
            }
            made_with |= {CONTENTS[key]: digest for key, digest in contents.items() if digest is not None}
            self._write_config(config, made_with)
        else:
            self._take_over_engine(config)
        if self.unfinished() != work:
            self.note(work)

    def note(self, work: Unfinished) -> None:
        """Write down what is begun."""
        write_json(self.path / UNFINISHED_FILE, {"schema_version": SCHEMA_VERSION, **asdict(work)})

    def end(self, config: TrainConfig, data_hash: str) -> None:
        """Note that all is done, and on which table; those it was on before are kept as `earlier_data`."""
        there = _read(self.path / CONFIG_FILE)
        made_with = there.pop(MADE_WITH, None) or {}
        moved = _differing(_keys(there), _keys(asdict(config)), movable=False, finished=True)
        if (earlier := made_with.get("data_hash")) != data_hash:
            made_with |= {"data_hash": data_hash, "earlier_data": [*made_with.get("earlier_data", []), earlier]}
            moved.append("the content of the data")
        if moved:
            self._write_config(config, made_with)
        # What is killed here leaves no adapter without its checkpoint and no folder that looks finished too early.
        shutil.rmtree(self.path / "state", ignore_errors=True)
        (self.path / UNFINISHED_FILE).unlink(missing_ok=True)

    def clean(self) -> None:
        """Remove what killed writers left behind."""
        for folder in (self.path, self.adapters, self.path / "state", self.path / "tensorboard"):
            remove_staging(folder)

    def _write_config(self, config: TrainConfig, made_with: dict[str, Any]) -> None:
        text = as_yaml(replace(config, update=[])) + yaml.safe_dump({MADE_WITH: made_with}, sort_keys=False)
        write_text(self.path / CONFIG_FILE, text)

    def _take_over_engine(self, config: TrainConfig) -> None:
        """Say what those who are trained now are trained by: should it be killed, it goes on with that."""
        there = _read(self.path / CONFIG_FILE)
        now = {"engine": config.engine, "bank": asdict(config.bank)}
        if any(there.get(key) != value for key, value in now.items()):
            write_text(self.path / CONFIG_FILE, yaml.safe_dump({**there, **now}, sort_keys=False, allow_unicode=True))

    def _check_place(self) -> None:
        place = next(folder for folder in (self.path, *self.path.parents) if folder.exists())
        if not place.is_dir():
            raise InputError("it is a file, not a folder", where=str(place), fix="Name another output_dir.")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"not a YAML file ({error})", where=str(path), fix="Name another output_dir.") from None
    if not isinstance(content, dict):
        raise InputError("holds no configuration", where=str(path), fix="Name another output_dir.")
    return content


def _keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys with their values; a dictionary of the user's own (`training.extra_arguments`) is one value."""
    return flat(values, flat(asdict(TrainConfig())))


def _differing(there: dict[str, Any], here: dict[str, Any], *, movable: bool, finished: bool) -> list[str]:
    """Keys that make two runs; a key that an older version did not know had its default.

    Args:
        there: of the folder.
        here: of the call.
        movable: whether the table may stand elsewhere.
        finished: whether nothing is half done, so that it may be gone on with another engine.
    """
    there = {**_keys(asdict(TrainConfig())), **there}
    missing = object()
    keys = [key for key in dict.fromkeys((*there, *here)) if there.get(key, missing) != here.get(key, missing)]
    same = {*_NOT_THE_RUN, *(_WHERE_THE_DATA_IS if movable else ()), *(_HOW_IT_IS_TRAINED if finished else ())}
    if movable and isinstance(there.get("data.validation"), str) and isinstance(here.get("data.validation"), str):
        same.add("data.validation")
    return [key for key in keys if key not in same]


def _named(values: dict[str, Any], keys: Sequence[str]) -> str:
    """Keys with their values, in words; one that an older version did not know had its default."""
    known = {**_keys(asdict(TrainConfig())), **values}
    return ", ".join(f"{key} {'of its own choice' if known[key] is None else known[key]}" for key in keys)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
