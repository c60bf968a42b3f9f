"""Which values of the cache only some people use: base responses to their prompts, log-probs of their texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from types import SimpleNamespace

from transformers import AutoConfig

from pluralign.config import TrainConfig
from pluralign.errors import InputError
from pluralign.models import Encoder, context_length, load_tokenizer
from pluralign.models.base import find_model
from pluralign.models.cache import Cache
from pluralign.models.encoding import BRANCHES
from pluralign.models.references import content_key
from pluralign.preferences import Preference, text_key

_SUBSETS = [names for size in range(len(BRANCHES) + 1) for names in combinations(BRANCHES, size)]
"""Branches that a stage may ask for: where a row fills the model's context, they decide what is cut."""


def encoder_for(config: TrainConfig) -> Encoder:
    """The encoder of a run, without its base's weights.

    Raises:
        InputError: the model or its tokenizer cannot be read.
    """
    tokenizer = load_tokenizer(config.model, config.model_revision)
    try:
        model = AutoConfig.from_pretrained(
            find_model(config.model, config.model_revision), local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"the model's configuration cannot be read ({error})", where=config.model) from None
    data = config.data
    return Encoder(
        tokenizer,
        max_prompt_length=data.max_prompt_length,
        max_response_length=data.max_response_length,
        context_length=context_length(SimpleNamespace(config=model)),
        chat_template=data.chat_template,
    )


def own_keys(
    rows: Sequence[Preference], others: Sequence[Preference], *, encoder: Encoder, cache: Cache
) -> tuple[set[str], int]:
    """Keys of everything that is cached for some people's rows and for nobody else's of the table.

    A base response is theirs where nobody else has its prompt; a log-prob, where nobody else has its prompt and
    response.

    Args:
        rows: theirs.
        others: of everybody else.
        encoder: of the run.
        cache: holds the base's responses, whose log-probs are cached too.

    Returns:
        Keys, and the number of texts of theirs that others have too, whose values stay.
    """
    prompts = {text_key(row.prompt) for row in rows}
    theirs = [(text_key(row.prompt), row) for row in others if text_key(row.prompt) in prompts]
    shared = {prompt for prompt, _ in theirs}
    pairs = {(prompt, text_key(text)) for prompt, row in theirs for text in row.responses.values()}
    keys: set[str] = set()
    stay: set[tuple[str, ...]] = {(prompt,) for prompt in shared}
    answered = cache.find("base_responses", {key for row in rows for key in _prompt_keys(row, encoder)})
    for row in rows:
        prompt = text_key(row.prompt)
        own = {name for name, text in row.responses.items() if (prompt, text_key(text)) not in pairs}
        stay |= {(prompt, text_key(row.responses[name])) for name in row.responses.keys() - own}
        keys |= _response_keys(row, own, encoder)
        if prompt in shared:
            continue
        asked = _prompt_keys(row, encoder)
        keys |= asked
        for said in (value for key in asked for value in answered.get(key, ())):
            # As rows are anchored: what is scored is the response's text, tokenized like any other.
            full = replace(row, base=said["text"], base_finished=said["finished"] or not said["text"])
            keys |= _response_keys(full, {*own, "base"}, encoder)
    return keys, len(stay)


def _prompt_keys(row: Preference, encoder: Encoder) -> set[str]:
    return {content_key(prompt) for prompt, _ in _encodings(row, encoder)}


def _response_keys(row: Preference, names: set[str], encoder: Encoder) -> set[str]:
    return {
        content_key(prompt, ids)
        for prompt, responses in _encodings(row, encoder)
        for name, ids in responses.items()
        if name in names
    }


def _encodings(row: Preference, encoder: Encoder) -> Iterator[tuple[list[int], dict[str, list[int]]]]:
    """The row as every stage may have encoded it; one that cannot be encoded was never cached."""
    for branches in _SUBSETS:
        try:
            encoded = encoder.encode(row, branches)
        except InputError:
            continue
        yield encoded.prompt_ids, encoded.response_ids
