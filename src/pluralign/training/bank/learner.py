"""One person in a slot: an adapter, an optimiser, a schedule and a state that nobody else's presence touches."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments, get_scheduler
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback

from pluralign.errors import PersonError
from pluralign.models.anchored_table import Anchored
from pluralign.training.ascent import AscentStep, GroupAscent
from pluralign.training.bank.schedule import Schedule
from pluralign.training.batches import AnchoredDataset, Example
from pluralign.training.callbacks import CheckpointFlow
from pluralign.training.metrics import group_sums
from pluralign.training.record import Rows
from pluralign.training.weighting import Weighting


class Learner:
    """A person in training, driven by the loop over the bank, with the habits of `transformers.Trainer`.

    Args:
        user: id.
        slot: of the bank.
        rows: anchored rows.
        adapter: [P] the slot's row of the bank's matrix; optimiser steps are made in it.
        grad: [P] the slot's row of the gradients.
        arguments: of this person.
        callbacks: of this person, beside the flow of logs, validations and checkpoints.
        weighting: what the rows count.

    Attributes:
        state: the Trainer's: steps, log, best value.
        control: what the callbacks ask for.
        held_out: rows to validate on, or None.
        best: [P] the adapter with the best validation, where it is to be kept.
        logged: step of the last line of the log.
        failure: why training stopped early, if it failed.
        weighting: what the rows count, now.
        ascent_step: of the step under way, where groups count as their losses say.
    """

    def __init__(
        self,
        user: str,
        slot: int,
        rows: Rows,
        *,
        adapter: Tensor,
        grad: Tensor,
        arguments: TrainingArguments,
        callbacks: Sequence[TrainerCallback],
        weighting: Weighting,
    ) -> None:
        self.user, self.slot, self.arguments = user, slot, arguments
        self.weighting = weighting
        self.ascent_step: AscentStep | None = None
        self.dataset = AnchoredDataset(rows.train, weighting)
        self.held_out = AnchoredDataset(rows.held_out, weighting) if rows.held_out else None
        self.schedule = Schedule.of(arguments, len(self.dataset), self.dataset.draw)
        self.adapter = adapter.detach().requires_grad_()
        self.adapter.grad = grad
        self.best: Tensor | None = None
        self.logged = 0
        self.failure: str | None = None
        self.control = TrainerControl()
        self.state = TrainerState(max_steps=self.schedule.max_steps, num_train_epochs=self.schedule.epochs)
        self.state.compute_steps(arguments, self.schedule.max_steps)
        kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
        group = {"params": [self.adapter], "weight_decay": arguments.weight_decay}
        self.optimizer: torch.optim.Optimizer = kind([group], **options)
        self.scheduler: LambdaLR = get_scheduler(
            arguments.lr_scheduler_type,
            optimizer=self.optimizer,
            num_warmup_steps=arguments.get_warmup_steps(self.schedule.max_steps),
            num_training_steps=self.schedule.max_steps,
            scheduler_specific_kwargs=arguments.lr_scheduler_kwargs,
        )
        self.handler = CallbackHandler(
            [DefaultFlowCallback(), CheckpointFlow(), *callbacks], None, None, self.optimizer, self.scheduler
        )

    # ---- a step ----

    @property
    def done(self) -> bool:
        """Whether no step is left to make."""
        return self.control.should_training_stop or self.state.global_step >= self.schedule.max_steps

    def begin(self) -> None:
        """Tell the callbacks; who has made no step yet is validated first, where `eval_on_start` asks for it."""
        self._notify("on_train_begin")
        self.control.should_evaluate = bool(self.arguments.eval_on_start and self.state.global_step == 0)

    def enter(self, rows: Sequence[Anchored], weighting: Weighting, *, first: int, epochs_before: int) -> None:
        """Learn from other rows from here on.

        Args:
            rows: at least one.
            weighting: what they count.
            first: the step that takes the first of them.
            epochs_before: passes over earlier rows.
        """
        self.weighting, self.dataset = weighting, AnchoredDataset(rows, weighting)
        self.schedule = replace(
            self.schedule, rows=len(rows), draw=self.dataset.draw, first=first, epochs_before=epochs_before
        )

    def skip_to(self, step: int) -> None:
        """Count steps as made that there was nothing to learn in; the learning rate goes on as planned."""
        self.state.global_step = step
        # Schedules are functions of the step.
        self.scheduler.last_epoch = step - 1
        self.scheduler._step_count = step
        with warnings.catch_warnings():
            # It takes a step of the schedule without one of the optimiser for a mistake.
            warnings.simplefilter("ignore")
            self.scheduler.step()

    def take(self) -> list[list[Example]]:
        """The examples of the coming step, by batch."""
        step = self.state.global_step
        if self.schedule.ends_epoch(step):
            self._notify("on_epoch_begin")
        self._notify("on_step_begin")
        batches = [[self.dataset[number] for number in batch] for batch in self.schedule.batches(step)]
        if self.weighting.ascent is not None:
            self.ascent_step = self._ascent_step(self.weighting.ascent, [one for batch in batches for one in batch])
        return batches

    def _ascent_step(self, ascent: GroupAscent, examples: Sequence[Example]) -> AscentStep:
        # Not on the device: nothing there has to be waited for.
        weights = torch.tensor([one.weight for one in examples], dtype=self.adapter.dtype)
        groups = torch.tensor([one.group for one in examples])
        rate = float(self.scheduler.get_last_lr()[0]) / self.arguments.learning_rate
        return AscentStep(ascent, group_sums(weights, groups, len(ascent.names)), rate=rate)

    def clip(self) -> Tensor:
        """Clip the gradient to the person's own norm; the norm before, a scalar."""
        most = self.arguments.max_grad_norm
        return torch.nn.utils.clip_grad_norm_([self.adapter], most if most > 0 else float("inf"))

    def step(self, group_losses: Tensor | None = None) -> float:
        """Make the optimiser's step; the learning rate that it had.

        Args:
            group_losses: [K] and more, of the step's rows, weighted; where groups count as their losses say.
        """
        rate = float(self.scheduler.get_last_lr()[0])
        if self.ascent_step is not None and group_losses is not None:
            self.ascent_step.end(group_losses[: len(self.weighting.names)])
        self.optimizer.step()
        self.scheduler.step()
        self.clear()
        self.state.global_step += 1
        self.state.epoch = self.schedule.epochs_done(self.state.global_step)
        self._notify("on_step_end")
        return rate

    def clear(self) -> None:
        """Make room for the next step's gradient."""
        self.adapter.grad.zero_()  # type: ignore[union-attr]

    @property
    def ends_epoch(self) -> bool:
        """Whether the step just made was an epoch's last, or the training's."""
        return self.done or self.schedule.ends_epoch(self.state.global_step)

    def end_epoch(self) -> None:
        """Tell the callbacks that an epoch is over."""
        self._notify("on_epoch_end")

    # ---- log, validation, end ----

    @property
    def wants_log(self) -> bool:
        """Whether a line of metrics is due."""
        return self.control.should_log and self.state.global_step > self.logged

    def log(self, logs: dict[str, float]) -> None:
        """Write a line of metrics; in training, with the groups' weights."""
        if "loss" in logs and self.weighting.ascent is not None:
            logs |= self.weighting.ascent.logged
        logs["epoch"] = self.state.epoch
        self.state.log_history.append({**logs, "step": self.state.global_step})
        self._notify("on_log", logs)
        if "loss" in logs:
            self.logged = self.state.global_step

    def validated(self, metrics: dict[str, float]) -> None:
        """Take the metrics of the held-out rows: log them, note a new best value, let callbacks stop.

        Raises:
            PersonError: they lack `metric_for_best_model`.
        """
        self.log(dict(metrics))
        self.control = self.handler.on_evaluate(self.arguments, self.state, self.control, metrics)
        name = f"eval_{(self.arguments.metric_for_best_model or 'loss').removeprefix('eval_')}"
        if name not in metrics:
            given = ", ".join(key.removeprefix("eval_") for key in metrics if "/" in key or key == "eval_loss")
            asked = name.removeprefix("eval_")
            raise PersonError(
                self.user, f"validation gives no {asked!r} (training.metric_for_best_model), it gives {given}"
            )
        self._note_best(metrics[name])

    def _note_best(self, value: float) -> None:
        # As in the Trainer, what nobody has trained yet is never the best.
        if self.arguments.metric_for_best_model is None or self.state.global_step == 0:
            return
        better = np.greater if self.arguments.greater_is_better else np.less
        worst = float("-inf") if self.arguments.greater_is_better else float("inf")
        if not better(value, worst if self.state.best_metric is None else self.state.best_metric):
            return
        self.state.best_metric, self.state.best_global_step = value, self.state.global_step
        if self.arguments.load_best_model_at_end:
            self.best = self.adapter.detach().clone()

    def fail(self, what: str) -> None:
        """Stop, with the last good state in place: the step whose gradient is broken is not made."""
        self.failure = f"the {what} is not finite (NaN or infinite) at step {self.state.global_step + 1}"
        self.control.should_training_stop = True

    def finish(self) -> None:
        """Put the best adapter in place, where it is asked for, and tell the callbacks."""
        if self.best is not None and self.failure is None and self.state.best_global_step != self.state.global_step:
            with torch.no_grad():
                self.adapter.copy_(self.best)
        self._notify("on_train_end")

    def _notify(self, event: str, *more: Any) -> None:
        self.control = getattr(self.handler, event)(self.arguments, self.state, self.control, *more)

    # ---- snapshots ----

    def state_dict(self) -> dict[str, Any]:
        """Everything but the rows, as tensors and plain values: what `load_state_dict` goes on from."""
        optimizer, ascent = self.optimizer.state_dict(), self.weighting.ascent
        return {
            "user": self.user,
            "slot": self.slot,
            "adapter": self.adapter.detach().clone(),
            "best": self.best,
            "logged": self.logged,
            "optimizer": optimizer["state"].get(0, {}),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "group_weights": ascent.named if ascent else {},
            "trainer": {**asdict(self.state), "stateful_callbacks": {}},
        }

    def load_state_dict(self, kept: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        with torch.no_grad():
            self.adapter.copy_(kept["adapter"])
        self.best, self.logged = kept["best"], kept["logged"]
        # Snapshots of earlier versions have none: nobody's groups were weighed by their losses.
        if self.weighting.ascent is not None and kept.get("group_weights"):
            self.weighting.ascent.restore(kept["group_weights"])
        self.state = TrainerState(**kept["trainer"])
        whole = self.optimizer.state_dict()
        if kept["optimizer"]:
            whole["state"] = {0: kept["optimizer"]}
        self.optimizer.load_state_dict(whole)
        # Schedules are functions of the step.
        self.scheduler.last_epoch = self.state.global_step
        self.scheduler._step_count = self.state.global_step + 1
        self.optimizer.param_groups[0]["lr"] = kept["learning_rate"]
        self.scheduler._last_lr = [kept["learning_rate"]]
