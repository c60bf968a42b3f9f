"""Episodes of the published module, and that it learns from them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pluralign.config import ModuleTrainingConfig
from pluralign.fewshot.answers import Answers, Question
from pluralign.fewshot.baselines import uniform
from pluralign.fewshot.episodes import episode, predict, train_module
from pluralign.fewshot.features import Points, points
from pluralign.fewshot.metrics import alignment


def population(seed: int, groups: int, questions: int) -> tuple[Answers, Points]:
    """Groups that want more or less of what an option's vector has first."""
    draw = np.random.default_rng(seed)
    answers, vectors = Answers(), []
    wants = draw.normal(size=groups)
    for number in range(questions):
        question = Question(f"Question {number}?", tuple(f"option {n}" for n in range(draw.integers(2, 4))))
        options = draw.normal(size=(len(question.options), 4))
        vectors.append(options)
        for group, want in enumerate(wants):
            powers = np.exp(2 * want * options[:, 0])
            answers.add(f"group {group}", question, powers / powers.sum())
    return answers, points(answers.questions, np.concatenate(vectors))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(2, 30), min_size=1, max_size=4), st.integers(0, 999))
def test_an_episode_asks_nothing_that_it_has_told(counts: list[int], seed: int) -> None:
    answers, found = population(seed, 1, 30)
    own = answers.groups["group 0"]
    groups = [{number: own[number] for number in range(count)} for count in counts]
    one = episode(groups, found, np.random.default_rng(seed), sizes=(3, 10))
    shares = torch.tensor(np.concatenate(list(own.values())), dtype=torch.float32)
    for row, count in enumerate(counts):
        context, targets = (set(part[row][part[row] >= 0].tolist()) for part in (one.context, one.targets))
        assert context and targets and not context & targets
        assert max(context | targets) < found.starts[count]
        asked = one.targets[row] >= 0
        assert torch.equal(asked, one.questions[row] >= 0)
        assert torch.equal(one.said[row][asked], shares[one.targets[row][asked]])
        # Whole questions only: their shares sum to 1.
        sums = torch.zeros(int(one.questions[row].max()) + 1).index_add(
            0, one.questions[row][asked], one.said[row][asked]
        )
        torch.testing.assert_close(sums, torch.ones_like(sums))


def test_a_trained_module_reads_what_a_new_group_wants() -> None:
    answers, found = population(0, 16, 20)
    training = ModuleTrainingConfig(steps=150, learning_rate=1e-3)
    trained = train_module(answers.of(f"group {n}" for n in range(10)), found, training, seed=1)
    assert trained.alignment == max(value for _, value in trained.trace)
    scores = []
    for group in range(10, 16):
        own = answers.groups[f"group {group}"]
        told = predict(trained.module, found, {number: own[number] for number in range(10)}, range(10, 20))
        plain = uniform(found, range(10, 20))
        scores.append(
            [
                np.mean([alignment(answers.questions[n], some[n - 10], own[n]) for n in range(10, 20)])
                for some in (told, plain)
            ]
        )
    ours, uniforms = np.mean(scores, 0)
    assert ours > uniforms + 0.05


def test_the_last_moment_is_taken_where_no_alignment_is_defined() -> None:
    answers, found = population(1, 6, 8)
    level = Answers()
    for group, number, shares in answers:
        question = answers.questions[number]
        level.add(group, replace(question, ordinals=(1.0,) * len(question.options)), shares)
    trained = train_module(level, found, ModuleTrainingConfig(steps=20), seed=2)
    assert trained.step == 20 and np.isnan(trained.alignment) and len(trained.trace) == 2


def test_a_seed_gives_one_module() -> None:
    answers, found = population(1, 6, 8)
    one, other = (train_module(answers, found, ModuleTrainingConfig(steps=3), seed=2) for _ in range(2))
    assert one.trace == other.trace and [step for step, _ in one.trace] == [3]
    assert all(torch.equal(a, b) for a, b in zip(one.module.parameters(), other.module.parameters(), strict=True))
