"""References that are given: what each name stands for, and how likely adapters find the responses of rows.

Whoever speaks is cached by content as the base is, each in a section of its own; an adapter's is that of its base and
its weights. Models of their own are in `given_models.py`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pluralign.config import ModelConfig, ReferenceConfig
from pluralign.errors import InputError
from pluralign.models.adapters import CONFIG_FILE, adapter_digest, detach_adapter, load_adapter
from pluralign.models.base import Base, find_model
from pluralign.models.cache import Cache, Section
from pluralign.models.encoding import Encoded
from pluralign.models.fingerprint import folder_fingerprint
from pluralign.models.generation import evaluation_mode
from pluralign.models.references import content_key, logps_section
from pluralign.models.rows import Layout
from pluralign.models.scoring import Forward, Request, iterate_scores
from pluralign.preferences.schema import Preference
from pluralign.progress import progress_bar
from pluralign.storage import sha256_of_json

BASE = "base"
"""Name of the run's own base among references, and of the branch that always keeps its word."""

Compute = Callable[[Mapping[Request, str]], dict[Request, float]]
"""Computes the log-probs that the cache lacks."""


@dataclass(frozen=True, slots=True)
class GivenReference:
    """One of `reference.models`.

    Attributes:
        number: its place there, from 0.
        name: as it was given.
        kind: the run's own base, an adapter on it, or a model of its own.
        folder: where its files are; None for the base.
    """

    number: int
    name: str
    kind: Literal["base", "adapter", "model"]
    folder: Path | None = None

    @property
    def where(self) -> str:
        """What messages call it."""
        return f"reference.models[{self.number}] ({self.name})"

    @property
    def place(self) -> Path:
        """The folder, of one that has one."""
        assert self.folder is not None
        return self.folder


def find_references(config: ReferenceConfig, model: ModelConfig) -> list[GivenReference]:
    """Find out what each name stands for; hub models are downloaded, nothing is loaded.

    A folder with an `adapter_config.json` is an adapter; the run's own model, by whatever name, is the base.

    Raises:
        InputError: naming the reference: there is no such model, or its folder is neither a model's nor an adapter's.
    """
    return [_find(number, name, model) for number, name in enumerate(config.models)]


def references_hash(references: Sequence[GivenReference], cache: Cache) -> str:
    """Hex digest of what the references are: another one where a file of theirs has changed under the same name."""
    parts: list[str] = []
    for reference in references:
        with naming(reference):
            if reference.kind == "base":
                parts.append(BASE)
            elif reference.kind == "adapter":
                parts.append(adapter_digest(reference.place))
            else:
                parts.append(fingerprint_of(reference.place, cache))
    return sha256_of_json(parts)


def check_adapters(base: Base, references: Sequence[GivenReference]) -> None:
    """Try out the adapters among the references, before a run is begun; the base is bare before and after.

    Raises:
        InputError: naming the reference: it cannot be read, or belongs to another base.
    """
    for reference in references:
        if reference.kind == "adapter":
            with _speaking(base, reference):
                pass


def _find(number: int, name: str, model: ModelConfig) -> GivenReference:
    if name in (BASE, model.model):
        return GivenReference(number, name, "base")
    with naming(found := GivenReference(number, name, "model")):
        folder = find_model(name)
        if (folder / CONFIG_FILE).is_file():
            return replace(found, kind="adapter", folder=folder)
        own = Path(model.model).expanduser()
        if own.is_dir() and folder.samefile(own):
            return replace(found, kind="base")
        if (folder / "adapters" / "index.json").is_file():
            raise InputError(
                "it is the folder of a run", where=str(folder), fix="Name one of the adapters in its folder adapters."
            )
        if not (folder / "config.json").is_file():
            raise InputError(
                f"the folder has neither {CONFIG_FILE} nor config.json",
                where=str(folder),
                fix="Give the folder of an adapter or of a model.",
            )
    return replace(found, folder=folder)


def adapter_logps(
    base: Base,
    reference: GivenReference,
    rows: Sequence[Preference],
    encoded: Sequence[Encoded],
    cache: Cache,
    layout: Layout,
) -> list[dict[str, float]]:
    """Log-probs of responses under an adapter: branch -> nats, summed over tokens, for each row.

    Args:
        base: with no adapter attached; the given one is attached where the cache lacks something, and taken off again.
        reference: an adapter.
        rows: what messages name.
        encoded: their tokens.
        cache: of the run. The section's facts have the adapter's weights in them: one that has changed speaks anew.
        layout: how rows go through the base; autocast decides precision.

    Raises:
        InputError: naming the reference: it cannot be attached, or gives a log-prob that is no number.
    """

    def compute(missing: Mapping[Request, str]) -> dict[Request, float]:
        with _speaking(base, reference) as policy:
            return computed_logps(policy, missing, Forward.of(base, layout), reference)

    with naming(reference):
        both = sha256_of_json({"base": base.fingerprint, "adapter": adapter_digest(reference.place)})
        with logps_section(replace(base, fingerprint=both), cache, layout=layout) as section:
            return cached_logps(section, rows, encoded, compute)


@contextlib.contextmanager
def _speaking(base: Base, reference: GivenReference) -> Iterator[Any]:
    """The base with an adapter, for the time of the block; every module is afterwards in the mode it was in."""
    with naming(reference), evaluation_mode(base.model):
        policy = load_adapter(base, reference.place)
        try:
            yield policy
        finally:
            detach_adapter(policy)


def cached_logps(
    section: Section, rows: Sequence[Preference], encoded: Sequence[Encoded], compute: Compute
) -> list[dict[str, float]]:
    """Log-probs of all responses, each distinct pair of prompt and response once, from the section or computed.

    Raises:
        InputError: naming the row: a log-prob is no number; none is then kept.
    """
    missing = {request: key for request, key in _requests(encoded) if key not in section}
    found = compute(missing) if missing else {}
    for request, logp in found.items():
        if not math.isfinite(logp):
            whose = (row for row, one in zip(rows, encoded, strict=True) if request in dict(_requests([one])))
            raise InputError(
                f"a response has the log-prob {logp}",
                where=str(next(whose).place),
                fix="The weights are broken, or activations overflow: try --dtype float32.",
            )
    for request, logp in found.items():
        section.put(missing[request], logp)
    known: dict[str, Any] = {key: section.get(key) for _, key in _requests(encoded)}
    return [
        {name: known[content_key(row.prompt_ids, ids)] for name, ids in row.response_ids.items()} for row in encoded
    ]


def computed_logps(
    model: Any, missing: Mapping[Request, str], forward: Forward, reference: GivenReference
) -> dict[Request, float]:
    """Log-probs of what the cache lacks, with a progress bar."""
    found: dict[Request, float] = {}
    with progress_bar() as progress:
        task = progress.add_task(f"log-probs of {reference.name}", total=len(missing))
        for request, logp in iterate_scores(model, missing, forward):
            found[request] = logp
            progress.advance(task)
    return found


def _requests(encoded: Sequence[Encoded]) -> Iterator[tuple[Request, str]]:
    """Each pair of prompt and response, with its key in the cache."""
    for row in encoded:
        for ids in row.response_ids.values():
            yield (tuple(row.prompt_ids), tuple(ids)), content_key(row.prompt_ids, ids)


def all_known(section: Section, encoded: Sequence[Encoded]) -> bool:
    """Whether a section has all that these rows ask for."""
    return all(key in section for _, key in _requests(encoded))


def fingerprint_of(folder: Path, cache: Cache) -> str:
    """Hex digest of a model's folder, without loading it."""
    return folder_fingerprint(folder, sorted(folder.glob("*.safetensors")), cache.folder)


@contextlib.contextmanager
def naming(reference: GivenReference) -> Iterator[None]:
    """Errors inside the block say which reference they are about."""
    try:
        yield
    except InputError as error:
        if error.where.startswith(reference.where):
            raise
        where = f"{reference.where}: {error.where}" if error.where else reference.where
        raise InputError(error.found, where=where, fix=error.fix) from error
