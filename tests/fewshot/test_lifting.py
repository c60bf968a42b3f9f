"""Vectors in the space of products of their directions: the kernel it stands for, and what it makes learnable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pluralign.fewshot import fitting
from pluralign.fewshot.answers import Answers, Question
from pluralign.fewshot.features import Points, points
from pluralign.fewshot.kinds import NEW
from pluralign.fewshot.lifting import Lift


def cosines(vectors: np.ndarray, others: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1)[:, None] * np.linalg.norm(others, axis=1)
    return vectors @ others.T / np.maximum(lengths, 1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(1, 8), st.booleans())
def test_products_with_landmarks_are_the_cube_of_half_of_one_and_the_cosine(
    seed: int, count: int, dimensions: int, twice: bool
) -> None:
    draw = np.random.default_rng(seed)
    vectors = draw.normal(size=(count, dimensions))
    vectors = np.concatenate([vectors, vectors, np.zeros((1, dimensions))]) if twice else vectors
    others = draw.normal(size=(5, dimensions))
    lift = Lift.of(vectors)
    inside, outside = (lift.coordinates(some) for some in (vectors, others))
    expected = ((1 + cosines(others - vectors.mean(0), vectors - vectors.mean(0))) / 2) ** 3
    np.testing.assert_allclose(outside @ inside.T, expected, atol=2e-3)


def test_neither_the_length_nor_the_place_of_vectors_counts() -> None:
    vectors = np.random.default_rng(0).normal(size=(20, 4))
    first, second = (
        Lift.of(some)(Points(some, np.arange(0, 21, 2))).centred for some in (vectors, 30 * vectors + np.arange(4))
    )
    np.testing.assert_allclose(first @ first.T, second @ second.T, atol=1e-8)


def interplay(seed: int, groups: int, questions: int) -> tuple[Answers, Points]:
    """Which of two options is taken turns with the question's own side: no linear function of the vectors tells it."""
    draw = np.random.default_rng(seed)
    answers, vectors = Answers(), []
    for number in range(questions):
        side = draw.choice([-1.0, 1.0], size=3)
        question = Question(f"Question {number}?", ("yes", "no"))
        vectors += [np.concatenate([side, [1.0]]), np.concatenate([side, [-1.0]])]
        for group in range(groups):
            liked = 0.5 + 0.35 * side[0] + draw.uniform(-0.05, 0.05)
            answers.add(f"group {group}", question, np.array([liked, 1 - liked]))
    return answers, points(answers.questions, np.array(vectors))


@pytest.mark.parametrize(("lifted", "right"), [((NEW,), lambda share: share > 0.95), ((), lambda share: share < 0.8)])
def test_what_an_option_means_may_turn_with_the_question(
    lifted: tuple[str, ...], right: Callable[[float], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "LIFTED", lifted)
    answers, vectors = interplay(0, groups=9, questions=60)
    new = range(40, 60)
    training = replace(answers, groups={name: answers.groups[name] for name in list(answers.groups)[:8]}).without(new)
    views = fitting.fit(training, vectors).tastes.view(answers.questions, vectors)
    own = answers.groups["group 8"]
    said = views.read({number: own[number] for number in range(5)}).shares(new)
    assert right(float(np.mean([one.argmax() == own[number].argmax() for number, one in zip(new, said, strict=True)])))
