"""Two trainings in one process, a step of one and a step of the other in turn, each timed alone.

Each side runs in a thread of its own and holds the turn while it works: what disturbs the machine for some seconds
disturbs neighbouring steps of both, and falls out of their ratio.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainerCallback


@dataclass
class Steps:
    """What one side did.

    Attributes:
        wall: seconds of each step, from the end of the one before: loading, forward, backward, optimiser, and all else.
        cpu: CPU seconds of the side's thread in the same time.
        losses: of each step.
    """

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


class _Turns:
    """Whose turn it is; a side that has ended is passed over."""

    def __init__(self, sides: int) -> None:
        self.condition = threading.Condition()
        self.at, self.running = 0, [True] * sides

    def wait(self, side: int) -> None:
        with self.condition:
            self.condition.wait_for(lambda: self.at == side)

    def pass_on(self, side: int, *, ended: bool = False) -> None:
        with self.condition:
            self.running[side] = not ended
            following = [(side + step) % len(self.running) for step in range(1, len(self.running) + 1)]
            self.at = next((other for other in following if self.running[other]), -1)
            self.condition.notify_all()


class StepClock(TrainerCallback):
    """Times a trainer's steps.

    Args:
        switch: runs between two steps, outside of the clock.
        wait: for the device to have done what it was given: a step ends then, and the next one begins on an idle one.
    """

    def __init__(self, switch: Callable[[], None] = lambda: None, wait: Callable[[], None] = lambda: None) -> None:
        self.switch, self.wait, self.steps = switch, wait, Steps()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The first step begins here."""
        self._start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the step and let the other side have its turn; not after the last one, which something follows."""
        self.wait()
        self.steps.wall.append(time.perf_counter() - self._wall)
        self.steps.cpu.append(time.thread_time() - self._cpu)
        if state.global_step < state.max_steps:
            self.switch()
        self._start()

    def _start(self) -> None:
        self.wait()
        self._wall, self._cpu = time.perf_counter(), time.thread_time()


def keep_losses(trainer: Any, losses: list[Any]) -> None:
    """Add the loss of every forward and backward pass to a list; no copy and no wait for it."""
    step = trainer.training_step

    def kept(*args: Any, **kwargs: Any) -> Any:
        loss = step(*args, **kwargs)
        losses.append(loss.detach())
        return loss

    trainer.training_step = kept


@dataclass
class Contestant:
    """One side of `in_turns`.

    Attributes:
        make: makes the trainer, with the callback that is given.
        around: makes a context for the time in which the side has the turn.
    """

    make: Callable[[TrainerCallback], Any]
    around: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext


def in_turns(sides: Sequence[Contestant], wait: Callable[[], None] = lambda: None) -> list[Steps]:
    """Run the sides' trainings in turns; `wait` as in `StepClock`."""
    turns = _Turns(len(sides))
    found: list[Steps] = [Steps() for _ in sides]
    errors: list[BaseException] = []

    def run(number: int, side: Contestant) -> None:
        with contextlib.ExitStack() as turn:

            def switch() -> None:
                turn.close()
                turns.pass_on(number)
                turns.wait(number)
                if errors:
                    raise RuntimeError("another side has failed")
                turn.enter_context(side.around())

            turns.wait(number)
            turn.enter_context(side.around())
            try:
                clock = StepClock(switch, wait)
                trainer = side.make(clock)
                losses: list[Any] = []
                keep_losses(trainer, losses)
                trainer.train()
                found[number] = clock.steps
                found[number].losses = [float(loss) for loss in losses]
            except BaseException as error:  # noqa: BLE001
                errors.append(error)
        turns.pass_on(number, ended=True)

    threads = [threading.Thread(target=run, args=each) for each in enumerate(sides)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return found
