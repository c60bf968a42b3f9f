"""What happens beside the steps: early stopping, lines of metrics, a progress bar, checkpoints at the right moment."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback, get_reporting_integration_callbacks
from transformers.trainer_utils import IntervalStrategy

_NOT_REPRODUCIBLE = ("runtime", "_per_second", "total_flos", "model_preparation_time")


class CheckpointFlow(TrainerCallback):
    """Makes a checkpoint the exact state of an undisturbed run at its step.

    A line of metrics is logged with every checkpoint, so that none is lost or averaged over fewer steps after a resume;
    and where validation comes at the end of an epoch, a checkpoint due at the epoch's last step waits for it.
    """

    def __init__(self) -> None:
        self._waits = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Log at the last step and at checkpoints, or put the checkpoint off."""
        ends = state.global_step >= state.max_steps
        if control.should_save and args.eval_strategy == IntervalStrategy.EPOCH and float(state.epoch).is_integer():
            control.should_save, self._waits = False, True
        control.should_log = control.should_log or control.should_save or ends
        return control

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Make up for the checkpoint that was put off."""
        control.should_save = control.should_save or self._waits
        control.should_log = control.should_log or control.should_save
        self._waits = False
        return control


class EarlyStopping(TrainerCallback):
    """Stops after `patience` validations without a new best value.

    Counts in the log of the run, which checkpoints carry: the count is right after a resume too.

    Args:
        patience: >= 1.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Stop when the best of all values lies `patience` validations back."""
        name = f"eval_{str(args.metric_for_best_model).removeprefix('eval_')}"
        values = [line[name] for line in state.log_history if name in line]
        sign = 1.0 if args.greater_is_better else -1.0
        # The first of equal values is the best, as for the Trainer's own choice of the best checkpoint; NaN never is.
        best, at = -math.inf, 0
        for number, value in enumerate(values, start=1):
            if sign * value > best:
                best, at = sign * value, number
        control.should_training_stop = control.should_training_stop or len(values) - at >= self.patience
        return control


class MetricsLines(TrainerCallback):
    """Hands every line of metrics on, without what two runs of the same thing do not share (times, speeds).

    Args:
        write: takes a line, `{"user": ..., "step": ..., "epoch": ..., "loss": ...}`.
        user: whose training it is.
    """

    def __init__(self, write: Callable[[dict[str, Any]], None], user: str) -> None:
        self.write, self.user = write, user

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the line of a training step or a validation; the Trainer's closing summary is neither."""
        if state.is_world_process_zero and logs and ("loss" in logs or "eval_loss" in logs):
            self.write(metrics_line(self.user, {**logs, "step": state.global_step}))


class SharedTracker(TrainerCallback):
    """One tracker for people who train at the same time: everybody's metrics go under their own id.

    Args:
        tracker: as `report_to` names it; it holds one run at a time.
        name: of that run.
    """

    def __init__(self, tracker: TrainerCallback, name: str) -> None:
        self.tracker, self.name = tracker, name
        self._last: tuple[TrainingArguments, TrainerState, TrainerControl] | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin the tracker's run with the first person."""
        if self._last is None:
            own = copy.copy(args)
            own.run_name = self.name
            self._last = (own, state, control)
            self.tracker.on_train_begin(own, state, control, **kwargs)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Hand a line on, at the person's own step."""
        named = {}
        for name, value in (logs or {}).items():
            kind = "eval_" if name.startswith("eval_") else ""
            named[f"{kind}{args.run_name}/{name.removeprefix(kind)}"] = value
        self.tracker.on_log(args, state, control, logs=named, **kwargs)

    def close(self) -> None:
        """End the tracker's run."""
        if self._last is not None:
            self.tracker.on_train_end(*self._last)


def shared_trackers(args: TrainingArguments, folder: Path) -> list[SharedTracker]:
    """The trackers of `report_to`, for people who train at the same time."""
    trackers = [kind() for kind in get_reporting_integration_callbacks(args.report_to)]
    for tracker in trackers:
        # Its default is a folder below the checkpoints, which go when a person is finished.
        if isinstance(tracker, TensorBoardCallback) and tracker.logging_dir is None:
            tracker.logging_dir = str(folder / "tensorboard")
    return [SharedTracker(tracker, folder.name) for tracker in trackers]


class Progress(TrainerCallback):
    """Advances a bar by a step.

    Args:
        advance: takes the number of steps done and of all steps.
    """

    def __init__(self, advance: Callable[[int, int], None]) -> None:
        self.advance = advance

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Show where a resumed run goes on."""
        self.advance(state.global_step, state.max_steps)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Show one more step."""
        self.advance(state.global_step, state.max_steps)


def metrics_line(user: str, logged: dict[str, Any]) -> dict[str, Any]:
    """A line of `metrics.jsonl` from one of the Trainer's log; numbers that are not finite become null."""
    kept = {name: value for name, value in logged.items() if not name.endswith(_NOT_REPRODUCIBLE)}
    line = {"user": user, "step": kept.pop("step"), **kept}
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in line.items()
    }


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Add a line of JSON to a file in one write."""
    with open(path, "ab", buffering=0) as file:
        file.write((json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8"))
