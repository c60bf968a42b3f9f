"""Which values of the cache only some people use: base responses to their prompts, log-probs of their texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations

from pluralign.config import TrainConfig
from pluralign.errors import InputError
from pluralign.evaluation.text_quality import spoken
from pluralign.models import Encoder
from pluralign.models.cache import Cache
from pluralign.models.generation import Generated
from pluralign.models.given_models import model_encoder
from pluralign.models.given_references import find_references
from pluralign.models.references import content_key
from pluralign.objectives import Objective
from pluralign.objectives.losses import MISMATCHED
from pluralign.preferences import Preference, Preferences, Text, text_key
from pluralign.training.listeners import Listeners


def encoders_for(config: TrainConfig) -> list[Encoder]:
    """The encoders of a run, without any weights: the base's first, then those of references that are models.

    Raises:
        InputError: a model or its tokenizer cannot be read.
    """
    models = [one for one in find_references(config.reference, config) if one.kind == "model"]
    own = [replace(config, model=str(one.place), model_revision=None) for one in models]
    return [model_encoder(one, config.data) for one in (config, *own)]


def as_met(
    rows: Sequence[Preference], table: Sequence[Preference], config: TrainConfig, encoder: Encoder
) -> list[Preference]:
    """The rows as the stages of a run have met them: under the prompts that it conditions, beside other responses.

    Args:
        rows: some of the table.
        table: everybody's.
        config: of the run.
        encoder: of its base.

    Raises:
        InputError: the templates do not fit the table.
    """
    listeners = Listeners.of(config.conditioning, encoder, Preferences([*table]))
    shown = list(listeners.condition(Preferences([*rows])).rows)
    others = listeners.others(shown, config.seed) if config.evaluation.identities else {}
    found = [*shown, *(row for some in others.values() for row in some)]
    if listeners.conditioner.active:
        # Before a run conditions its prompts they may have been anchored as they are.
        found += rows
    if MISMATCHED in Objective(config.loss, config.anchor).branches:
        # Which response stood beside which prompt depends on split and faults: all that may have.
        found += [
            replace(row, chosen=None, rejected=None, base=None, mismatched=text)
            for own in Preferences(shown).by(config.parameters.per).values()
            for row in _distinct_prompts(own)
            for text in _texts(own)
        ]
    return found


def _distinct_prompts(rows: Sequence[Preference]) -> list[Preference]:
    return list({text_key(row.prompt): row for row in rows}.values())


def _texts(rows: Sequence[Preference]) -> list[Text]:
    texts = [text for row in rows for text in (row.chosen, row.rejected) if text is not None]
    return list({text_key(text): text for text in texts}.values())


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
    answered = cache.find("base_responses", {key for row in rows for key in _prompts(row, encoder)})
    for row in rows:
        prompt = text_key(row.prompt)
        own = {name for name, text in row.responses.items() if (prompt, text_key(text)) not in pairs}
        stay |= {(prompt, text_key(row.responses[name])) for name in row.responses.keys() - own}
        keys |= _response_keys(row, own, encoder)
        if prompt in shared:
            continue
        for key, prompt_ids in _prompts(row, encoder).items():
            keys.add(key)
            for said in (Generated(**value) for value in answered.get(key, ())):
                # As rows are anchored: what is scored is the response's text, tokenized like any other.
                full = replace(row, base=said.text, base_finished=said.finished or not said.text)
                keys |= _response_keys(full, {*own, "base"}, encoder)
                # As evaluations score it: the tokens that were drawn.
                keys.add(content_key(prompt_ids, spoken(said)))
    return keys, len(stay)


def _prompts(row: Preference, encoder: Encoder) -> dict[str, list[int]]:
    """Key -> the prompt's tokens, as every stage may have encoded it."""
    return {content_key(prompt): prompt for prompt, _ in _encodings(row, encoder)}


def _response_keys(row: Preference, names: set[str], encoder: Encoder) -> set[str]:
    return {
        content_key(prompt, ids)
        for prompt, responses in _encodings(row, encoder)
        for name, ids in responses.items()
        if name in names
    }


def _encodings(row: Preference, encoder: Encoder) -> Iterator[tuple[list[int], dict[str, list[int]]]]:
    """The row as every stage may have encoded it; one that cannot be encoded was never cached."""
    # Branches that a stage may have asked for: where a row fills the model's context, they decide what is cut.
    there = list(row.responses)
    for branches in (names for size in range(len(there) + 1) for names in combinations(there, size)):
        try:
            encoded = encoder.encode(row, branches)
        except InputError:
            continue
        yield encoded.prompt_ids, encoded.response_ids
