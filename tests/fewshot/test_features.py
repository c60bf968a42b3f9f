"""Hashed options: alike where they say alike things, and free of what is the question's alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pluralign.errors import InputError
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
