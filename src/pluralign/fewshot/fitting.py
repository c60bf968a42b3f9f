"""Choosing the scales of a taste, how sharp it is and how wide its intervals are, by training groups kept apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain

import numpy as np

from pluralign.fewshot.answers import Answers
from pluralign.fewshot.baselines import TrainingGroups
from pluralign.fewshot.calibration import ENOUGH, Calibration, Sample, calibrated
from pluralign.fewshot.features import Points
from pluralign.fewshot.kinds import KINDS, KNOWN, NEW, Tastes
from pluralign.fewshot.learned import Learned
from pluralign.fewshot.rounds import CONTEXTS, Round, Sheet, rounds_of
from pluralign.fewshot.taste import Scales, Sharpness, Taste
from pluralign.progress import progress_bar

GRID: dict[str, tuple[float, ...]] = {
    "vectors": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
    "own": (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0),
    "together": (0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
    "mean_own": (0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
    "mean_vectors": (0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
    "blend": (0.0, 0.15, 0.3, 0.5, 0.7),
}
"""What each scale may be; the search moves one of them at a time."""
STARTS = (Scales(), Scales(vectors=3.0))
"""Where it begins: mostly of what the training groups say together, and mostly of the vectors. From the former alone it
may never come to the latter, where the two would have to change together."""
NATS = 0.2
"""What a nat of likelihood counts beside alignment, where answers are shares. Single choices go by likelihood alone:
alignment with them is the better the harder a prediction is, right or wrong."""
SINGLE = 0.9
"""Answers that are single choices, of all, from which on a table is one of single choices."""
SHARPNESS = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 6.0, 10.0)
"""Powers that shares of known questions may be raised to."""
LIFTED = (NEW,)
"""Kinds of question whose vectors are taken into the space of `lifting`: what others answered to the same question says
more of it than its words do, and words in each other's light say more of a new one than words alone."""
SWEEPS, SEARCHED_ROUNDS = 3, 2
"""Passes over the scales, at most, and rounds whose targets the scales are chosen on; intervals are told from all."""
_TINY = 1e-4


@dataclass(frozen=True)
class Fitted:
    """Tastes with what they were chosen by.

    Attributes:
        tastes: of all training groups, at the chosen scales.
        calibration: of their intervals; None where too few groups have answers enough to tell.
        alignment: mean over training groups predicted from others, at the chosen scales; NaN likewise, and where it is
            not defined for any of their questions.
    """

    tastes: Tastes
    calibration: Calibration | None
    alignment: float


def fit(answers: Answers, points: Points, *, seed: int = 0) -> Fitted:
    """Tastes at the scales with which training groups are best predicted from others.

    Args:
        answers: of the training groups.
        points: vectors of all their questions.
        seed: of the parts.
    """
    rounds = rounds_of(answers, points, seed)
    if not rounds:
        taste = Learned.of(answers, points).taste(Scales())
        return Fitted(Tastes(taste, taste), None, float("nan"))
    sheet = Sheet.of(rounds[:SEARCHED_ROUNDS])
    there = {kind: sheet.count(kind) for kind in KINDS}
    # A kind of question that there is hardly any of tells nothing: the other kind's taste serves it, too.
    kinds = [kind for kind, count in there.items() if count >= min(ENOUGH, max(there.values()))]
    made = {kind: _made(kind, answers, points, rounds) for kind in kinds}
    tastes = {kind: taste for kind, (taste, _, _) in made.items()}
    first = tastes[kinds[0]]
    both = Tastes(tastes.get(KNOWN, first), tastes.get(NEW, first))
    scores = [aligned for _, _, aligned in made.values() if not np.isnan(aligned)]
    samples = [sample for _, some, _ in made.values() for sample in some]
    return Fitted(both, calibrated(samples), float(np.mean(scores)) if scores else float("nan"))


def _made(kind: str, answers: Answers, points: Points, rounds: Sequence[Round]) -> tuple[Taste, list[Sample], float]:
    """The taste for a kind of question, what its intervals are told from, and how well training groups are aligned."""
    lifts = kind in LIFTED
    learned = Learned.lifted(answers, points) if lifts else Learned.of(answers, points)
    searched = [one.lifted() if lifts else one for one in rounds[:SEARCHED_ROUNDS]]
    search = _Search(Sheet.of(searched))
    scales = search.best(kind)
    sharpness = search.sharpness(scales) if kind == KNOWN else {}
    taste = replace(learned.taste(scales), sharpness=sharpness)
    # Of the rounds that nothing is searched on, one at a time is lifted: that takes memory.
    others = (one.lifted() if lifts else one for one in rounds[SEARCHED_ROUNDS:])
    samples = [sample for one in chain(searched, others) for sample in _samples(one, kind, taste)]
    return taste, samples, search.alignment(kind, scales, sharpness)


class _Search:
    """Scores of scales on a sheet; what has been computed for some is kept for those that differ in the blend only.

    Args:
        sheet: all targets.
    """

    def __init__(self, sheet: Sheet) -> None:
        self.sheet = sheet
        self._logs: Callable[[Scales], np.ndarray] = lru_cache(maxsize=None)(sheet.logs)
        highest = np.maximum.reduceat(sheet.targets.said, sheet.targets.starts)
        self._single = bool((highest > 1 - _TINY).mean() >= SINGLE)

    def best(self, kind: str) -> Scales:
        """The best of what is reached from either start."""
        with progress_bar() as bar:
            task = bar.add_task(f"choosing scales, {kind} questions", total=None)
            reached = [self._climbed(kind, start, lambda: bar.advance(task)) for start in STARTS]
        return max(reached, key=lambda scales: self._score(kind, scales))

    def _climbed(self, kind: str, best: Scales, tried: Callable[[], None]) -> Scales:
        """One scale at a time in the direction of a better score, until no step is better or all sweeps are done."""
        score = self._score(kind, best)
        for _ in range(SWEEPS):
            before = score
            for name in GRID:
                for step in (-1, 1):
                    while (other := _moved(best, name, step)) is not None:
                        tried()
                        value = self._score(kind, other)
                        if value <= score + _TINY:
                            break
                        best, score = other, value
            if score == before:
                break
        return best

    def sharpness(self, scales: Scales) -> Sharpness:
        """How much harder shares of known questions are made, by the number of answers read.

        A nearest group's answers are single choices where groups' are, and alignment likes those: the least power is
        taken at which the taste is aligned as well as every baseline, and the best one where none is enough.
        """
        others = [self.sheet.by_trial(self.sheet.targets.alignment(one), KNOWN) for one in _baselines(self.sheet)]
        own = {power: self._aligned(KNOWN, scales, {1: power}) for power in SHARPNESS}
        sizes, found = np.searchsorted(CONTEXTS, self.sheet.read), {}
        for size in range(len(CONTEXTS)):
            there = (sizes == size) & ~np.isnan(own[1.0])
            if there.any():
                wanted = max(float(one[there].mean()) for one in others)
                means = {power: float(values[there].mean()) for power, values in own.items()}
                enough = [power for power, value in means.items() if value >= wanted]
                found[CONTEXTS[size]] = enough[0] if enough else max(means, key=means.__getitem__)
        return found

    def alignment(self, kind: str, scales: Scales, sharpness: Sharpness) -> float:
        """Mean over trials; NaN where all options of every question stand at one place."""
        found = self._aligned(kind, scales, sharpness)
        there = found[~np.isnan(found)]
        return float(there.mean()) if len(there) else float("nan")

    def _aligned(self, kind: str, scales: Scales, sharpness: Sharpness) -> np.ndarray:
        return self.sheet.by_trial(self.sheet.targets.alignment(self._shares(scales, sharpness)), kind)

    def _score(self, kind: str, scales: Scales) -> float:
        shares = self._shares(scales, {})
        values = -self.sheet.targets.nll(shares)
        if not self._single:
            # Where all options stand at one place there is no alignment, and likelihood decides.
            values = np.nan_to_num(self.sheet.targets.alignment(shares)) + NATS * values
        return float(np.nanmean(self.sheet.by_trial(values, kind)))

    def _shares(self, scales: Scales, sharpness: Sharpness) -> np.ndarray:
        targets, others = self.sheet.targets, self.sheet.others
        powers = self.sheet.powers(sharpness)
        shares = targets.softmax(powers * self._logs(replace(scales, blend=0.0)))
        return np.where(np.isnan(others), shares, (1 - scales.blend) * shares + scales.blend * others)


def _moved(scales: Scales, name: str, step: int) -> Scales | None:
    values = GRID[name]
    place = values.index(getattr(scales, name)) + step
    return replace(scales, **{name: values[place]}) if 0 <= place < len(values) else None


def _baselines(sheet: Sheet) -> Iterator[np.ndarray]:
    """What the training groups' mean, the nearest of them and their mixture say, `[points]`; uniform where nothing."""
    tables = [(one, TrainingGroups.of(one.learned.answers, one.learned.points)) for one in sheet.rounds]
    even = sheet.targets.softmax(np.zeros(len(sheet.others)))
    asked = [(groups, trial) for one, groups in tables for trial in one.trials]
    for say in (lambda groups, _, numbers: groups.mean(numbers), TrainingGroups.nearest, TrainingGroups.mixture):
        said = [one for groups, trial in asked for one in say(groups, trial.context, trial.numbers)]
        parts = np.split(even, sheet.targets.starts[1:])
        yield np.concatenate([part if one is None else one for part, one in zip(parts, said, strict=True)])


def _samples(one: Round, kind: str, taste: Taste) -> Iterator[Sample]:
    # The round's points are in the space already.
    learned = replace(one.learned.taste(taste.scales), sharpness=taste.sharpness, lift=None)
    view = learned.view(one.questions, one.learned.points)
    for trial in one.trials:
        if targets := trial.targets.get(kind):
            reading = view.read(trial.context)
            for said, predicted in zip(targets.values(), reading.predict(list(targets)), strict=True):
                yield Sample(kind, reading.read, predicted, said)
