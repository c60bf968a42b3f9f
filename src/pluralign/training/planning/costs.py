"""Seconds of measured work, and what they say of work that is yet to be done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

_SPREAD = 1.5
"""Sizes must differ by this factor before they can tell a part that is the same for all from one that grows."""


@dataclass(frozen=True, slots=True)
class Work:
    """An amount of work: number of pieces, and their size in all.

    Attributes:
        pieces: forwards, batches, people: whatever comes one by one.
        size: tokens, rows: whatever a piece is long by.
    """

    pieces: float = 0
    size: float = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.pieces + other.pieces, self.size + other.size)

    def times(self, factor: float) -> Work:
        """So many times the work."""
        return Work(self.pieces * factor, self.size * factor)


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of a piece whatever its size, and of one unit of size."""

    piece: float = 0.0
    unit: float = 0.0

    def of(self, work: Work) -> float:
        """Seconds of some work."""
        return self.piece * work.pieces + self.unit * work.size


def fitted(measured: Sequence[tuple[Work, float]]) -> Cost:
    """The cost that explains measured work best; neither part is negative.

    Args:
        measured: work, and the seconds that it took. Where the pieces are all of like size, size alone counts.
    """
    measured = [(work, seconds) for work, seconds in measured if work.size]
    total = sum(work.size for work, _ in measured)
    if not total:
        return Cost()
    overall = Cost(unit=sum(seconds for _, seconds in measured) / total)
    sizes = [work.size / max(work.pieces, 1) for work, _ in measured]
    if len(measured) < 3 or max(sizes) < _SPREAD * min(sizes):
        return overall
    # Least squares of relative errors: a long piece must not outvote all short ones.
    weights = [1 / seconds**2 if seconds > 0 else 0.0 for _, seconds in measured]
    nn = sum(w * work.pieces**2 for (work, _), w in zip(measured, weights, strict=True))
    ns = sum(w * work.pieces * work.size for (work, _), w in zip(measured, weights, strict=True))
    ss = sum(w * work.size**2 for (work, _), w in zip(measured, weights, strict=True))
    ny = sum(w * work.pieces * seconds for (work, seconds), w in zip(measured, weights, strict=True))
    sy = sum(w * work.size * seconds for (work, seconds), w in zip(measured, weights, strict=True))
    determinant = nn * ss - ns * ns
    if determinant <= 1e-9 * nn * ss:
        return overall
    piece, unit = (ny * ss - sy * ns) / determinant, (sy * nn - ny * ns) / determinant
    return Cost(piece, unit) if piece > 0 and unit > 0 else overall


@dataclass
class Stopwatch:
    """Seconds by the name of a part; what a part calls by another name is not its own.

    Attributes:
        seconds: of each part so far.
        calls: of each part so far.
        measured: of each part, what `watch` has noted of every call: its work and its seconds.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    measured: dict[str, list[tuple[Work, float]]] = field(default_factory=dict)
    _inside: list[float] = field(default_factory=list)

    @contextmanager
    def part(self, name: str, work: Work = Work()) -> Iterator[None]:
        """Time the block as a part."""
        _wait_for_device()
        begun = time.perf_counter()
        self._inside.append(0.0)
        try:
            yield
        finally:
            _wait_for_device()
            whole = time.perf_counter() - begun
            own = whole - self._inside.pop()
            if self._inside:
                self._inside[-1] += whole
            self.seconds[name] = self.seconds.get(name, 0.0) + own
            self.calls[name] = self.calls.get(name, 0) + 1
            self.measured.setdefault(name, []).append((work, own))

    def watch(
        self, owner: Any, method: str, name: str, work: Callable[..., Work] = lambda *_, **__: Work(pieces=1)
    ) -> None:
        """Time every call of an object's method from now on.

        Args:
            owner: the object; its method is replaced by a timed one.
            method: name of the method.
            name: of the part.
            work: takes the call's arguments; the work that it does.
        """
        own = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part("counting"):
                amount = work(*args, **kwargs)
            with self.part(name, amount):
                return own(*args, **kwargs)

        setattr(owner, method, timed)

    def note(self, name: str, work: Work) -> None:
        """Say afterwards what work the last call of a part did."""
        _, seconds = self.measured[name].pop()
        self.measured[name].append((work, seconds))

    def each(self, name: str) -> float:
        """Mean seconds of a call."""
        return self.seconds.get(name, 0.0) / max(self.calls.get(name, 0), 1)

    def cost(self, name: str, *, skip: int = 0) -> Cost:
        """Cost of a part's work, without its first calls where there are more."""
        noted = [(work, seconds) for work, seconds in self.measured.get(name, []) if work.size]
        return fitted(noted[skip:] if len(noted) > skip else noted)


def _wait_for_device() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
