"""From preferences to anchored rows: tokens, the base's own responses, and reference log-probs, each computed once."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pluralign.config import AnchorTableConfig, DataConfig, GenerationConfig
from pluralign.errors import InputError
from pluralign.models.anchored_table import Anchored, anchored_facts, read_anchored, write_anchored
from pluralign.models.base import Base, load_base
from pluralign.models.cache import Cache
from pluralign.models.encoding import BRANCHES, Encoder
from pluralign.models.generation import context_length
from pluralign.models.layout import choose_layout
from pluralign.models.matmul import quick_matmul
from pluralign.models.references import base_responses, keep_logps, reference_logps
from pluralign.models.rows import Layout
from pluralign.preferences import load_preferences
from pluralign.preferences.schema import Preference, Preferences
from pluralign.storage import check_place

__all__ = [
    "Anchored",
    "adopt_anchored",
    "anchor",
    "anchor_preferences",
    "anchored_facts",
    "encoder_of",
    "read_anchored",
    "warn_of_losses",
    "write_anchored",
]

_REPORTED = 5


def encoder_of(base: Base, data: DataConfig) -> Encoder:
    """The encoder of a base model with the limits of a configuration.

    Raises:
        InputError: as `Encoder`.
    """
    return Encoder(
        base.tokenizer,
        max_prompt_length=data.max_prompt_length,
        max_response_length=data.max_response_length,
        context_length=context_length(base.model),
        chat_template=data.chat_template,
    )


def anchor_preferences(
    base: Base,
    preferences: Iterable[Preference],
    *,
    encoder: Encoder,
    settings: GenerationConfig,
    cache: Cache,
    layout: Layout,
    branches: Sequence[str],
    with_reference: bool = True,
    seed: int = 0,
) -> list[Anchored]:
    """Anchor preferences to the base model.

    Args:
        base: with no adapter attached.
        preferences: rows; they are not changed.
        encoder: of the base's tokenizer.
        settings: how the base responds, where `branches` has "base" and a row has no base response yet.
        cache: where responses and log-probs are found and kept.
        layout: how rows go through the model, see `choose_layout`.
        branches: the branches that are wanted; those a row lacks are left out.
        with_reference: whether reference log-probs are wanted.
        seed: of sampling.

    Returns:
        One anchored row a preference, in their order.

    Raises:
        InputError: a row cannot be encoded; names its place.
    """
    rows = list(preferences)
    if "base" in branches:
        rows = _with_base_responses(base, rows, encoder, settings, cache, seed)
    encoded = encoder.encode_many(rows, branches)
    references = reference_logps(base, encoded, cache, layout=layout) if with_reference else [{} for _ in rows]
    return [Anchored(*parts) for parts in zip(rows, encoded, references, strict=True)]


def warn_of_losses(problems: Sequence[str], cuts: Iterable[Collection[str]] = ()) -> None:
    """Warn of rows that were left out, a line each, and of rows that were cut: nothing vanishes silently.

    Args:
        problems: a line for each row that was left out.
        cuts: for each row, what was cut of it (`prompt`, names of branches).
    """
    if problems:
        lines = [*problems[:_REPORTED]]
        if len(problems) > _REPORTED:
            lines.append(f"and {len(problems) - _REPORTED} more: pluralign data check names them all")
        warnings.warn("rows left out:\n  " + "\n  ".join(lines), stacklevel=3)
    rows = [set(cut) for cut in cuts]
    prompts = sum("prompt" in cut for cut in rows)
    responses = sum(bool(cut - {"prompt"}) for cut in rows)
    if prompts or responses:
        warnings.warn(
            f"of {len(rows)} rows, {prompts} had a prompt cut on the left and {responses} a response cut on the right "
            "(data.max_prompt_length, data.max_response_length, the model's context)",
            stacklevel=3,
        )


def adopt_anchored(
    preferences: Iterable[Preference], *, base: Base, encoder: Encoder, cache: Cache, layout: Layout
) -> None:
    """Put the log-probs of the anchored tables that rows were read from into the cache: they are not computed again.

    Rows of other files are left alone.

    Raises:
        InputError: a table was made with another base, tokenizer, dtype or limits.
    """
    for path in _anchored_tables(preferences):
        rows = read_anchored(path, base=base, encoder=encoder)
        keep_logps(base, [row.encoded for row in rows], [row.reference for row in rows], cache, layout=layout)


@quick_matmul()
def anchor(config: AnchorTableConfig) -> Path:
    """Write the anchored table of a configuration: all branches, base responses where the data has none.

    Rows that cannot be read are left out and rows that are too long are cut, with warnings that say so. An anchored
    table of another base may be the data: its base responses and log-probs are then made anew.

    Returns:
        The file.

    Raises:
        InputError: the output is there and `overwrite` is not set, or output, model or data cannot be used.
    """
    output = Path(config.output)
    check_place(output)
    if output.exists() and not config.overwrite:
        raise InputError("the file is there already", where=str(output), fix="Name another output, or set --overwrite.")
    preferences = load_preferences(config.data, config.seed)
    warn_of_losses([str(problem) for problem in preferences.problems])
    if not preferences.rows:
        raise InputError("no row can be used", where=preferences.name, fix="See pluralign data check.")
    base = load_base(config)
    encoder = encoder_of(base, config.data)
    rows = anchor_preferences(
        base,
        _without_foreign_responses(preferences, base),
        encoder=encoder,
        settings=config.base_responses,
        cache=Cache(config.cache_dir),
        layout=choose_layout(base.model, base.tokenizer),
        branches=BRANCHES,
        seed=config.seed,
    )
    warn_of_losses([], [row.encoded.cut for row in rows])
    facts = {"base_responses": asdict(config.base_responses), "seed": config.seed}
    write_anchored(output, rows, base, encoder=encoder, facts=facts)
    return output


def _with_base_responses(
    base: Base, rows: list[Preference], encoder: Encoder, settings: GenerationConfig, cache: Cache, seed: int
) -> list[Preference]:
    lacking = [index for index, row in enumerate(rows) if row.base is None]
    # What is scored later is the response's text, tokenized like any other: table and memory then agree.
    prompts = [one.prompt_ids for one in encoder.encode_many([rows[index] for index in lacking], branches=())]
    responses = base_responses(base, prompts, settings, cache, seed=seed)
    rows = list(rows)
    for index, response in zip(lacking, responses, strict=True):
        # An empty text is the response that ends at once, also where nothing but special tokens filled it up.
        finished = response.finished or not response.text
        rows[index] = replace(rows[index], base=response.text, base_finished=finished)
    return rows


def _without_foreign_responses(preferences: Preferences, base: Base) -> list[Preference]:
    """The rows, without the base responses of anchored tables that another base wrote."""
    tables = _anchored_tables(preferences)
    foreign = {path for path, facts in tables.items() if facts.get("base_fingerprint") != base.fingerprint}
    for path in sorted(foreign):
        warnings.warn(f"{path} was anchored to another base model; its base responses are made anew", stacklevel=3)
    return [replace(row, base=None, base_finished=True) if row.place.file in foreign else row for row in preferences]


def _anchored_tables(preferences: Iterable[Preference]) -> dict[str, dict[str, Any]]:
    """The anchored tables among the files that rows were read from, with their metadata."""
    facts = {file: anchored_facts(file) for file in sorted({row.place.file for row in preferences})}
    return {file: found for file, found in facts.items() if found is not None}
