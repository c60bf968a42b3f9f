"""Hashed options: alike where they say alike things, and free of what is the question's alone."""

from __future__ import annotations

import itertools
import re
import zlib

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pluralign.errors import InputError
from pluralign.fewshot import hashing
from pluralign.fewshot.answers import Question
from pluralign.fewshot.features import Points, points
from pluralign.fewshot.hashing import hashed

QUESTIONS = [
    Question("Do you trust the army?", ("A great deal", "Not at all")),
    Question("Do you trust the press?", ("A great deal", "Some", "Not at all")),
    Question("Which colour is best?", ("Red", "Blue")),
]


def test_options_that_say_the_same_are_alike() -> None:
    found = hashed(QUESTIONS)
    vectors = found.vectors
    assert found.starts.tolist() == [0, 2, 5, 7] and found.questions.tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert found.of([2, 0]).tolist() == [5, 6, 0, 1] and found.of([]).shape == (0,)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1)
    great, not_at_all, red = vectors[2], vectors[4], vectors[5]
    assert vectors[0] @ great > max(vectors[0] @ not_at_all, vectors[0] @ red) + 0.2


def plainly(question: Question, dimensions: int) -> np.ndarray:
    """Hashed options by the definition: every text is made, and its checksum taken."""

    def grams(text: str) -> list[str]:
        words = re.findall(r"\w+", text.lower())
        return [*words, *map(" ".join, itertools.pairwise(words))]

    asked, last = sorted(set(grams(question.text))), len(question.options) - 1
    found = np.zeros((last + 1, dimensions))
    for place, option in enumerate(question.options):
        said = [*grams(option), f"<{place} of {last + 1}>", f"<{round(4 * place / last)} of 4>"]
        both = [(f"{word} | {part}", len(asked) ** -0.5) for word in asked for part in said]
        for text, weight in [*((part, 1.0) for part in said), *both]:
            checksum = zlib.crc32(text.encode())
            found[place, checksum % dimensions] += weight if checksum >> 31 else -weight
    return found


TEXTS = st.text(st.sampled_from("ab cÜ漢 .'_9\ud800"), max_size=30) | st.text(st.sampled_from("aÜ"), min_size=50)


@settings(max_examples=60, deadline=None)
@given(TEXTS, st.lists(TEXTS, min_size=2, max_size=4), st.sampled_from([2, 7, 512]), st.sampled_from([3, 1 << 20]))
def test_hashed_options_are_those_of_the_definition(
    text: str, options: list[str], dimensions: int, at_once: int
) -> None:
    question = Question(text, tuple(options))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashing, "_AT_ONCE", at_once)
        found = hashed([question, question], dimensions).vectors
    expected = plainly(question, dimensions)
    lengths = np.linalg.norm(expected, axis=1, keepdims=True)
    # What cancels has no direction.
    assume(lengths.min() > 1e-6)
    np.testing.assert_allclose(found, np.tile(expected / lengths, (2, 1)), atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(2, 5), min_size=1, max_size=5), st.integers(0, 999))
def test_centring_leaves_what_tells_options_apart(sizes: list[int], seed: int) -> None:
    starts = np.concatenate([[0], np.cumsum(sizes)])
    vectors = np.random.default_rng(seed).normal(size=(starts[-1], 3))
    found = Points(vectors, starts).centred
    for first, last in itertools.pairwise(starts):
        np.testing.assert_allclose(found[first:last].sum(0), 0, atol=1e-12)
        np.testing.assert_allclose(found[first] - found[first + 1], vectors[first] - vectors[first + 1], atol=1e-12)
    np.testing.assert_allclose(Points(found, starts).centred, found, atol=1e-12)


def test_a_vector_that_is_no_number_is_named() -> None:
    questions = [Question("Tea?", ("Yes", "No")), Question("Milk?", ("Yes", "No", "A little"))]
    vectors = np.ones((5, 3))
    vectors[4, 1] = np.nan
    with pytest.raises(InputError, match=r"the vector of option 'A little' of 'Milk\?' is not all numbers"):
        points(questions, vectors)
