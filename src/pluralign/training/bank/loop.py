"""The loop over the bank: people move into slots, make steps of their own in forwards of everybody's, and move out."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments

from pluralign.config import TrainConfig
from pluralign.errors import PersonError
from pluralign.models.bank import LoraBank
from pluralign.models.base import Base
from pluralign.models.rows import Layout
from pluralign.objectives import Objective
from pluralign.progress import progress_bar
from pluralign.training.arguments import personal_arguments
from pluralign.training.bank.capacity import choose_slots, forward_tokens
from pluralign.training.bank.forwards import Forwards, Unit
from pluralign.training.bank.learner import Learner
from pluralign.training.bank.snapshots import Snapshot, Snapshots, last_steps
from pluralign.training.batches import PreferenceCollator
from pluralign.training.callbacks import EarlyStopping, MetricsLines, SharedTracker, append_line, shared_trackers
from pluralign.training.conditions import recompute_activations, without_dropout
from pluralign.training.people import person_seed
from pluralign.training.record import Record, Rows, Supply
from pluralign.training.runs import RunFolder
from pluralign.training.shares import Share
from pluralign.training.starts import Starts
from pluralign.training.weighting import Weighting


class BankPopulation:
    """Trains people together, as many at a time as the bank has slots.

    Args:
        config: of the run.
        base: the one base.
        objective: losses per example.
        arguments: of the Trainer, shared by all.
        folder: of the run.
        layout: of `choose_layout`.
        record: what became of everybody; people are added as they finish.
        share: which people are this worker's.
        starts: what people begin with; fresh adapters by default.
    """

    def __init__(
        self,
        config: TrainConfig,
        base: Base,
        objective: Objective,
        arguments: TrainingArguments,
        folder: RunFolder,
        layout: Layout,
        record: Record,
        share: Share = Share(),  # noqa: B008, it is immutable
        starts: Starts | None = None,
    ) -> None:
        self.config, self.base, self.objective = config, base, objective
        self.starts = starts or Starts(config.parameters)
        self.arguments, self.folder, self.record = arguments, folder, record
        self.snapshots = Snapshots(folder.path / "state", share)
        self._snapshot: Snapshot | None = None
        self._layout: Layout = layout
        self._trackers: list[SharedTracker] = []
        self.learners: dict[int, Learner] = {}
        self.waiting: deque[str] = deque()

    def resume(self, users: Sequence[str]) -> list[str]:
        """Find the snapshot to go on from, and drop metrics of steps that will be made again.

        People who finished after the snapshot make their last steps again: who is in a forward decides the last digits
        of everybody in it.

        Args:
            users: those of this worker's share of whom nothing is decided yet.

        Returns:
            Those whom this worker trains, in the order in which it needs their rows.
        """
        snapshot = self.snapshots.own()
        if snapshot is None:
            snapshot = self.snapshots.begin(users) if self._saves else Snapshot(0, [], list(users))
        self.folder.keep_metrics(last_steps([snapshot], users))
        self.record.add({}, snapshot.skipped, snapshot.skipped)
        self._snapshot = snapshot
        return snapshot.users

    def train(self, users: Sequence[str], supply: Supply) -> None:
        """Train people. One whose training fails is skipped with the reason, and the others go on."""
        self._open(len(users))
        try:
            with progress_bar() as progress, without_dropout(self.base.model):
                self._progress, self._bar = progress, progress.add_task("people", total=len(users))
                self._begin(users, supply)
                while self.learners or self.waiting:
                    self._step()
                    self._fill()
                    self._keep()
            if self.snapshots.share.count > 1 and self._saves:
                # Others may be at work for long: what is done here need not be done again after a kill.
                self.snapshots.write(self._state)
        finally:
            self._close()

    # ---- beginning and end ----

    def _open(self, people: int) -> None:
        kept = self._snapshot.slots if self._snapshot else 0
        self.bank = LoraBank(
            self.base,
            self.config.parameters,
            kept or (lambda size: choose_slots(self.config, people, size, self.base.device)),
            trainable=True,
        )
        self._trackers = shared_trackers(self.arguments, self.folder.path)
        model = self.base.model
        collator = PreferenceCollator(
            pad_id=self.base.tokenizer.pad_token_id,
            branches=self.objective.branches,
            layout=self._layout,
            dtype=self.bank.matrix.dtype,
        )
        self.forwards = Forwards(
            self.bank,
            self.objective,
            collator,
            reference=self.config.reference.compute,
            tokens=forward_tokens(self.config, self.base.device),
            autocast=torch.bfloat16 if self.arguments.bf16 else None,
        )
        if self.config.training.gradient_checkpointing:
            # Layers are checkpointed in training mode only; what dropout the base has of its own is off.
            recompute_activations(model, on=True)
            model.train()

    def _close(self) -> None:
        if self.config.training.gradient_checkpointing:
            recompute_activations(self.base.model, on=False)
            self.base.model.eval()
        self.learners.clear()
        self.bank.detach()
        for tracker in self._trackers:
            tracker.close()

    def _begin(self, users: Sequence[str], supply: Supply) -> None:
        states = self._snapshot.learners if self._snapshot else []
        self._snapshot = None
        self._supply = supply(users)
        self.waiting = deque(users[len(states) :])
        self._free = sorted(set(range(self.bank.slots)) - {state["slot"] for state in states})
        for state in states:
            learner = self._learner(state["slot"], *next(self._supply))
            learner.load_state_dict(state)
            self.forwards.means.load_slot_state(learner.slot, state["means"])
            self._start(learner)
        self._fill()

    def _fill(self) -> None:
        """Let people move into free slots."""
        moved: list[Learner] = []
        while self._free and self.waiting:
            slot = self._free.pop(0)
            user, rows = next(self._supply)
            self.waiting.popleft()
            self.bank.admit(slot, seed=person_seed(self.config.seed, user), start=self.starts.of(user))
            self.forwards.means.clear(slot)
            learner = self._learner(slot, user, rows)
            self._start(learner)
            moved.append(learner)
        self._validate([learner for learner in moved if learner.control.should_evaluate])
        for learner in moved:
            if learner.done and self._holds(learner):
                self._finish(learner)

    def _learner(self, slot: int, user: str, rows: Rows) -> Learner:
        assert self.bank.grads is not None
        return Learner(
            user,
            slot,
            rows,
            adapter=self.bank.matrix[slot],
            grad=self.bank.grads[slot],
            arguments=self._arguments_of(user, has_held_out=bool(rows.held_out)),
            callbacks=self._callbacks(user, has_held_out=bool(rows.held_out)),
            weighting=self._weighting(user, rows),
        )

    def _weighting(self, user: str, rows: Rows) -> Weighting:
        return rows.weighting(self.config.weighting, self.objective)

    def _arguments_of(self, user: str, *, has_held_out: bool) -> TrainingArguments:
        return personal_arguments(
            self.arguments,
            folder=self.folder.state(user),
            seed=person_seed(self.config.seed, user),
            user=user,
            has_held_out=has_held_out,
        )

    def _callbacks(self, user: str, *, has_held_out: bool) -> list[TrainerCallback]:
        patience = self.config.training.early_stopping_patience
        stopping = [EarlyStopping(patience)] if patience is not None and has_held_out else []
        lines = MetricsLines(lambda line: append_line(self.folder.metrics, line), user)
        return [*stopping, lines, *self._trackers]

    def _start(self, learner: Learner) -> None:
        self.learners[learner.slot] = learner
        self.record.trained.add(learner.user)
        learner.begin()

    def _finish(self, learner: Learner) -> None:
        """Write what a person has, and free the slot."""
        learner.finish()
        if self._has_something(learner):
            place = self.record.place(learner.user)
            note, made_from = self.record.skipped.get(learner.user), self.record.hashes.get(learner.user)
            self.bank.save(learner.slot, place, user=learner.user, note=note, made_from=made_from)
            self.record.finished[learner.user] = place
        del self.learners[learner.slot]
        self._free.append(learner.slot)
        self._free.sort()
        self.record.note_progress()
        self._progress.advance(self._bar)

    def _has_something(self, learner: Learner) -> bool:
        """Whether there is an adapter to keep; the reason is noted where training failed."""
        if learner.failure is None:
            return True
        step, stays = learner.state.global_step, self.record.stays(learner.user)
        good = step > 0 and not stays and bool(learner.adapter.isfinite().all())
        if good:
            kept = f"what is kept is from step {step}"
        elif stays:
            kept = "the adapter before it stays"
        else:
            kept = "the adapter is not finite" if step else "there was no step to keep"
        self.record.skipped[learner.user] = f"{learner.failure}; {kept}"
        return good

    # ---- a step ----

    def _step(self) -> None:
        """One optimiser step of everybody."""
        learners = list(self.learners.values())
        if not learners:
            # All who had moved in were given up at once.
            return
        units: list[Unit] = []
        for learner in learners:
            # Everything that decides a person's dropout is the person's own.
            units += self.forwards.units(
                learner.slot,
                learner.take(),
                seed=learner.arguments.seed,
                step=learner.state.global_step,
                groups=len(learner.weighting.names),
                ascent=learner.ascent_step,
            )
        self.forwards.backward(units)
        logs = self._update(learners)
        stepped = [learner for learner in learners if learner.failure is None]
        self._report(stepped, logs)
        ended = [learner for learner in stepped if learner.ends_epoch and self._holds(learner)]
        for learner in ended:
            learner.end_epoch()
        self._report(ended, logs)
        for learner in learners:
            if learner.done and self._holds(learner):
                self._finish(learner)

    def _holds(self, learner: Learner) -> bool:
        return self.learners.get(learner.slot) is learner

    def _update(self, learners: Sequence[Learner]) -> dict[str, dict[str, float]]:
        """Make everybody's optimiser step, but for those whose loss or gradient is broken."""
        norms = torch.stack([learner.clip() for learner in learners])
        slots = torch.tensor([learner.slot for learner in learners], device=self.forwards.means.losses.device)
        losses = self.forwards.means.losses[slots]
        by_group = self.forwards.group_losses
        by_group = None if by_group is None else by_group.cpu()
        logs: dict[str, dict[str, float]] = {}
        for learner, norm, loss in zip(learners, norms.tolist(), losses.tolist(), strict=True):
            broken = "loss" if not math.isfinite(loss) else "gradient" if not math.isfinite(norm) else None
            if broken:
                learner.clear()
                learner.fail(broken)
            else:
                own = None if by_group is None else by_group[learner.slot]
                logs[learner.user] = {"grad_norm": norm, "learning_rate": learner.step(own)}
        return logs

    def _report(self, learners: Sequence[Learner], logs: dict[str, dict[str, float]]) -> None:
        """Lines of metrics and validations that are due."""
        means = self.forwards.means
        for learner in learners:
            if learner.wants_log:
                loss = means.take_loss(learner.slot) / (learner.state.global_step - learner.logged)
                taken = means.take(learner.slot, learner.weighting.names)
                learner.log({"loss": loss, **logs[learner.user], **taken})
        self._validate([learner for learner in learners if learner.control.should_evaluate])

    def _validate(self, learners: Sequence[Learner]) -> None:
        """Score the held-out rows of some people, in forwards of everybody's."""
        if not learners:
            return
        units: list[Unit] = []
        for learner in learners:
            assert learner.held_out is not None
            rows = [learner.held_out[number] for number in range(len(learner.held_out))]
            size = learner.arguments.per_device_eval_batch_size
            batches = [rows[start : start + size] for start in range(0, len(rows), size)]
            groups = len(learner.weighting.names)
            units += self.forwards.units(learner.slot, batches, seed=0, step=0, groups=groups)
        means = self.forwards.evaluate(units)
        for learner in learners:
            slot = learner.slot
            metrics = {"loss": means.take_loss(slot), **means.take(slot, learner.weighting.names)}
            try:
                learner.validated({f"eval_{name}": value for name, value in metrics.items()})
            except PersonError as error:
                self.record.skipped[error.user] = error.reason
                self._drop(learner)

    def _drop(self, learner: Learner) -> None:
        """Free the slot of somebody who cannot be trained on."""
        learner.control.should_training_stop = True
        del self.learners[learner.slot]
        self._free.append(learner.slot)
        self._free.sort()
        self._progress.advance(self._bar)

    # ---- snapshots ----

    @property
    def _saves(self) -> bool:
        return str(self.arguments.save_strategy.value) != "no"

    def _keep(self) -> None:
        """Write a snapshot where somebody's checkpoint is due and the last snapshot is paid for."""
        due = False
        for learner in self.learners.values():
            due = due or learner.control.should_save
            learner.control.should_save = False
        if due and self._saves and self.snapshots.affordable:
            self.snapshots.write(self._state)

    def _state(self) -> Snapshot:
        means = self.forwards.means
        learners: list[dict[str, Any]] = [
            {**learner.state_dict(), "means": means.slot_state(learner.slot)} for learner in self.learners.values()
        ]
        decided = self.record.trained.intersection(self.record.skipped)
        skipped = {user: self.record.skipped[user] for user in decided}
        return Snapshot(self.bank.slots, learners, list(self.waiting), skipped)
