"""Which rows each of a person's optimiser steps takes: the Trainer's order, as a function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from transformers import TrainingArguments

from pluralign.training.batches import Draw, EpochSampler


@dataclass(slots=True)
class Schedule:
    """A person's steps.

    A step takes `accumulation` batches of `batch_size` rows; what an epoch has left at its end makes a smaller step,
    so that a person with fewer rows than one step has one step an epoch, of all rows.

    Attributes:
        rows: of the person, at least 1.
        batch_size: rows of a batch.
        accumulation: batches of a step.
        seed: of the order, another one every epoch; None keeps the table's.
        max_steps: optimiser steps in all.
        draw: how an epoch draws its rows.
        first: step that these rows are taken from on; before it were others.
        epochs_before: epochs over those.
    """

    rows: int
    batch_size: int
    accumulation: int
    seed: int | None
    max_steps: int
    draw: Draw = field(default_factory=Draw)
    first: int = 0
    epochs_before: int = 0
    # Of one epoch at a time: all of a large group would be many numbers.
    _order: tuple[int, list[int]] = field(default=(-1, []), init=False, repr=False, compare=False)

    @classmethod
    def of(cls, arguments: TrainingArguments, rows: int, draw: Draw = Draw()) -> Schedule:  # noqa: B008
        """From the Trainer's arguments of one person."""
        batch, accumulation = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
        steps = math.ceil(math.ceil(rows / batch) / accumulation)
        most = arguments.max_steps if arguments.max_steps > 0 else math.ceil(arguments.num_train_epochs * steps)
        seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
        fixed = arguments.train_sampling_strategy == "sequential"
        return cls(rows, batch, accumulation, None if fixed else seed, most, draw)

    @property
    def batches_per_epoch(self) -> int:
        """Batches of an epoch, the last one maybe smaller."""
        return math.ceil(self.rows / self.batch_size)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch, at least 1."""
        return max(1, math.ceil(self.batches_per_epoch / self.accumulation))

    @property
    def epochs(self) -> int:
        """Epochs that are begun."""
        return self.epochs_before + math.ceil((self.max_steps - self.first) / self.steps_per_epoch)

    def batches(self, step: int) -> list[list[int]]:
        """Row numbers of each batch of a step (from 0)."""
        epoch, within = divmod(step - self.first, self.steps_per_epoch)
        epoch += self.epochs_before
        if self._order[0] != epoch:
            self._order = epoch, list(EpochSampler(self.rows, seed=self.seed, epoch=lambda: epoch, draw=self.draw))
        order = self._order[1]
        size = self.batch_size
        first = within * self.accumulation
        numbers = range(first, min(first + self.accumulation, self.batches_per_epoch))
        return [order[number * size : (number + 1) * size] for number in numbers]

    def epochs_done(self, steps: int) -> float:
        """Epochs after so many steps, as the Trainer counts them."""
        epoch, within = divmod(steps - self.first - 1, self.steps_per_epoch)
        batches = min((within + 1) * self.accumulation, self.batches_per_epoch)
        return self.epochs_before + epoch + batches / self.batches_per_epoch

    def ends_epoch(self, steps: int) -> bool:
        """Whether an epoch is over after so many steps."""
        return (steps - self.first) % self.steps_per_epoch == 0
