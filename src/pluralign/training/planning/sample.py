"""A small part of a run, made for real in a temporary folder, with a stopwatch on its parts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainingArguments

from pluralign.config import TrainConfig
from pluralign.models.anchoring import Anchored
from pluralign.training.arguments import training_arguments
from pluralign.training.bank.forwards import Unit, packed, row_widths, tokens_of
from pluralign.training.bank.learner import Learner
from pluralign.training.bank.loop import BankPopulation
from pluralign.training.bank.snapshots import Snapshot
from pluralign.training.planning.costs import Stopwatch, Work
from pluralign.training.population import Population
from pluralign.training.record import Record, Rows
from pluralign.training.run import Run
from pluralign.training.runs import RunFolder
from pluralign.training.trainer import PreferenceTrainer
from pluralign.training.worker import runs_reference

_SAVED = 3
"""Adapters that the bank's sample writes."""
_IN_SNAPSHOT = 8
"""People in the one snapshot that it writes."""


def train_sample(run: Run, folder: Path, rows: Rows, *, people: int, steps: int, watch: Stopwatch) -> list[Path]:
    """Train some made-up people on given rows, as the run trains its own.

    Parts that are timed: `opening`, `joining` (a piece a person), `forwards` and `validation` (a piece a forward, size
    is tokens), `steps` (what else a person's step takes; size is steps of people), `lines`, `saving`, `checkpoint`.

    Args:
        run: with its base loaded.
        folder: to write to.
        rows: to draw everybody's from.
        people: number; as many as the run has slots, in the bank.
        steps: optimiser steps of each.
        watch: gets the times.

    Returns:
        Folders of adapters.
    """
    folder.mkdir()
    config = _config(run.worker.config, folder, steps, held_out=bool(rows.held_out))
    arguments = training_arguments(config.training, output_dir=folder, device=config.device)
    place, users = RunFolder(folder), [f"sample-{number}" for number in range(people)]
    record = Record(place, config.parameters.kind)
    parts = (config, run.worker.base, run.objective, arguments, place, run.worker.layout, record)
    population = _Bank(watch, *parts) if run.together else _Turns(watch, *parts)
    size = steps * arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    drawn = {user: _drawn(rows, number, people, size) for number, user in enumerate(users)}
    users = population.resume(users)
    population.train(users, lambda asked: ((user, drawn[user]) for user in asked))
    return list(record.finished.values())


def _config(config: TrainConfig, folder: Path, steps: int, *, held_out: bool) -> TrainConfig:
    """The run's configuration for so many steps, in which nobody is told and nothing ends early."""
    checkpoints = config.training.save_strategy != "no" and steps > 1
    training = replace(
        config.training,
        max_steps=steps,
        eval_strategy="epoch" if held_out and config.training.eval_strategy != "no" else "no",
        save_strategy="steps" if checkpoints else "no",
        save_steps=max(steps - 1, 1),
        load_best_model_at_end=False,
        early_stopping_patience=None,
        report_to="none",
    )
    return replace(config, output_dir=str(folder), training=training)


def _drawn(rows: Rows, number: int, people: int, size: int) -> Rows:
    """One person's rows: all people together have every row about equally often."""
    train = [rows.train[(number * size + place) % len(rows.train)] for place in range(size)]
    share = max(1, len(rows.held_out) // people)
    held_out = [
        rows.held_out[(number * share + place) % len(rows.held_out)] for place in range(share if rows.held_out else 0)
    ]
    return Rows(train, held_out)


class _Bank(BankPopulation):
    """The loop over the bank with a stopwatch; all but a few adapters are left unwritten."""

    def __init__(self, watch: Stopwatch, *parts: Any) -> None:
        super().__init__(*parts)
        self.watch, self._written, self._rounds = watch, 0, 0

    def _open(self, people: int) -> None:
        with self.watch.part("opening"):
            super()._open(people)
        self.watch.watch(self.forwards, "backward", "forwards", self._work)
        self.watch.watch(self.forwards, "evaluate", "validation", self._work)
        self.watch.watch(self.bank, "save", "saving")

    def _work(self, units: Sequence[Unit]) -> Work:
        shared = self.forwards.collator.layout == "shared"
        widths = [row_widths(self.forwards._lengths(unit), shared=shared) for unit in units]
        copies = 2 if self.forwards.from_forward else 1
        packs = list(packed(widths, tokens=self.forwards.tokens, copies=copies))
        tokens = sum(tokens_of([one for number in pack for one in widths[number]]) for pack in packs)
        return Work(len(packs), copies * tokens)

    def _fill(self) -> None:
        moving = min(len(self._free), len(self.waiting))
        with self.watch.part("joining", Work(moving)):
            super()._fill()

    def _step(self) -> None:
        self._rounds += 1
        with self.watch.part("steps", Work(1, len(self.learners))):
            super()._step()

    def _report(self, learners: Sequence[Learner], logs: dict[str, dict[str, float]]) -> None:
        with self.watch.part("lines", Work(size=sum(learner.wants_log for learner in learners))):
            super()._report(learners, logs)

    def _validate(self, learners: Sequence[Learner]) -> None:
        with self.watch.part("lines", Work(size=len(learners))):
            super()._validate(learners)

    def _has_something(self, learner: Learner) -> bool:
        self._written += 1
        return self._written <= _SAVED and super()._has_something(learner)

    def _keep(self) -> None:
        due = any(learner.control.should_save for learner in self.learners.values())
        if due and self._saves:
            with self.watch.part("checkpoint", Work(size=min(len(self.learners), _IN_SNAPSHOT))):
                self.snapshots.write(self._state)

    def _state(self) -> Snapshot:
        whole = super()._state()
        return Snapshot(whole.slots, whole.learners[:_IN_SNAPSHOT], whole.waiting, whole.skipped)


class _Turns(Population):
    """The loop of one person after another with a stopwatch."""

    def __init__(self, watch: Stopwatch, *parts: Any) -> None:
        super().__init__(*parts)
        self.watch = watch

    def _train_person(self, user: str, rows: Rows, callbacks: list[TrainerCallback]) -> None:
        with self.watch.part("joining", Work(1)):
            super()._train_person(user, rows, [*callbacks, _Steps(self.watch)])

    def _trainer(self, *parts: Any) -> PreferenceTrainer:
        trainer = super()._trainer(*parts)
        self.watch.watch(trainer, "training_step", "forwards", lambda model, inputs, *_, **__: self._tokens(inputs))
        self.watch.watch(trainer, "evaluate", "validation", lambda *_, **__: self._held_out(trainer))
        self.watch.watch(trainer, "_save_checkpoint", "checkpoint", lambda *_, **__: Work(size=1))
        return trainer

    def _held_out(self, trainer: PreferenceTrainer) -> Work:
        rows: Any = trainer.eval_dataset
        collator, size = self._collator, trainer.args.per_device_eval_batch_size
        work = Work()
        for start in range(0, len(rows), size):
            examples = [rows[number] for number in range(start, min(start + size, len(rows)))]
            work += self._tokens(collator(examples))
        return work

    def _tokens(self, inputs: Mapping[str, Any]) -> Work:
        twice = runs_reference(self.config, self.objective)
        return Work(1, (2 if twice else 1) * inputs["responses"].input_ids.numel())

    def _save(self, user: str, trainer: PreferenceTrainer, *, note: str | None = None) -> None:
        with self.watch.part("saving", Work(1)):
            super()._save(user, trainer, note=note)


class _Steps(TrainerCallback):
    """Times what is inside a training and in no other part."""

    def __init__(self, watch: Stopwatch) -> None:
        self.watch, self._open = watch, contextlib.ExitStack()

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """The clock starts."""
        self._open.enter_context(self.watch.part("steps", Work(state.max_steps, state.max_steps)))

    def on_train_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """The clock stops."""
        self._open.close()


def evenly(items: Sequence[Any], number: int) -> list[Any]:
    """So many of a sequence, at equal distances."""
    number = min(number, len(items))
    return [items[(2 * index + 1) * len(items) // (2 * number)] for index in range(number)]


def split(rows: Sequence[Anchored], *, held_out: bool) -> Rows:
    """Rows to learn from and, where they are wanted, rows to validate on: the same ones, only their shapes matter."""
    return Rows(rows, rows if held_out else [])


@contextlib.contextmanager
def tokens_seen(model: Any) -> Iterator[list[Work]]:
    """The work of every forward of a model inside the block."""
    seen: list[Work] = []

    def note(_: Any, __: Any, inputs: dict[str, Any]) -> None:
        seen.append(Work(1, inputs["input_ids"].numel()))

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()
