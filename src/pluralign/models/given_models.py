"""References that are models of their own: they speak before the run's base is loaded, one in memory at a time.

Each reads the text with its own tokenizer and chat template, so that a model of another vocabulary is compared by what
it thinks of the text, not of somebody else's tokens.
"""

from __future__ import annotations

import gc
import hashlib
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoConfig

from pluralign.config import DataConfig, ModelConfig
from pluralign.errors import InputError
from pluralign.models.base import Base, find_model, load_base, load_tokenizer
from pluralign.models.cache import Cache, Section
from pluralign.models.encoding import Encoded, Encoder
from pluralign.models.generation import context_length
from pluralign.models.given_references import (
    BASE,
    GivenReference,
    all_known,
    cached_logps,
    computed_logps,
    fingerprint_of,
    naming,
)
from pluralign.models.layout import choose_layout
from pluralign.models.matmul import product_precision
from pluralign.models.references import logps_section
from pluralign.models.scoring import Forward, Request
from pluralign.preferences.keys import text_key
from pluralign.preferences.schema import Preference

_AT_A_TIME = 2048
_SECTION = "section"


@dataclass(slots=True)
class ModelScores:
    """What models have said, as plain numbers: nothing of a model is in here, and a process can send it to another.

    Attributes:
        branches: those that were scored.
        values: number of a reference -> content of a row -> log-prob of each branch, nats, NaN where it has none.
    """

    branches: tuple[str, ...]
    values: dict[int, dict[bytes, tuple[float, ...]]] = field(default_factory=dict)

    def concern(self, row: Preference) -> bool:
        """Whether the row has a response that models are asked about."""
        return any(name in row.responses for name in self.branches)

    def of(self, reference: GivenReference, row: Preference) -> dict[str, float]:
        """Branch -> log-prob, of the branches that the row has.

        Raises:
            LookupError: the row was not among those that were scored.
        """
        if not self.concern(row):
            return {}
        found = self.values.get(reference.number, {}).get(_row_key(row, self.branches))
        if found is None:
            raise LookupError(f"{row.place} was not scored under {reference.where}")
        return {name: value for name, value in zip(self.branches, found, strict=True) if not math.isnan(value)}


def score_models(
    references: Sequence[GivenReference],
    rows: Sequence[Preference],
    *,
    branches: Sequence[str],
    model: ModelConfig,
    data: DataConfig,
    cache: Cache,
) -> ModelScores:
    """Log-probs of all rows under the references that are models of their own; none of them stays in memory.

    Each model is loaded as the base is (dtype, quantization, device), with the attention kernel of its own choice, and
    only where the cache lacks something. It reads the text with its own tokenizer and chat template, within the same
    limits in its own tokens and within its own context; what is cut is reported.

    Args:
        references: of `find_references`; those that are no models are left out.
        rows: whatever is to be compared later, held-out rows too; of equal content, one is scored.
        branches: of the objective; the base's own response is left out, see `compare_rows`.
        model: of the run.
        data: the limits.
        cache: of the run.

    Raises:
        InputError: naming the reference: it cannot be loaded, cannot read a row (as without a chat template for
            messages) or gives a response a log-prob that is no number; both name the row.
    """
    scores = ModelScores(tuple(name for name in branches if name != BASE))
    distinct = {_row_key(row, scores.branches): row for row in rows if scores.concern(row)}
    for reference in references:
        if reference.kind == "model":
            with naming(reference):
                scores.values[reference.number] = _score_all(reference, distinct, scores.branches, model, data, cache)
            _free()
    return scores


def _score_all(
    reference: GivenReference,
    rows: Mapping[bytes, Preference],
    branches: tuple[str, ...],
    model: ModelConfig,
    data: DataConfig,
    cache: Cache,
) -> dict[bytes, tuple[float, ...]]:
    scorer = _Scorer(reference, model, data, cache)
    keys, found, cuts = list(rows), dict[bytes, tuple[float, ...]](), list[dict[str, int]]()
    for start in range(0, len(keys), _AT_A_TIME):
        some = keys[start : start + _AT_A_TIME]
        own = [rows[key] for key in some]
        encoded = scorer.encoder.encode_many(own, branches)
        cuts += [one.cut for one in encoded]
        for key, logps in zip(some, scorer.logps(own, encoded), strict=True):
            found[key] = tuple(logps.get(name, math.nan) for name in branches)
    _warn_of_cuts(reference, cuts)
    return found


class _Scorer:
    """A model that is loaded when it is asked for something that the cache does not know.

    Which section of the cache is its own depends on how it computes, which shows once it is loaded; a small section
    beside remembers that.
    """

    def __init__(self, reference: GivenReference, model: ModelConfig, data: DataConfig, cache: Cache) -> None:
        self.reference, self.cache = reference, cache
        self.config = ModelConfig(
            model=str(reference.place),
            dtype=model.dtype,
            quantization=model.quantization,
            device=model.device,
            cache_dir=model.cache_dir,
        )
        self.encoder = model_encoder(self.config, data)
        self.base: Base | None = None
        self.memo = cache.section("reference_models", self._facts())
        known = self.memo.get(_SECTION)
        self.section = Section(cache, cache.folder / known, {}) if known else None

    def logps(self, rows: Sequence[Preference], encoded: Sequence[Encoded]) -> list[dict[str, float]]:
        """Log-probs of some rows."""
        if self.base is None and (self.section is None or not all_known(self.section, encoded)):
            self._load()
        assert self.section is not None
        with self.section:
            return cached_logps(self.section, rows, encoded, self._compute)

    def _compute(self, missing: Mapping[Request, str]) -> dict[Request, float]:
        assert self.base is not None
        return computed_logps(self.base.model, missing, self.forward, self.reference)

    def _load(self) -> None:
        self.base = load_base(self.config)
        layout = choose_layout(self.base.model, self.base.tokenizer)
        self.forward = Forward.of(self.base, layout)
        self.section = logps_section(self.base, self.cache, layout=layout)
        with self.memo:
            self.memo.put(_SECTION, self.section.folder.relative_to(self.cache.folder).as_posix())

    def _facts(self) -> dict[str, Any]:
        config = self.config
        return {
            "model": fingerprint_of(self.reference.place, self.cache),
            "dtype": config.dtype,
            "quantization": config.quantization,
            "device": config.device,
            "gpu": torch.cuda.is_available(),
            "matmul": product_precision(torch.device("cpu")),
        }


def model_encoder(model: ModelConfig, data: DataConfig) -> Encoder:
    """The encoder of a model with the limits of a configuration, without loading the model's weights.

    Raises:
        InputError: there is no such model, its tokenizer or configuration cannot be read, or as `Encoder`.
    """
    folder = find_model(model.model, model.model_revision)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise InputError(f"the model's configuration cannot be read ({first})", where=str(folder)) from None
    return Encoder(
        load_tokenizer(str(folder)),
        max_prompt_length=data.max_prompt_length,
        max_response_length=data.max_response_length,
        context_length=context_length(SimpleNamespace(config=config)),
        chat_template=data.chat_template,
    )


def _warn_of_cuts(reference: GivenReference, cuts: Sequence[Mapping[str, int]]) -> None:
    prompts = sum("prompt" in cut for cut in cuts)
    responses = sum(bool(cut.keys() - {"prompt"}) for cut in cuts)
    if prompts or responses:
        warnings.warn(
            f"{reference.where}: of {len(cuts)} rows, {prompts} had a prompt cut on the left and {responses} a "
            "response cut on the right (data.max_prompt_length, data.max_response_length in that model's tokens, its "
            "context)",
            stacklevel=5,
        )


def _row_key(row: Preference, branches: Sequence[str]) -> bytes:
    """What tells rows of different texts apart: a response's cut depends on the others, so that they count together."""
    digest = hashlib.blake2b(digest_size=16)
    texts = [row.prompt, *(row.responses.get(name) for name in branches)]
    for text in texts:
        raw = b"" if text is None else b"." + text_key(text).encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "big") + raw)
    return digest.digest()


def _free() -> None:
    """Give back what the model before took, on a GPU too."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
