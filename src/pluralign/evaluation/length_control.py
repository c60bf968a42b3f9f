"""Win rates at equal length: what is left of a preference when what length alone explains is taken out.

In the spirit of length-controlled AlpacaEval (Dubois et al. 2024): verdicts are regressed on the difference of lengths,
and the win rate is read off where there is none. Of person i and comparison j,

    logit P(win) = mu + u_i + phi * tanh(d_ij / s),

with d the length of the answer less that of the other one, in characters, and s the root of the mean of d squared. mu
and phi are shared by all people: the prompts of one are too few to tell how much a judge likes length. Fitted is the
likelihood (a tie is half a win) with normal priors on mu (standard deviation 2.5), phi (10) and every u_i (1), which
keep it finite where a judge follows length without exception. Read off is 1 / (1 + exp(-(mu + u_i))).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

NAME = "logistic"
SHARED_SPREADS = np.array([2.5, 10.0])
"""Standard deviations of the priors on mu and phi, in logits: a judge may follow length almost without exception."""
OWN_SPREAD = 1.0
"""Standard deviation of the prior on what people differ by, in logits."""
_STEPS = 100
_CLOSE = 1e-6
"""Change of a coefficient below which the fit is done."""


@dataclass(frozen=True)
class Contests:
    """Comparisons of all people as arrays, those of a person side by side.

    Attributes:
        starts: [people] where each person's begin; nobody is without any.
        person: [N] whose, from 0, ascending.
        score: [N] of the answer: 1 won, 1/2 tied, 0 lost, or between.
        longer: [N] tanh of the difference of lengths over `scale`, in (-1, 1).
        scale: root of the mean squared difference, in characters; 1 where all are 0.
    """

    starts: Indices
    person: Indices
    score: Array
    longer: Array
    scale: float

    @classmethod
    def of(cls, scores: Sequence[Sequence[float]], differences: Sequence[Sequence[float]]) -> Contests:
        """From each person's scores and differences of lengths in characters."""
        counts = np.array([len(some) for some in scores], dtype=np.intp)
        person = np.repeat(np.arange(len(counts)), counts)
        difference = np.array([one for some in differences for one in some], dtype=np.float64)
        scale = float(np.sqrt(np.mean(difference**2))) if len(difference) else 0.0
        longer = np.tanh(difference / (scale or 1.0))
        score = np.array([one for some in scores for one in some], dtype=np.float64)
        return cls(counts.cumsum() - counts, person, score, longer, scale or 1.0)

    @cached_property
    def counts(self) -> Indices:
        """[people] how many each has."""
        return np.diff(self.starts, append=len(self.person))

    def drawn(self, rows: Indices) -> Contests:
        """A resample: row j is row `rows[j]` of these, of the same person."""
        return replace(self, score=self.score[rows], longer=self.longer[rows])

    def by_person(self, values: Array) -> Array:
        """[..., people]: sums of values [..., N]."""
        return np.add.reduceat(values, self.starts, axis=-1) if len(self.starts) else values


@dataclass(frozen=True)
class LengthFit:
    """A fitted regression.

    Attributes:
        shared: [2] mu, the logit of winning at equal length, and phi, of what a longer answer gains.
        own: [people] u, what each person has beside mu.
    """

    shared: Array
    own: Array

    @property
    def rates(self) -> Array:
        """[people] win rates at equal length, in (0, 1)."""
        return _expit(self.shared[0] + self.own)


def fit_lengths(made: Contests) -> LengthFit:
    """Fit the regression of the module's docstring, by Newton's method."""
    fit = LengthFit(np.zeros(2), np.zeros(len(made.starts)))
    before = _objective(made, fit)
    for _ in range(_STEPS):
        step, own_step = _newton(fit, made.by_person(_moments(made, fit)))
        size = 1.0
        # The objective is concave: a step that loses went too far, and a part of it does not.
        while _objective(made, new := _moved(fit, size * step, size * own_step)) < before - 1e-9 and size > _CLOSE:
            size /= 2
        fit, before = new, _objective(made, new)
        if max(abs(step).max(), abs(own_step).max(initial=0.0)) < _CLOSE:
            break
    return fit


def refitted(made: Contests, fit: LengthFit, each: Array | None = None) -> LengthFit:
    """The fit of a resample, by two steps from the fit of all: a resample changes little, and thousands are wanted.

    Args:
        made: the resample, of the same people.
        fit: of all comparisons.
        each: [people] how often each person is drawn, comparisons and prior alike; by default once.
    """
    for _ in range(2):
        fit = _moved(fit, *_newton(fit, made.by_person(_moments(made, fit)), each))
    return fit


def _moments(made: Contests, fit: LengthFit) -> Array:
    """[5, N] what a step of Newton's method needs of every comparison: its pull on the logit and the curvature there.

    Rows are pull, pull x longer, curvature, curvature x longer, and curvature x longer squared.
    """
    chance = _expit(_logits(made, fit))
    pull, curve = made.score - chance, chance * (1 - chance)
    return np.stack([pull, pull * made.longer, curve, curve * made.longer, curve * made.longer**2])


def _newton(fit: LengthFit, sums: Array, each: Array | None = None) -> tuple[Array, Array]:
    """The step of the shared coefficients and of each person's; the Hessian of the latter is diagonal."""
    each = np.ones(len(fit.own)) if each is None else each
    own_pull, own_curve = sums[0] - fit.own / OWN_SPREAD**2, sums[2] + 1 / OWN_SPREAD**2
    pull, pull_longer, curve, crossed, longest = sums @ each
    gradient = np.array([pull, pull_longer]) - fit.shared / SHARED_SPREADS**2
    hessian = np.array([[curve, crossed], [crossed, longest]]) + np.diag(SHARED_SPREADS**-2)
    # What is left of both when every person's own coefficient follows.
    lever = sums[2:4] / own_curve
    step = np.linalg.solve(hessian - (lever * each) @ sums[2:4].T, gradient - (lever * each) @ own_pull)
    return step, (own_pull - step @ sums[2:4]) / own_curve


def _moved(fit: LengthFit, step: Array, own_step: Array) -> LengthFit:
    return LengthFit(fit.shared + step, fit.own + own_step)


def _objective(made: Contests, fit: LengthFit) -> float:
    logits = _logits(made, fit)
    # log P(win) is -log(1 + exp(-logit)), and log P(loss) that less the logit.
    likelihood = float((made.score * logits - np.logaddexp(0.0, logits)).sum())
    prior = ((fit.own / OWN_SPREAD) ** 2).sum() + ((fit.shared / SHARED_SPREADS) ** 2).sum()
    return likelihood - float(prior) / 2


def _logits(made: Contests, fit: LengthFit) -> Array:
    return np.asarray(fit.shared[0] + fit.own[made.person] + fit.shared[1] * made.longer)


def _expit(logits: Array) -> Array:
    return np.asarray(np.exp(-np.logaddexp(0.0, -logits)), dtype=np.float64)
