"""Win rates at equal length, of judges whose taste is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pluralign.evaluation.length_control import OWN_SPREAD, SHARED_SPREADS, Contests, fit_lengths, refitted


def contests(people: int, prompts: int, seed: int = 0, longer: float = 20.0) -> tuple[np.random.Generator, Contests]:
    """Answers that are longer than the others by some characters on average; nobody has judged them."""
    rng = np.random.default_rng(seed)
    # Each person's adapter has a length of its own.
    difference = np.round(longer + rng.normal(0, 15, (people, 1)) + rng.normal(0, 40, (people, prompts)))
    return rng, Contests.of(np.zeros((people, prompts)).tolist(), difference.tolist())


def judged(made: Contests, score: np.ndarray) -> Contests:
    return replace(made, score=score.astype(float))


def test_the_fit_is_the_maximum_of_what_is_documented() -> None:
    rng, made = contests(7, 12)
    made = judged(made, rng.choice([0.0, 0.25, 0.5, 0.75, 1.0], len(made.person)))
    found = fit_lengths(made)
    mu, phi = found.shared
    chance = 1 / (1 + np.exp(-(mu + found.own[made.person] + phi * made.longer)))
    pull = made.score - chance
    assert pull.sum() == pytest.approx(mu / SHARED_SPREADS[0] ** 2, abs=1e-5)
    assert (pull * made.longer).sum() == pytest.approx(phi / SHARED_SPREADS[1] ** 2, abs=1e-5)
    assert np.bincount(made.person, pull) == pytest.approx(found.own / OWN_SPREAD**2, abs=1e-5)
    assert found.rates == pytest.approx(1 / (1 + np.exp(-(mu + found.own))))


def test_resamples_of_prompts_and_of_people_are_refitted() -> None:
    rng, made = contests(30, 40)
    chance = 1 / (1 + np.exp(-(0.5 + 2 * made.longer)))
    made = judged(made, rng.random(len(chance)) < chance)
    fit = fit_lengths(made)
    drawn = made.drawn(made.starts[made.person] + rng.integers(0, 40, len(made.person)))
    assert refitted(drawn, fit).rates == pytest.approx(fit_lengths(drawn).rates, abs=5e-3)
    # People drawn several times or not at all: the same as a table of those people.
    each = np.bincount(rng.integers(0, 30, 30), minlength=30).astype(float)
    some = np.repeat(np.arange(30), each.astype(int))
    people = made.drawn(np.concatenate([np.arange(40) + start for start in made.starts[some]]))
    assert each @ refitted(made, fit, each).rates / 30 == pytest.approx(fit_lengths(people).rates.mean(), abs=1e-4)


@pytest.mark.parametrize("exact", [True, False])
def test_a_judge_who_only_likes_length_leaves_one_half(exact: bool) -> None:
    rng, made = contests(100, 64)
    chance = 1 / (1 + np.exp(-4 * made.longer))
    score = np.sign(made.longer) / 2 + 0.5 if exact else rng.random(len(chance)) < chance
    found = judged(made, score)
    assert found.score.mean() > 0.6
    assert fit_lengths(found).rates.mean() == pytest.approx(0.5, abs=0.03)


def test_a_preference_that_has_nothing_to_do_with_length_stays() -> None:
    rng, made = contests(40, 32)
    taste = rng.choice([0.6, 0.75, 0.9], 40)
    found = judged(made, rng.random(len(made.person)) < taste[made.person])
    fit = fit_lengths(found)
    assert fit.rates.mean() == pytest.approx(found.score.mean(), abs=0.02)
    # Of each person, too.
    assert np.corrcoef(fit.rates, taste)[0, 1] > 0.8
    assert abs(fit.shared[1]) < 0.5


def test_of_both_the_preference_is_kept_and_the_length_is_not() -> None:
    rng, made = contests(60, 64)
    chance = 1 / (1 + np.exp(-(0.8 + 2 * made.longer)))
    fit = fit_lengths(judged(made, rng.random(len(chance)) < chance))
    assert fit.shared == pytest.approx([0.8, 2.0], abs=0.2)
    assert fit.rates.mean() == pytest.approx(1 / (1 + np.exp(-0.8)), abs=0.03)


def test_few_comparisons_all_won_and_none_at_all() -> None:
    alike = fit_lengths(Contests.of([[1.0, 1.0, 1.0]], [[0.0, 0.0, 0.0]]))
    # With answers as long as the others there is nothing to control for; three wins are no certainty.
    assert alike.shared[1] == 0 and 0.7 < alike.rates[0] < 1
    assert fit_lengths(Contests.of([], [])).rates.shape == (0,)
