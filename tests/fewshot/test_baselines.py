"""Baselines on answers whose groups are known mixtures, and where they have nothing to say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pluralign.fewshot.answers import Answers, Question
from pluralign.fewshot.baselines import TrainingGroups, ridge, uniform
from pluralign.fewshot.features import Points
from pluralign.fewshot.hashing import hashed


def population(seed: int, groups: int = 4, questions: int = 12) -> tuple[Answers, Points, np.random.Generator]:
    draw = np.random.default_rng(seed)
    answers = Answers()
    for number in range(questions):
        question = Question(f"Question {number}?", tuple(f"option {n}" for n in range(draw.integers(2, 5))))
        for group in range(groups):
            answers.add(f"group {group}", question, draw.dirichlet(np.ones(len(question.options))))
    return answers, hashed(answers.questions), draw


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_a_mixture_of_groups_is_found_again(seed: int) -> None:
    answers, points, draw = population(seed)
    weights = draw.dirichlet(np.ones(4))
    table = TrainingGroups.of(answers, points)
    truth = [weights @ np.stack([own[number] for own in answers.groups.values()]) for number in range(12)]
    found = table.mixture({number: truth[number] for number in range(8)}, range(8, 12))
    for number, shares in zip(range(8, 12), found, strict=True):
        assert shares is not None and shares.sum() == pytest.approx(1)
        np.testing.assert_allclose(shares, truth[number], atol=1e-3)


def test_a_mixture_of_many_groups_is_that_of_the_few_they_are_copies_of() -> None:
    answers, points, draw = population(3)
    copies = Answers(answers.questions)
    copies.groups = {f"{name} again {n}": own for n in range(30) for name, own in answers.groups.items()}
    context = {number: draw.dirichlet(np.ones(len(answers.questions[number].options))) for number in range(6)}
    few, many = (TrainingGroups.of(some, points).mixture(context, range(6, 12)) for some in (answers, copies))
    for one, other in zip(few, many, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-8)


def test_the_nearest_group_is_itself() -> None:
    answers, points, _ = population(1)
    table = TrainingGroups.of(answers, points)
    own = answers.groups["group 2"]
    found = table.nearest({number: own[number] for number in range(4)}, range(4, 12))
    for number, shares in zip(range(4, 12), found, strict=True):
        assert shares is not None
        np.testing.assert_array_equal(shares, own[number])


def test_gaps_are_filled_by_who_answered_and_else_there_is_nothing() -> None:
    answers, points, _ = population(2)
    for group in ("group 0", "group 1", "group 2"):
        del answers.groups[group][5]
    for own in answers.groups.values():
        del own[7]
    table = TrainingGroups.of(answers, points)
    context = {0: answers.groups["group 0"][0], 7: np.full(len(answers.questions[7].options), 1.0)}
    for predicted in (table.mean([5, 7]), table.nearest(context, [5, 7]), table.mixture(context, [5, 7])):
        assert predicted[1] is None and predicted[0] is not None
        np.testing.assert_allclose(predicted[0], answers.groups["group 3"][5])
    for nothing in ({}, {7: context[7]}):
        np.testing.assert_allclose(table.mixture(nothing, [1])[0], table.mean([1])[0])
        assert table.nearest(nothing, [1])[0] is not None
    assert TrainingGroups.of(Answers(answers.questions), points).mixture(context, [0]) == [None]


def test_ridge_carries_an_answer_to_a_like_question() -> None:
    questions = [Question(f"Do you trust the {who}?", ("A great deal", "Not at all")) for who in ("army", "press")]
    points = hashed(questions)
    (found,) = ridge({0: np.array([0.9, 0.1])}, points, [1])
    assert found[0] > 0.55 and found.sum() == pytest.approx(1)
    np.testing.assert_allclose(ridge({}, points, [1])[0], uniform(points, [1])[0])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.5, 0.8, 0.95]))
def test_the_spread_of_the_training_groups_holds_what_it_says(seed: int, level: float) -> None:
    answers, points, draw = population(seed, groups=30, questions=20)
    table = TrainingGroups.of(answers, points)
    inside = []
    for number, (mean, spread) in enumerate(zip(table.mean(range(20)), table.spread(range(20), level), strict=True)):
        assert mean is not None and spread is not None
        for _ in range(40):
            other = draw.dirichlet(np.ones(len(mean)))
            inside += list(np.abs(other - mean) <= spread)
        assert table.spread([number], level)[0] == pytest.approx(spread)
    assert np.mean(inside) == pytest.approx(level, abs=0.05)


def test_the_spread_of_a_question_that_nobody_answered_does_not_exist() -> None:
    answers, points, _ = population(2)
    part = answers.without({3})
    assert TrainingGroups.of(part, points).spread([3, 4], 0.8)[0] is None
    assert TrainingGroups.of(Answers(), points).spread([3], 0.8) == [None]
