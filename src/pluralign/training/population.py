"""One person after another on the one base, each with an adapter that nobody else's presence or order changes."""

from __future__ import annotations

import contextlib
import gc
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import nn
from transformers import TrainerCallback, TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import PrinterCallback

from pluralign.config import TrainConfig
from pluralign.errors import PersonError
from pluralign.models.adapters import INFO_FILE, detach_adapter, new_adapter, save_adapter, write_index
from pluralign.models.anchoring import Anchored
from pluralign.models.base import Base
from pluralign.objectives import Objective
from pluralign.preferences import folder_name, shown
from pluralign.progress import progress_bar
from pluralign.storage import read_json, remove_staging, staged_folder, write_bytes, write_json
from pluralign.training.arguments import personal_arguments
from pluralign.training.batches import AnchoredDataset, PreferenceCollator
from pluralign.training.callbacks import EarlyStopping, MetricsLines, Progress, append_line
from pluralign.training.checkpoints import last_checkpoint, remove_folder
from pluralign.training.people import person_seed
from pluralign.training.runs import RunFolder
from pluralign.training.trainer import PreferenceTrainer

_INDEX_SECONDS = 5.0


@dataclass
class Rows:
    """Anchored rows of one person."""

    train: Sequence[Anchored]
    held_out: Sequence[Anchored]


class Population:
    """Trains people in turn and keeps the run's folder in order.

    Attributes:
        finished: id -> folder of what that person owns.
        skipped: id -> why a person has nothing, or only what was good before the training failed.
        trained: whether this call has trained anybody.
    """

    def __init__(
        self,
        config: TrainConfig,
        base: Base,
        objective: Objective,
        arguments: TrainingArguments,
        folder: RunFolder,
        layout: Literal["shared", "separate"],
    ) -> None:
        self.config, self.base, self.objective = config, base, objective
        self.arguments, self.folder = arguments, folder
        # The Trainer writes it into the model's configuration, which full fine-tuning saves.
        self.arguments.use_cache = base.model.config.use_cache
        self.finished: dict[str, Path] = {}
        self.skipped: dict[str, str] = {}
        self.trained = False
        self._index_written = 0.0
        self._collator = PreferenceCollator(
            pad_id=base.tokenizer.pad_token_id,
            branches=objective.branches,
            layout=layout,
            dtype=torch.float64 if base.model.dtype == torch.float64 else torch.float32,
        )

    @property
    def sharded(self) -> bool:
        """Whether no process holds all weights; the base is then used up by the one policy that it was sharded for."""
        return bool(self.arguments.fsdp or self.arguments.deepspeed)

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes."""
        return bool(self.arguments.should_save)

    def recall(self, users: Sequence[str], skipped: dict[str, str]) -> None:
        """Take over what an earlier call of this run has finished, and drop metrics of steps that will be made again.

        Args:
            users: who can be trained.
            skipped: what the folder's index says of people who were given up.
        """
        for user in users:
            place = self.folder.result(user, self.config.parameters.kind)
            if place.is_dir():
                self.finished[user] = place
                note = read_json(place / INFO_FILE).get("note")
                if note:
                    self.skipped[user] = note
                if self.writes:
                    shutil.rmtree(self.folder.state(user), ignore_errors=True)
            elif user in skipped:
                self.skipped[user] = skipped[user]
        if self.writes:
            self._forget_replayed_metrics(users)

    def remaining(self, users: Sequence[str]) -> list[str]:
        """Those of whom nothing is decided yet."""
        return [user for user in users if user not in self.finished and user not in self.skipped]

    def train(self, people: dict[str, Rows]) -> None:
        """Train people in turn. One whose training fails is skipped with the reason, and the others go on."""
        with progress_bar() as progress, _without_dropout(self.base.model), _quick_collection():
            everyone = progress.add_task("people", total=len(people))
            steps = progress.add_task("steps")
            for user, rows in people.items():
                self.trained = True
                progress.update(steps, description=shown(user, 24), completed=0, total=None)
                bar = Progress(lambda done, total: progress.update(steps, completed=done, total=total))
                try:
                    self._train_person(user, rows, [bar])
                except PersonError as error:
                    self.skipped[error.user] = error.reason
                self._note_progress()
                progress.advance(everyone)
        if self.writes:
            shutil.rmtree(self.folder.path / "state", ignore_errors=True)
        self.write_index()

    def write_index(self) -> None:
        """Write `adapters/index.json`; a fully trained model has none."""
        if self.writes and self.config.parameters.kind == "lora":
            write_index(self.folder.path, {user: path.name for user, path in self.finished.items()}, self.skipped)
        self._index_written = time.monotonic()

    def _note_progress(self) -> None:
        # The index grows with the population: rewritten for each person, it would cost their number squared. What it
        # may lack after a kill is found again by looking at the folders.
        if time.monotonic() - self._index_written > _INDEX_SECONDS:
            self.write_index()

    def _train_person(self, user: str, rows: Rows, callbacks: list[TrainerCallback]) -> None:
        state = self.folder.state(user)
        seed = person_seed(self.config.seed, user)
        with self._policy(seed) as policy:
            trainer = self._trainer(user, rows, policy, callbacks, seed)
            checkpoint = last_checkpoint(state)
            try:
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            except FloatingPointError as error:
                self._keep_last_good(user, trainer, str(error))
                raise PersonError(user, self.skipped[user]) from None
            self._save(user, trainer)
        if self.writes:
            remove_folder(state)

    def _trainer(
        self, user: str, rows: Rows, policy: Any, callbacks: list[TrainerCallback], seed: int
    ) -> PreferenceTrainer:
        state, training = self.folder.state(user), self.config.training
        if self.writes:
            state.mkdir(parents=True, exist_ok=True)
            remove_staging(state)
        if training.early_stopping_patience is not None and rows.held_out:
            callbacks = [*callbacks, EarlyStopping(training.early_stopping_patience)]
        callbacks = [*callbacks, MetricsLines(lambda line: append_line(self.folder.metrics, line), user)]
        column = self.config.weighting.column
        trainer = PreferenceTrainer(
            policy,
            personal_arguments(self.arguments, folder=state, seed=seed, user=user, has_held_out=bool(rows.held_out)),
            self.objective,
            train_dataset=AnchoredDataset(rows.train, weight_column=column),
            eval_dataset=AnchoredDataset(rows.held_out, weight_column=column) if rows.held_out else None,
            data_collator=self._collator,
            reference=self.config.reference.compute,
            callbacks=callbacks,
        )
        trainer.remove_callback(PrinterCallback)
        for callback in trainer.callback_handler.callbacks:
            # Its default is a folder below the checkpoints, which go when the person is finished.
            if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
                callback.logging_dir = str(self.folder.path / "tensorboard" / folder_name(user))
        return trainer

    @contextlib.contextmanager
    def _policy(self, seed: int) -> Iterator[Any]:
        """What is trained, for the time of the block; the base is as before when it ends (but for full fine-tuning)."""
        model = self.base.model
        try:
            if self.config.parameters.kind == "full":
                yield model.requires_grad_(True)
            else:
                policy = new_adapter(self.base, self.config.parameters, seed=seed)
                try:
                    yield policy
                finally:
                    if not self.sharded:
                        detach_adapter(policy)
        finally:
            if self.config.training.gradient_checkpointing:
                # Its name changes between releases of transformers.
                new, old = "activation_checkpointing_disable", "gradient_checkpointing_disable"
                getattr(model, new if hasattr(model, new) else old)()

    def _keep_last_good(self, user: str, trainer: PreferenceTrainer, reason: str) -> None:
        """Save the last checkpoint of a failed training as the person's adapter, with a note; nothing without one."""
        checkpoint = last_checkpoint(self.folder.state(user))
        if checkpoint is None:
            self.skipped[user] = f"{reason}; there was no checkpoint to keep"
        else:
            step = int(checkpoint.name.rpartition("-")[2])
            self.skipped[user] = f"{reason}; what is kept is from step {step}"
            trainer._load_from_checkpoint(str(checkpoint))
            self._save(user, trainer, note=self.skipped[user])
        if self.writes:
            remove_folder(self.folder.state(user))

    def _save(self, user: str, trainer: PreferenceTrainer, *, note: str | None = None) -> None:
        place = self.folder.result(user, self.config.parameters.kind)
        policy = trainer.accelerator.unwrap_model(trainer.model)
        # Every process takes part in gathering what is sharded; None says that the policy holds all its weights.
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped) if self.sharded else None
        if self.writes and isinstance(policy, PeftModel):
            save_adapter(policy, place, base=self.base, user=user, note=note, state_dict=state)
        elif self.writes:
            self._save_full(policy, place, user, note, state)
        self.finished[user] = place
        trainer.accelerator.wait_for_everyone()

    def _save_full(self, model: Any, place: Path, user: str, note: str | None, state: dict[str, Any] | None) -> None:
        with staged_folder(place) as staging:
            model.save_pretrained(staging, state_dict=state)
            self.base.tokenizer.save_pretrained(staging)
            info: dict[str, Any] = {"schema_version": 1, "user": user, "base": self.base.name}
            info |= {"base_fingerprint": self.base.fingerprint, **({"note": note} if note else {})}
            write_json(staging / INFO_FILE, info)

    def _forget_replayed_metrics(self, users: Sequence[str]) -> None:
        """Keep the lines of people who are done, and of others those up to the checkpoint that they resume from."""
        if not self.folder.metrics.exists():
            return
        done = set(self.finished) | set(self.skipped)
        last = {user: last_checkpoint(self.folder.state(user)) for user in users if user not in done}
        steps = {user: int(path.name.rpartition("-")[2]) for user, path in last.items() if path}
        kept: dict[bytes, None] = {}
        content = self.folder.metrics.read_bytes()
        for line in content.split(b"\n"):
            with contextlib.suppress(ValueError):  # the torn end of a line that a kill cut off
                read = json.loads(line)
                if read["user"] in done or read["step"] <= steps.get(read["user"], -1):
                    kept[line] = None
        remaining = b"".join(line + b"\n" for line in kept)
        if remaining != content:
            write_bytes(self.folder.metrics, remaining)


@contextlib.contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    """The base without dropout of its own while its adapters train: the first step compares equals.

    The adapters' own dropout is `parameters.dropout`.
    """
    kept: list[tuple[nn.Module, str, float]] = []
    for module in model.modules():
        names = ["p"] if isinstance(module, nn.Dropout) else [name for name in vars(module) if "dropout" in name]
        values = [(module, name, getattr(module, name)) for name in names]
        kept += [(owner, name, value) for owner, name, value in values if isinstance(value, float) and value]
    for owner, name, _ in kept:
        setattr(owner, name, 0.0)
    try:
        yield
    finally:
        for owner, name, value in kept:
            setattr(owner, name, value)


@contextlib.contextmanager
def _quick_collection() -> Iterator[None]:
    """Garbage collection that looks at new objects only.

    Accelerate collects for every person, and among all that is loaded by now that takes longer than a short training.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
