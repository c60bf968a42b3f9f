"""One person after another on the one base, each with an adapter that nobody else's presence or order changes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from transformers import TrainerCallback, TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import PrinterCallback

from pluralign.config import TrainConfig
from pluralign.errors import PersonError
from pluralign.models.adapters import INFO_FILE, detach_adapter, new_adapter, save_adapter
from pluralign.models.base import Base
from pluralign.objectives import Objective
from pluralign.preferences import folder_name, shown
from pluralign.progress import progress_bar
from pluralign.storage import remove_staging, staged_folder, write_json
from pluralign.training.arguments import personal_arguments
from pluralign.training.batches import AnchoredDataset, PreferenceCollator
from pluralign.training.callbacks import EarlyStopping, MetricsLines, Progress, append_line
from pluralign.training.checkpoints import last_checkpoint, remove_folder
from pluralign.training.conditions import quick_collection, recompute_activations, without_dropout
from pluralign.training.people import person_seed
from pluralign.training.record import Record, Rows, Supply
from pluralign.training.runs import RunFolder
from pluralign.training.starts import Starts
from pluralign.training.trainer import PreferenceTrainer


class Population:
    """Trains people in turn and keeps the run's folder in order.

    Args:
        config: of the run.
        base: the one base; everybody's adapter is attached to it in turn.
        objective: losses per example.
        arguments: of the Trainer, shared by all.
        folder: of the run.
        layout: of `choose_layout`.
        record: what became of everybody; people are added as they finish.
        starts: what people begin with; fresh adapters by default.
    """

    def __init__(
        self,
        config: TrainConfig,
        base: Base,
        objective: Objective,
        arguments: TrainingArguments,
        folder: RunFolder,
        layout: Literal["shared", "separate"],
        record: Record,
        starts: Starts | None = None,
    ) -> None:
        self.config, self.base, self.objective = config, base, objective
        self.starts = starts or Starts(config.parameters)
        self.arguments, self.folder, self.record = arguments, folder, record
        # The Trainer writes it into the model's configuration, which full fine-tuning saves.
        self.arguments.use_cache = base.model.config.use_cache
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

    def train(self, users: Sequence[str], supply: Supply) -> None:
        """Train people in turn. One whose training fails is skipped with the reason, and the others go on."""
        with progress_bar() as progress, without_dropout(self.base.model), quick_collection():
            everyone = progress.add_task("people", total=len(users))
            steps = progress.add_task("steps")
            for user, rows in supply(users):
                self.record.trained.add(user)
                progress.update(steps, description=shown(user, 24), completed=0, total=None)
                bar = Progress(lambda done, total: progress.update(steps, completed=done, total=total))
                try:
                    self._train_person(user, rows, [bar])
                except PersonError as error:
                    self.record.skipped[error.user] = error.reason
                self.record.note_progress()
                progress.advance(everyone)

    def _train_person(self, user: str, rows: Rows, callbacks: list[TrainerCallback]) -> None:
        state = self.folder.state(user)
        seed = person_seed(self.config.seed, user)
        with self._policy(user, seed) as policy:
            trainer = self._trainer(user, rows, policy, callbacks, seed)
            checkpoint = last_checkpoint(state)
            try:
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            except FloatingPointError as error:
                self._keep_last_good(user, trainer, str(error))
                raise PersonError(user, self.record.skipped[user]) from None
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
        weighting = rows.weighting(self.config.weighting, self.objective)
        trainer = PreferenceTrainer(
            policy,
            personal_arguments(self.arguments, folder=state, seed=seed, user=user, has_held_out=bool(rows.held_out)),
            self.objective,
            train_dataset=AnchoredDataset(rows.train, weighting),
            eval_dataset=AnchoredDataset(rows.held_out, weighting) if rows.held_out else None,
            data_collator=self._collator,
            reference=self.config.reference.compute,
            ema=self.config.reference.ema,
            callbacks=callbacks,
        )
        trainer.remove_callback(PrinterCallback)
        for callback in trainer.callback_handler.callbacks:
            # Its default is a folder below the checkpoints, which go when the person is finished.
            if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
                callback.logging_dir = str(self.folder.path / "tensorboard" / folder_name(user))
        return trainer

    @contextlib.contextmanager
    def _policy(self, user: str, seed: int) -> Iterator[Any]:
        """What is trained, for the time of the block; the base is as before when it ends (but for full fine-tuning)."""
        model = self.base.model
        try:
            if self.config.parameters.kind == "full":
                yield model.requires_grad_(True)
            else:
                policy = new_adapter(self.base, self.config.parameters, seed=seed, start=self.starts.of(user))
                try:
                    yield policy
                finally:
                    if not self.sharded:
                        detach_adapter(policy)
        finally:
            if self.config.training.gradient_checkpointing:
                recompute_activations(model, on=False)

    def _keep_last_good(self, user: str, trainer: PreferenceTrainer, reason: str) -> None:
        """Save a failed training's last checkpoint, where there is one, with a note; an adapter before it stays."""
        checkpoint = last_checkpoint(self.folder.state(user))
        if self.record.stays(user):
            self.record.skipped[user] = f"{reason}; the adapter before it stays"
        elif checkpoint is None:
            self.record.skipped[user] = f"{reason}; there was no checkpoint to keep"
        else:
            step = int(checkpoint.name.rpartition("-")[2])
            self.record.skipped[user] = f"{reason}; what is kept is from step {step}"
            trainer._load_from_checkpoint(str(checkpoint))
            self._save(user, trainer, note=self.record.skipped[user])
        if self.writes:
            remove_folder(self.folder.state(user))

    def _save(self, user: str, trainer: PreferenceTrainer, *, note: str | None = None) -> None:
        place = self.record.place(user)
        policy = trainer.accelerator.unwrap_model(trainer.model)
        # Every process takes part in gathering what is sharded; None says that the policy holds all its weights.
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped) if self.sharded else None
        if self.writes and isinstance(policy, PeftModel):
            made_from = self.record.hashes.get(user)
            save_adapter(policy, place, base=self.base, user=user, note=note, made_from=made_from, state_dict=state)
        elif self.writes:
            self._save_full(policy, place, user, note, state)
        self.record.finished[user] = place
        trainer.accelerator.wait_for_everyone()

    def _save_full(self, model: Any, place: Path, user: str, note: str | None, state: dict[str, Any] | None) -> None:
        with staged_folder(place) as staging:
            model.save_pretrained(staging, state_dict=state)
            self.base.tokenizer.save_pretrained(staging)
            info: dict[str, Any] = {"schema_version": 1, "user": user, "base": self.base.name}
            made_from = self.record.hashes.get(user)
            info |= {"base_fingerprint": self.base.fingerprint, **({"made_from": dict(made_from)} if made_from else {})}
            info |= {"note": note} if note else {}
            write_json(staging / INFO_FILE, info)

    def resume(self, users: Sequence[str]) -> list[str]:
        """Drop metrics of steps that will be made again: those after the checkpoints that people go on from.

        Args:
            users: those of whom nothing is decided yet; all processes train everybody together.

        Returns:
            Those to train, in order.
        """
        if self.writes:
            last = {user: last_checkpoint(self.folder.state(user)) for user in users}
            steps = {user: int(path.name.rpartition("-")[2]) if path else -1 for user, path in last.items()}
            self.folder.keep_metrics(steps)
        return list(users)
