"""Steps, forwards and tokens of a training, counted by its own schedules and packing without running a model."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import cycle

from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback

from pluralign.training.arguments import personal_arguments
from pluralign.training.bank.forwards import packed, row_widths, tokens_of
from pluralign.training.bank.schedule import Schedule
from pluralign.training.callbacks import CheckpointFlow
from pluralign.training.people import person_seed
from pluralign.training.planning.costs import Work
from pluralign.training.planning.survey import Lengths, PersonLengths, known
from pluralign.training.run import Run

MOST_VISITS = 1_000_000
"""Rows that the bank's steps are counted row by row for; of more, steps at equal distances stand for the others."""


@dataclass(frozen=True, slots=True)
class Flow:
    """When a person's training logs, validates and saves.

    Attributes:
        lines: of metrics, those of validations too.
        validations: steps after which the held-out rows are scored.
        saves: checkpoints that are due before the last step.
    """

    lines: int
    validations: frozenset[int]
    saves: int


@dataclass(slots=True)
class Training:
    """The work of training everybody.

    Attributes:
        people: number.
        steps: optimiser steps of all.
        rounds: steps of the bank; of one person after another, the same as `steps`.
        rows: examples in all steps.
        forwards: forwards and their tokens, padding included.
        validations: of all people.
        scored: forwards and tokens of the validations.
        lines: of metrics.
        saves: checkpoints that are due.
    """

    people: int = 0
    steps: int = 0
    rounds: int = 0
    rows: int = 0
    forwards: Work = field(default_factory=Work)
    validations: int = 0
    scored: Work = field(default_factory=Work)
    lines: int = 0
    saves: int = 0


@dataclass(slots=True)
class Learning:
    """One person's training in numbers.

    Attributes:
        rows: to learn from, in lengths.
        held_out: to validate on.
        schedule: which rows each step takes.
        flow: when it logs, validates and saves.
        made: steps that a killed run has left.
    """

    rows: list[Lengths]
    held_out: list[Lengths]
    schedule: Schedule
    flow: Flow
    made: int = 0

    @property
    def left(self) -> int:
        """Steps still to be made."""
        return max(self.schedule.max_steps - self.made, 0)


@dataclass
class Counter:
    """Counts the training of a run.

    Args:
        run: with its base loaded.
        people: rows in lengths.
        base_lengths: of some base responses; those that are not there yet get these in turn.
        made: person -> steps that a killed run has left.
        workers: processes that the run is divided over.
    """

    run: Run
    people: Sequence[PersonLengths]
    base_lengths: Sequence[int] = ()
    made: Mapping[str, int] = field(default_factory=dict)
    workers: int = 1
    _flows: dict[tuple[int, bool], Flow] = field(default_factory=dict)

    def count(self, slots: int, tokens: int) -> Training:
        """The work of everybody.

        Args:
            slots: of the bank; without effect on people who are trained one after another.
            tokens: of one forward of the bank.
        """
        found = Training(people=len(self.learnings))
        for one in self.learnings:
            done = {step for step in one.flow.validations if step <= one.made}
            share = one.left / max(one.schedule.max_steps, 1)
            found.steps += one.left
            found.lines += round(one.flow.lines * share)
            found.saves += round(one.flow.saves * share)
            found.validations += len(one.flow.validations) - len(done)
            found.rows += _rows(one)
        if self.run.together:
            found.rounds, found.forwards, found.scored = self._in_the_bank(slots, tokens)
        else:
            found.rounds = found.steps
            found.forwards, found.scored = self._one_after_another()
        return found

    @cached_property
    def learnings(self) -> list[Learning]:
        """Everybody's training."""
        draw = cycle(self.base_lengths or [1])
        return [self._learning(person, draw) for person in self.people]

    def _learning(self, person: PersonLengths, draw: Iterator[int]) -> Learning:
        train = [known(row, draw) for row in person.train]
        held_out = [known(row, draw) for row in person.held_out]
        arguments = self._arguments(person)
        schedule = Schedule.of(arguments, len(train), person.draw)
        kind = len(train), bool(held_out)
        if kind not in self._flows:
            self._flows[kind] = flow_of(arguments, schedule)
        return Learning(train, held_out, schedule, self._flows[kind], self.made.get(person.user, 0))

    def _arguments(self, person: PersonLengths) -> TrainingArguments:
        seed = person_seed(self.run.config.seed, person.user)
        own = personal_arguments(
            self.run.arguments, folder=self.run.folder.path, seed=seed, user="", has_held_out=bool(person.held_out)
        )
        if not self.run.together:
            # All processes take their part of every step.
            own.per_device_train_batch_size *= self.workers
        return own

    # ---- in the bank ----

    def _in_the_bank(self, slots: int, tokens: int) -> tuple[int, Work, Work]:
        """Steps of the bank, forwards and tokens of these, and of the validations."""
        begins, rounds = begins_of([one.left for one in self.learnings], slots)
        visits = sum(_rows(one) for one in self.learnings)
        stride = -(-visits // MOST_VISITS)
        forwards = scored = Work()
        looked_at = 0
        coming = deque(sorted((begin, number) for number, begin in enumerate(begins) if self.learnings[number].left))
        active: dict[int, int] = {}
        for now in range(rounds):
            while coming and coming[0][0] <= now:
                begin, number = coming.popleft()
                active[number] = begin
            active = {number: begin for number, begin in active.items() if now < begin + self.learnings[number].left}
            steps = {number: self.learnings[number].made + now - begin for number, begin in active.items()}
            scored += self._validation(steps, tokens)
            if now % stride:
                continue
            looked_at += 1
            turns: dict[int, list[list[int]]] = {}
            for number, step in steps.items():
                for turn, unit in self._units(self.learnings[number], step):
                    turns.setdefault(turn, []).append(unit)
            for units in turns.values():
                forwards += self._packed(units, tokens)
        return rounds, forwards.times(rounds / max(looked_at, 1)), scored

    def _validation(self, steps: Mapping[int, int], tokens: int) -> Work:
        due = [number for number, step in steps.items() if step + 1 in self.learnings[number].flow.validations]
        units = [row_widths([row], shared=self._shared) for number in due for row in self.learnings[number].held_out]
        return self._packed(units, tokens) if units else Work()

    def _units(self, one: Learning, step: int) -> Iterator[tuple[int, list[int]]]:
        """Turn and widths of each, as `Forwards.units` makes them."""
        groups = self.run.config.weighting.groups
        by_batch = groups.by == "worst" and groups.update == "batch"
        for number, batch in enumerate(one.schedule.batches(step)):
            rows = [one.rows[row] for row in batch]
            together = [rows] if self.run.objective.couples_examples or by_batch else [[row] for row in rows]
            yield from ((by_batch * number, row_widths(some, shared=self._shared)) for some in together)

    def _packed(self, units: Sequence[list[int]], tokens: int) -> Work:
        copies = 2 if self.run.worker.runs_reference else 1
        work = Work()
        for pack in packed(units, tokens=tokens, copies=copies):
            widths = [width for number in pack for width in units[number]]
            work += Work(1, copies * tokens_of(widths))
        return work

    @property
    def _shared(self) -> bool:
        return self.run.worker.layout == "shared"

    # ---- one after another ----

    def _one_after_another(self) -> tuple[Work, Work]:
        """Forwards and tokens of the steps, and of the validations; of every process together."""
        forwards = scored = Work()
        size = self.run.arguments.per_device_eval_batch_size
        for one in self.learnings:
            for step in range(one.made, one.schedule.max_steps):
                for batch in one.schedule.batches(step):
                    forwards += self._batch([one.rows[number] for number in batch])
            once = Work()
            for start in range(0, len(one.held_out), size):
                once += self._batch(one.held_out[start : start + size])
            scored += once.times(sum(step > one.made for step in one.flow.validations))
        return forwards, scored

    def _batch(self, rows: Sequence[Lengths]) -> Work:
        widths = row_widths(rows, shared=self._shared)
        return Work(1, (2 if self.run.worker.runs_reference else 1) * tokens_of(widths))


def flow_of(arguments: TrainingArguments, schedule: Schedule) -> Flow:
    """When a training logs, validates and saves: asked of the Trainer's own callbacks, step by step."""
    handler = CallbackHandler([DefaultFlowCallback(), CheckpointFlow()], None, None, None, None)
    state, control = TrainerState(max_steps=schedule.max_steps, num_train_epochs=schedule.epochs), TrainerControl()
    state.compute_steps(arguments, schedule.max_steps)
    lines, saves, logged = 0, 0, 0
    validations: list[int] = [0] if arguments.eval_on_start else []

    def note() -> None:
        nonlocal lines, logged
        if control.should_log and state.global_step > logged:
            lines, logged = lines + 1, state.global_step
        if control.should_evaluate:
            validations.append(state.global_step)
        control.should_log = control.should_evaluate = False

    for step in range(1, schedule.max_steps + 1):
        state.global_step, state.epoch = step, schedule.epochs_done(step)
        control = handler.on_step_end(arguments, state, control)
        note()
        if step == schedule.max_steps or schedule.ends_epoch(step):
            control = handler.on_epoch_end(arguments, state, control)
            note()
        saves += control.should_save and step < schedule.max_steps
        control.should_save = False
    return Flow(lines + len(validations), frozenset(validations), saves)


def begins_of(steps: Sequence[int], slots: int) -> tuple[list[int], int]:
    """When each person moves into a slot, in steps of the bank, and when the last one has left.

    Args:
        steps: of each person, in the order in which they wait.
        slots: of the bank.
    """
    free = [0] * max(slots, 1)
    begins: list[int] = []
    for number in steps:
        begin = heapq.heappop(free)
        begins.append(begin)
        heapq.heappush(free, begin + number)
    return begins, max(free)


def _rows(one: Learning) -> int:
    """Examples in the steps that are left."""
    schedule = one.schedule
    epochs, rest = divmod(schedule.max_steps, schedule.steps_per_epoch)
    per_step = schedule.batch_size * schedule.accumulation
    return round((epochs * schedule.rows + min(rest * per_step, schedule.rows)) * one.left / max(schedule.max_steps, 1))
