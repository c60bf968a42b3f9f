"""From verdicts to win rates: small exact cases, intervals, judges with a bias."""

from __future__ import annotations

import numpy as np
import pytest

from pluralign.evaluation.statistics import RESAMPLES
from pluralign.evaluation.win_rates import Judged, win_rates


def said(first: float | None, second: float | None, characters: int = 10, against: int = 10) -> Judged:
    """Asked in both orders; the answer stood first, then second."""
    return Judged(((True, first), (False, second)), characters, against)


def test_scores_ties_flips_and_abstentions() -> None:
    found = win_rates(
        {
            "ann": [said(1, 1), said(1, 0), said(0.5, 0.5), said(0.5, 1), said(0, 0), said(1, None)],
            "ben": [said(None, None)],
        }
    )
    ann = found.people["ann"]
    assert (ann["n"], ann["abstained"], ann["wins"], ann["ties"], ann["losses"], ann["flipped"]) == (5, 1, 2, 2, 1, 1)
    # Each order is half of a comparison, and a tie half a win.
    assert ann["raw"] == pytest.approx((1 + 0.5 + 0.5 + 0.75 + 0) / 5)
    low, high = ann["raw_interval"]
    assert 0 <= low < ann["raw"] < high <= 1
    # First place won: 1, 1, -, 0, 0 when it stood first won; standing second, its losses are the first place's.
    assert ann["first_place"] == pytest.approx((1 + 0 + 1 + 1 + 0 + 0 + 1) / 7)
    ben = found.people["ben"]
    assert (ben["n"], ben["abstained"], ben["raw"], ben["raw_interval"], ben["first_place"]) == (0, 1, None, None, None)
    everybody = found.everybody
    assert (everybody["n"], everybody["abstained"], everybody["raw"]) == (5, 2, ann["raw"])
    assert everybody["raw_interval"] is None  # of one person


def test_a_judge_who_takes_whatever_stands_first_prefers_nobody() -> None:
    found = win_rates({f"p{n}": [said(1, 0)] * 8 for n in range(5)})
    assert found.everybody["raw"] == 0.5 and found.everybody["first_place"] == 1
    assert found.everybody["flipped"] == 40 and found.everybody["length_controlled"] == pytest.approx(0.5)


def population(
    taste: float, liking: float, *, people: int = 30, prompts: int = 24, seed: int = 0
) -> dict[str, list[Judged]]:
    """Answers that are 20 characters longer than the others, before a judge who likes something and length."""
    rng = np.random.default_rng(seed)
    made: dict[str, list[Judged]] = {}
    for number in range(people):
        for _ in range(prompts):
            length = int(rng.integers(60, 120))
            longer = int(rng.normal(20, 30))
            chance = 1 / (1 + np.exp(-(taste + liking * longer / 30)))
            verdicts = tuple((first, float(rng.random() < chance)) for first in (True, False))
            made.setdefault(f"p{number}", []).append(Judged(verdicts, length + longer, length))
    return made


def test_length_is_taken_out_and_taste_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pluralign.evaluation.win_rates.RESAMPLES", 200)
    long_winded = win_rates(population(0.0, 1.5)).everybody
    assert long_winded["raw"] > 0.6
    assert long_winded["length_controlled"] == pytest.approx(0.5, abs=0.04)
    assert long_winded["regression"]["name"] == "logistic" and long_winded["regression"]["length"] > 1
    low, high = long_winded["length_controlled_interval"]
    assert low < 0.5 < high < long_winded["raw"]
    preferred = win_rates(population(1.0, 0.0)).everybody
    assert preferred["length_controlled"] == pytest.approx(preferred["raw"], abs=0.02)
    assert preferred["raw"] == pytest.approx(1 / (1 + np.exp(-1)), abs=0.03)
    without = win_rates(population(1.0, 0.0), length_control=False)
    assert without.everybody["length_controlled"] is None and without.everybody["regression"] is None
    assert without.people["p0"]["length_controlled_interval"] is None


def test_figures_are_repeatable_and_a_persons_intervals_are_over_their_prompts() -> None:
    made = population(0.5, 0.5, people=4, prompts=40)
    found = win_rates(made, seed=3)
    assert found == win_rates(made, seed=3)
    assert found.everybody["bootstrap"] == {"draws": RESAMPLES, "seed": 3}
    one = found.people["p1"]
    scores = np.array([item.score for item in made["p1"]])
    width = 2 * 1.96 * scores.std() / np.sqrt(40)
    assert one["raw_interval"][1] - one["raw_interval"][0] == pytest.approx(width, rel=0.15)
    assert one["length_controlled_interval"][0] < one["length_controlled"] < one["length_controlled_interval"][1]
    assert win_rates({}).everybody["raw"] is None
