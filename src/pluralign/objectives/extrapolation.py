"""A step beyond what an iteration learned: accelerated preference optimization.

He, Yuan, Gu 2024, arXiv 2410.06293.
"""

from __future__ import annotations

from torch import Tensor


def extrapolate_logps(new: Tensor, old: Tensor, *, alpha: float) -> Tensor:
    """The extrapolated policy of a table of log-probs (Algorithm 1, step 3).

    log pi_{t+1} = log pihat_{t+1} + alpha (log pihat_{t+1} - log pihat_t) - log Z, where both are iterates before such
    a step: what the last one learned, and not what it went beyond.

    Args:
        new: [P, Y] float, log-probs of Y responses to each of P prompts; rows sum to 1 in probability.
        old: [P, Y] float, of the iterate before.
        alpha: >= 0; 0 changes nothing.

    Returns:
        [P, Y], normalised.

    Raises:
        ValueError: other shapes, or a negative alpha.
    """
    if new.shape != old.shape or new.ndim != 2:
        raise ValueError(f"new is {list(new.shape)} and old is {list(old.shape)}; both must be [P, Y]")
    _check(alpha)
    return (new + alpha * (new - old)).log_softmax(dim=-1)


def theorem_coefficients(iterations: int, *, alpha: float) -> list[float]:
    """How much each iteration's reward counts in the last iterate (Theorem 4.1).

    pihat_T is proportional to pi_ref exp((1/beta) sum_i c_i r_i) with c_i = (1 - alpha^(T - i)) / (1 - alpha), or T - i
    for alpha 1, i from 0.

    Args:
        iterations: T >= 1.
        alpha: >= 0.

    Raises:
        ValueError: a setting out of its range.
    """
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}; it must be at least 1")
    _check(alpha)
    left = range(iterations, 0, -1)
    return [float(n) if alpha == 1 else (1 - alpha**n) / (1 - alpha) for n in left]


def _check(alpha: float) -> None:
    if not 0 <= alpha < float("inf"):
        raise ValueError(f"alpha is {alpha}; it must be a number of at least 0")
