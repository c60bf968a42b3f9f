"""Options as vectors of a model, computed once per distinct text; or of no model at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pluralign.config import EmbeddingConfig
from pluralign.errors import InputError
from pluralign.fewshot.answers import Answers, Question
from pluralign.fewshot.features import Points, points
from pluralign.fewshot.hashing import HASHED, hashed
from pluralign.preferences.schema import excerpt
from pluralign.storage import sha256_of_json

NGRAMS = "ngrams"
KEY = "embeddings.model"
_FIX = "It is ngrams, or the folder or hub id of a model with weights in safetensors."
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def embed(
    questions: Sequence[Question],
    config: EmbeddingConfig,
    *,
    cache_dir: str | Path | None = None,
    answers: Answers | None = None,
) -> tuple[Points, str]:
    """A vector for every option, and what they were made with.

    Args:
        questions: any number; at least one where a model is named.
        config: model and pooling.
        cache_dir: of vectors that a model made.
        answers: whose questions they are, to name group and row of one that has no vector.

    Returns:
        The vectors, and a fingerprint that is equal where they are comparable.

    Raises:
        InputError: the model cannot be found or loaded, or gives a vector that is no number.
    """
    if config.model == NGRAMS:
        return hashed(questions), f"{NGRAMS} {HASHED}"
    # A model takes torch, and the default takes none.
    from pluralign.models.base import find_device
    from pluralign.models.cache import Cache
    from pluralign.models.encoder import Encoder, find_encoder
    from pluralign.models.given_references import fingerprint_of

    cache = Cache(cache_dir)
    facts = {"model": fingerprint_of(find_encoder(config.model, key=KEY, fix=_FIX), cache), "pooling": config.pooling}
    texts = [text for question in questions for text in texts_of(question, config.pooling)]
    keys = [sha256_of_json(list(pair)) for pair in texts]
    with cache.section("embeddings", facts) as section:
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in section}
        if missing:
            encoder = Encoder(config.model, find_device(config.device), key=KEY, fix=_FIX)
            heads = [head for head, _ in missing.values()] if config.pooling == "answer" else None
            made = encoder.of([head + tail for head, tail in missing.values()], heads)
            for key, vector in zip(missing, made, strict=True):
                section.put(key, vector.tolist())
        found = np.array([section.get(key) for key in keys])
    bad = np.flatnonzero(~np.isfinite(found).all(axis=1))
    if len(bad):
        number = int(np.repeat(np.arange(len(questions)), [len(one.options) for one in questions])[bad[0]])
        group = answers.first(number) if answers else None
        asked = f", asked of group {group!r} ({answers.place(group, number)})" if answers and group is not None else ""
        more = f" (and of {len(bad) - 1} more)" if len(bad) > 1 else ""
        option = excerpt([one for question in questions for one in question.options][bad[0]])
        text = f"the vector of option {option} of {excerpt(questions[number].text)}{asked}{more} is not all numbers"
        raise InputError(text, where=f"{KEY} {config.model!r}", fix="Take another model, or leave the row out.")
    return points(questions, found), sha256_of_json(facts)


def texts_of(question: Question, pooling: str) -> list[tuple[str, str]]:
    """For every option a text in two parts: what comes before the answer, and the answer.

    Pooled over all tokens the question lists its options, as published; pooled over the answer it does not, so that
    options may be as long as responses are.
    """
    if pooling == "answer":
        return [(f"{question.text}\n", option) for option in question.options]
    named = [f"{_letter(place)}. {option}" for place, option in enumerate(question.options)]
    head = "\n".join([question.text, *named, "Answer: "])
    return [(head, option) for option in named]


def _letter(place: int) -> str:
    return _LETTERS[place] if place < len(_LETTERS) else f"({place + 1})"
