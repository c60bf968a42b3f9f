"""The closed form: its special cases, what it reads out of answers, and how sure it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pluralign.fewshot.active import next_question, worth
from pluralign.fewshot.answers import Answers, Question
from pluralign.fewshot.calibration import Calibration, Sample, calibrated
from pluralign.fewshot.features import Points, points
from pluralign.fewshot.fitting import SEARCHED_ROUNDS, STARTS, _Search, fit
from pluralign.fewshot.kinds import KNOWN, NEW, Tastes
from pluralign.fewshot.learned import taste
from pluralign.fewshot.metrics import alignment
from pluralign.fewshot.rounds import Sheet, rounds_of
from pluralign.fewshot.taste import Predicted, Scales, log_shares


def population(seed: int, groups: int, questions: int = 40, dimensions: int = 6) -> tuple[Answers, Points]:
    """Groups whose log-shares are a common mean, a taste of their own for the options' vectors, and noise."""
    draw = np.random.default_rng(seed)
    answers, vectors = Answers(), []
    tastes, common = draw.normal(size=(groups, dimensions)), draw.normal(size=dimensions)
    for number in range(questions):
        question = Question(f"Question {number}?", tuple(f"option {n}" for n in range(draw.integers(2, 5))))
        options = draw.normal(size=(len(question.options), dimensions)) / np.sqrt(dimensions)
        vectors.append(options)
        own = options @ common + draw.normal(size=len(options)) * 0.5
        for group, taste_of in enumerate(tastes):
            logits = own + 1.5 * options @ taste_of + draw.normal(size=len(options)) * 0.2
            answers.add(f"group {group}", question, np.exp(logits) / np.exp(logits).sum())
    return answers, points(answers.questions, np.concatenate(vectors))


def part(answers: Answers, groups: range, questions: range) -> Answers:
    found = answers.of(f"group {group}" for group in groups)
    found.groups = {
        group: {number: shares for number, shares in own.items() if number in questions}
        for group, own in found.groups.items()
    }
    return found


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_a_prediction_is_a_distribution_whatever_the_order_of_the_answers(seed: int) -> None:
    answers, vectors = population(seed, groups=5, questions=10)
    view = taste(part(answers, range(4), range(8)), vectors, Scales()).view(answers.questions, vectors)
    own = answers.groups["group 4"]
    context = {number: own[number] for number in range(5)}
    found = view.read(context).predict(range(5, 10))
    again = view.read(dict(reversed(context.items()))).predict([9, 5])
    for number, one in zip(range(5, 10), found, strict=True):
        assert one.shares.shape == one.deviations.shape == own[number].shape
        assert one.shares.min() >= 0 and one.shares.sum() == pytest.approx(1) and one.deviations.min() > 0
    np.testing.assert_allclose(again[0].shares, found[4].shares, atol=1e-9)
    np.testing.assert_allclose(again[1].deviations, found[0].deviations, atol=1e-9)


def test_without_differences_everybody_is_the_mean() -> None:
    answers, vectors = population(0, groups=6)
    still = Scales(together=1e-12, vectors=1e-12, mean_own=1e9, own=0.5, blend=0.0)
    learned = part(answers, range(5), range(40))
    view = taste(learned, vectors, still).view(answers.questions, vectors)
    own = answers.groups["group 5"]
    found = view.read({number: own[number] for number in range(10)}).predict([20])[0]
    logs = np.mean([log_shares(answers.groups[f"group {n}"][20]) for n in range(5)], 0)
    np.testing.assert_allclose(found.shares, np.exp(logs) / np.exp(logs).sum(), atol=1e-6)


def test_without_training_groups_it_is_a_ridge_regression_on_the_vectors() -> None:
    answers, vectors = population(1, groups=1)
    scales = Scales(vectors=0.7, own=0.3, mean_own=0.2)
    view = taste(Answers(), points([], np.zeros((0, 6))), scales).view(answers.questions, vectors)
    own = answers.groups["group 0"]
    found = view.read({number: own[number] for number in range(20)}).predict([30])[0]
    read = vectors.centred[vectors.of(range(20))]
    said = np.concatenate([log_shares(own[number]) for number in range(20)])
    weights = np.linalg.solve(read.T @ read + 0.5 / 0.7 * np.eye(6), read.T @ said)
    logs = vectors.centred[vectors.slice(30)] @ weights
    np.testing.assert_allclose(found.shares, np.exp(logs) / np.exp(logs).sum(), atol=1e-9)


def test_more_answers_make_it_surer_and_better() -> None:
    answers, vectors = population(2, groups=24, questions=60)
    view = taste(part(answers, range(16), range(60)), vectors, Scales()).view(answers.questions, vectors)
    scores, widths = [], []
    for size in (0, 3, 10, 30):
        found = [
            (answers.questions[number], one, own[number])
            for own in (answers.groups[f"group {group}"] for group in range(16, 24))
            for number, one in zip(
                range(40, 60), view.read({n: own[n] for n in range(size)}).predict(range(40, 60)), strict=True
            )
        ]
        scores.append(np.mean([alignment(question, one.shares, shares) for question, one, shares in found]))
        widths.append(np.mean([one.deviations.mean() for _, one, _ in found]))
    assert scores == sorted(scores) and scores[-1] > scores[0] + 0.05
    assert widths == sorted(widths, reverse=True)


def test_fitted_intervals_hold_what_they_say_of_new_groups() -> None:
    answers, vectors = population(4, groups=36, questions=40)
    fitted = fit(part(answers, range(16), range(30)), vectors)
    assert fitted.calibration is not None
    view = fitted.tastes.view(answers.questions, vectors)
    for kind, targets in ((KNOWN, range(20, 30)), (NEW, range(30, 40))):
        inside = []
        for own in (answers.groups[f"group {group}"] for group in range(16, 36)):
            for size in (5, 11):
                predicted = view.read({number: own[number] for number in range(size)}).predict(targets)
                for number, one in zip(targets, predicted, strict=True):
                    low, high = fitted.calibration.interval(one, kind, 0.8, size)
                    inside += list((low <= own[number]) & (own[number] <= high))
        assert 0.65 < np.mean(inside) < 0.95


def test_scales_are_tried_by_what_the_taste_predicts() -> None:
    answers, vectors = population(6, groups=9, questions=20)
    scales = Scales(own=0.2, together=2.0, vectors=0.4, blend=0.2)
    for one in rounds_of(answers, vectors, 0):
        view = one.learned.taste(scales).view(one.questions, vectors)
        assert {kind for trial in one.trials for kind in trial.targets} == {KNOWN, NEW}
        for trial, logs in zip(one.trials, one.logs(scales), strict=True):
            unblended = replace(view, blend=0.0).read(trial.context).shares(trial.numbers)
            found = np.split(np.exp(logs), np.cumsum(list(map(len, unblended)))[:-1])
            for shares, powers in zip(unblended, found, strict=True):
                np.testing.assert_allclose(powers / powers.sum(), shares, atol=1e-9)


def test_known_and_new_questions_are_read_by_a_taste_each() -> None:
    answers, vectors = population(7, groups=8, questions=12)
    learned = part(answers, range(7), range(8))
    known, new = taste(learned, vectors, Scales(own=0.1)), taste(learned, vectors, Scales(own=2.0))
    own = answers.groups["group 7"]
    context = {number: own[number] for number in range(4)}
    found = Tastes(known, new).view(answers.questions, vectors).read(context).predict([6, 10])
    for one, of, number in zip(found, (known, new), (6, 10), strict=True):
        alone = of.view(answers.questions, vectors).read(context).predict([number])[0]
        np.testing.assert_allclose(one.shares, alone.shares)


def test_sharper_shares_are_powers_by_the_number_of_answers_read() -> None:
    answers, vectors = population(8, groups=5, questions=12)
    plain = taste(part(answers, range(4), range(12)), vectors, Scales(blend=0.0))
    sharp = replace(plain, sharpness={2: 2.0, 8: 1.0})
    own = answers.groups["group 4"]
    for size, power in ((1, 2.0), (2, 2.0), (4, 1.5), (8, 1.0), (9, 1.0)):
        shares, sharper = (
            one.view(answers.questions, vectors).read({n: own[n] for n in range(size)}).shares([11])[0]
            for one in (plain, sharp)
        )
        np.testing.assert_allclose(sharper, shares**power / (shares**power).sum(), atol=1e-9)


def test_known_questions_are_known_in_whatever_order_their_options_stand() -> None:
    answers, vectors = population(9, groups=6, questions=12)
    learned = taste(part(answers, range(5), range(12)), vectors, Scales())
    turned = [Question(one.text, one.options[::-1]) for one in answers.questions]
    reverse = np.concatenate([vectors.vectors[vectors.slice(number)][::-1] for number in range(12)])
    own = answers.groups["group 5"]
    found = learned.view(answers.questions, vectors).read({n: own[n] for n in range(4)}).predict([7, 9])
    other = learned.view(turned, points(turned, reverse)).read({n: own[n][::-1] for n in range(4)}).predict([7, 9])
    for one, two in zip(found, other, strict=True):
        np.testing.assert_allclose(one.shares, two.shares[::-1], atol=1e-9)
        np.testing.assert_allclose(one.deviations, two.deviations[::-1], atol=1e-9)


def test_of_many_people_with_questions_of_their_own_some_tell_the_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    draw, answers, vectors = np.random.default_rng(0), Answers(), []
    for person in range(40):
        liked = draw.normal(size=4)
        for number in range(10):
            options = draw.normal(size=(2, 4))
            vectors.append(options)
            first = float(options[0] @ liked > options[1] @ liked)
            answers.add(f"p{person}", Question(f"{person} {number}?", ("a", "b")), np.array([first, 1 - first]))
    whole = points(answers.questions, np.concatenate(vectors))
    monkeypatch.setattr("pluralign.fewshot.rounds.MOST", 400)
    monkeypatch.setattr("pluralign.fewshot.learned.COMPARED", 12)
    found = rounds_of(answers, whole, 0)
    groups = {group for one in found for group in one.learned.answers.groups}
    assert len(groups) == 20 and sum(len(one.trials) for one in found) > 0
    for one in found:
        assert len(one.questions) == 200
        for trial in one.trials:
            for number, shares in (*trial.context.items(), *trial.targets[NEW].items()):
                person = f"p{one.questions[number].text.split()[0]}"
                before = answers.number(one.questions[number])
                assert answers.groups[person][before] is shares
                place = one.learned.points.slice(number)
                np.testing.assert_array_equal(one.learned.points.vectors[place], whole.vectors[whole.slice(before)])
    fitted = fit(answers, whole)
    own = answers.groups["p0"]
    said = fitted.tastes.view(answers.questions, whole).read({n: own[n] for n in range(7)}).shares([7, 8, 9])
    assert all(one.argmax() == own[n].argmax() for n, one in zip((7, 8, 9), said, strict=True))


def test_likelihood_chooses_where_no_alignment_is_defined() -> None:
    answers, found = population(3, 10)
    level = Answers()
    for group, number, shares in answers:
        question = answers.questions[number]
        level.add(group, replace(question, ordinals=(1.0,) * len(question.options)), shares)
    made = fit(level, found)
    assert np.isnan(made.alignment) and made.calibration is not None
    sheet = Sheet.of(rounds_of(level, found, 0)[:SEARCHED_ROUNDS])
    search, targets = _Search(sheet), sheet.targets

    def nats(scales: Scales) -> float:
        return float(np.nanmean(sheet.by_trial(targets.nll(search._shares(scales, {})), KNOWN)))

    assert nats(made.tastes.known.scales) < min(map(nats, STARTS)) - 0.01


def test_too_few_groups_leave_the_defaults_and_no_intervals() -> None:
    answers, vectors = population(4, groups=1)
    fitted = fit(answers, vectors)
    assert fitted.tastes.known.scales == Scales() and fitted.calibration is None and np.isnan(fitted.alignment)


def test_the_question_worth_most_is_the_one_that_tells_most_of_the_others() -> None:
    draw = np.random.default_rng(5)
    answers, vectors = Answers(), []
    # Question 0 is like all others; question 1 is like nothing else.
    for number in range(8):
        answers.number(Question(f"Question {number}?", ("yes", "no")))
        shared = np.array([0.0, 1.0]) if number == 1 else np.array([1.0, 0.0])
        side = shared + draw.normal(size=2) * 0.01
        vectors += [side, -side]
    points_of = points(answers.questions, np.array(vectors))
    one = taste(Answers(), points([], np.zeros((0, 2))), Scales(own=0.1, mean_own=0.1, vectors=1.0))
    view = Tastes(one, one).view(answers.questions, points_of)
    assert next_question(view, {}, [0, 1], targets=range(2, 8)) == 0
    assert next_question(view, {}, [0, 1], targets=[1]) == 1
    # What has been told by a question like it is worth less.
    before = worth(view, {}, [0], targets=range(3, 8))
    after = worth(view, {2: np.array([0.9, 0.1])}, [0], targets=range(3, 8))
    assert 0 < after[0] < before[0] / 2
    # It is the variance that goes: as much as the posterior itself says.
    targets = range(3, 8)
    gone = [
        sum(one.deviations @ one.deviations for one in view.read(context).predict(targets))
        for context in ({}, {0: np.array([0.5, 0.5])})
    ]
    assert gone[0] - gone[1] == pytest.approx(before[0], rel=1e-6)


def test_intervals_of_a_kind_that_nobody_told_of_are_the_other_kinds() -> None:
    one = Predicted(np.array([0.6, 0.4]), np.array([0.1, 0.1]))
    low, high = Calibration({NEW: {5: {0.8: 2.0}}}, {NEW: 1.0}).interval(one, KNOWN, 0.8, 3)
    np.testing.assert_allclose([low, high], [[0.4, 0.2], [0.8, 0.6]])


def sample(kind: str, read: int, errors: np.ndarray, share: float = 0.5, deviation: float = 0.01) -> Sample:
    """Errors in hundredths."""
    shares = np.full(len(errors), share)
    return Sample(kind, read, Predicted(shares, np.full(len(errors), deviation)), shares + 0.01 * errors)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 60), st.sampled_from([KNOWN, NEW]), st.integers(0, 2**32 - 1))
def test_intervals_hold_their_share_after_few_answers_and_after_many(read: int, kind: str, seed: int) -> None:
    # Errors grow with what was read, and with the kind; what is promised does not.
    draw = np.random.default_rng(seed)

    def samples(count: int, sizes: list[int]) -> list[Sample]:
        return [
            sample(one, size, draw.normal(size=2) * (1 + np.log2(size)) * (2 if one == NEW else 1))
            for one in (KNOWN, NEW)
            for size in sizes
            for _ in range(count)
        ]

    calibration = calibrated(samples(300, [1, 2, 4, 8, 16, 32, 64]))
    told = np.array([one.said for one in samples(800, [read]) if one.kind == kind])
    shares, deviation = np.array([0.5, 0.5]), np.full(2, 0.01)
    low, high = calibration.interval(Predicted(shares, deviation), kind, 0.8, read)
    assert 0.74 < np.mean((low <= told) & (told <= high)) < 0.86


@pytest.mark.parametrize("follows", ["the posterior", "the share"])
def test_intervals_have_the_shape_that_is_narrowest(follows: str) -> None:
    draw = np.random.default_rng(0)
    samples = []
    for _ in range(300):
        share, deviation = draw.uniform(0.02, 0.5), draw.uniform(0.01, 0.05)
        size = deviation if follows == "the posterior" else 0.1 * np.sqrt(share * (1 - share))
        samples.append(sample(NEW, 5, 100 * size * draw.normal(size=4), share, deviation))
    found = calibrated(samples)
    assert found.shapes[NEW] > 0.6 if follows == "the posterior" else found.shapes[NEW] < 0.6
    one, other = (Predicted(np.full(1, share), np.full(1, 0.02)) for share in (0.1, 0.4))
    narrow, wide = (np.ptp(found.interval(one, NEW, 0.5, 5)) for one in (one, other))
    assert wide > 1.2 * narrow if follows == "the share" else wide < 1.2 * narrow


def test_few_samples_are_taken_together() -> None:
    def some(kind: str, read: int, value: float, count: int) -> list[Sample]:
        return [sample(kind, read, np.array([value]))] * count

    found = calibrated(
        [*some(KNOWN, 5, 9.0, 3), *some(NEW, 5, 1.0, 150), *some(NEW, 20, 2.0, 150), *some(NEW, 40, 2.0, 7)]
    )
    assert found.factors[KNOWN][5][0.8] == pytest.approx(1.0), "three samples do not tell how sure one is"
    assert list(found.factors[NEW]) == [5, 21] and found.factors[NEW][21][0.95] == pytest.approx(2.0)
    apart = calibrated([*some(KNOWN, 5, 2.0, 60), *some(KNOWN, 20, 1.0, 60)]).factors[KNOWN]
    assert {size: factors[0.8] for size, factors in apart.items()} == pytest.approx({5: 2.0, 20: 1.0})


def test_scales_do_not_stay_where_two_would_have_to_change_together(monkeypatch: pytest.MonkeyPatch) -> None:
    def score(_: _Search, kind: str, scales: Scales) -> float:
        far = scales.vectors >= 3
        return (1.0 if far else 0.5) - abs(np.log10(scales.own / (0.1 if far else 4.0))) - 0.3 * (scales.vectors == 1)

    monkeypatch.setattr(_Search, "_score", score)
    answers, vectors = population(6, groups=9, questions=20)
    best = _Search(Sheet.of(rounds_of(answers, vectors, 0))).best(NEW)
    assert best.vectors >= 3 and best.own == 0.1
