"""The Trainer of `transformers` with named branches, per-example losses and checkpoints that survive a kill."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import EvalLoopOutput

from pluralign.errors import PersonError
from pluralign.models.logprobs import branch_logps
from pluralign.objectives import Losses, Objective
from pluralign.objectives.composition import Reference, each
from pluralign.training.ascent import AscentStep
from pluralign.training.batches import AnchoredDataset, Batch, EpochSampler, PreferenceCollator
from pluralign.training.callbacks import CheckpointFlow
from pluralign.training.checkpoints import checkpoint_path, publish, remove_others, staging_path
from pluralign.training.ema import FollowPolicy, MovingReference
from pluralign.training.metrics import GroupMeans, MetricMeans, group_sums


class PreferenceTrainer(Trainer):
    """Trains one policy on one set of anchored rows.

    The loss of an optimiser step is the weighted sum of its examples' losses over the sum of their weights, however
    many forwards and processes the step is made of. Metrics carry TRL's names and are means over the rows they concern
    since the last line.

    Args:
        model: a LoRA policy, or a causal language model whose weights are all trained.
        args: `remove_unused_columns` must be False: batches are not the model's own inputs.
        objective: losses per example.
        train_dataset: rows to train on.
        data_collator: makes batches with the objective's branches.
        eval_dataset: held-out rows, where there are any.
        reference: `cached` takes the rows' own reference log-probs; `forward` runs the same batch without the adapter.
        ema: decay of a reference that follows the policy instead; the rows' own log-probs are then the base anchor's.
        callbacks: as in `Trainer`.

    Raises:
        ValueError: `reference` is `forward` and the model has no adapter to leave out.
        FloatingPointError: while training, where the loss or the gradient is not finite; the message names the step,
            whose update was not made.
        PersonError: while training, where the held-out rows give no `metric_for_best_model`.
    """

    # `compute_loss` gives the batch's share of the whole step's loss: nothing is left to divide.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        objective: Objective,
        *,
        train_dataset: AnchoredDataset,
        data_collator: PreferenceCollator,
        eval_dataset: AnchoredDataset | None = None,
        reference: Literal["cached", "forward", "table"] = "cached",
        ema: float | None = None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        if reference == "forward" and not isinstance(model, PeftModel):
            raise ValueError(
                "reference 'forward' leaves the adapter out, and the model has none; use cached references"
            )
        self.objective, self.reference = objective, reference
        self._means = MetricMeans()
        weighting = train_dataset.weighting
        self._groups = GroupMeans(weighting.names if weighting else [])
        self.ascent = weighting.ascent if weighting else None
        self._ascent_step: AscentStep | None = None
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            data_collator=data_collator,
            callbacks=[CheckpointFlow(), *callbacks],
        )
        self.moving = None if ema is None else MovingReference(self.model, ema)
        if self.moving is not None:
            self.add_callback(FollowPolicy(self.moving))

    # ---- loss and metrics ----

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The batch's share of the step's loss, a scalar.

        Args:
            model: the policy, as wrapped for training.
            inputs: a batch of the collator.
            return_outputs: also return the `Losses`.
            num_items_in_batch: sum of weights of the optimiser step over all processes (`get_batch_samples`).
        """
        losses = self._losses(model, inputs)
        self._means.add(losses.terms, inputs["counts"])
        self._groups.add(losses, inputs["weight"], inputs["group"])
        weight = inputs["weight"]
        if self._ascent_step is not None:
            weight = weight * self._ascent_step.factors(losses.per_example.detach(), weight, inputs["group"])
        weighted = (weight * losses.per_example).sum()
        total = inputs["weight"].sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
        # DDP and FSDP average gradients over processes; the division is by the sum of all of them already. A step whose
        # weights are all 0 has the loss 0.
        loss = self.accelerator.num_processes * weighted / total.clamp(min=torch.finfo(weighted.dtype).tiny)
        return (loss, losses) if return_outputs else loss

    def _losses(self, model: nn.Module, inputs: Batch) -> Losses:
        responses = inputs["responses"]
        reference: Reference = self._run_reference(model, inputs) if self.objective.needs_reference else {}
        policy = branch_logps(model, responses)
        dtype = next(iter(policy.values())).dtype
        reference = each(reference, lambda value: value.to(dtype))
        # A row that only fills up the last batch has no responses: it stands on no side of a contrast.
        lengths = {name: value * inputs["counts"] for name, value in responses.branch_lengths().items()}
        return self.objective(
            policy,
            reference,
            lengths,
            inputs["columns"],
            embeddings=inputs.get("embeddings"),
            gather=self._gather_rows,
            process=self.accelerator.process_index,
        )

    def _gather_rows(self, rows: Tensor) -> Tensor:
        """Rows of all processes, in their order, with a gradient."""
        if self.accelerator.num_processes == 1:
            return rows
        if rows.dtype == torch.bool:
            # Not every backend sends truth values.
            return self._gather_rows(rows.to(torch.uint8)).bool()
        return torch.cat(all_gather(rows.contiguous()))

    def _run_reference(self, model: nn.Module, inputs: Batch) -> Reference:
        if self.moving is not None:
            # The base's own response is compared with what the base says of it, whoever the reference is.
            known = inputs["reference"].get("base")
            return {**self.moving.forward(inputs["responses"]), **({} if known is None else {"base": known})}
        if self.reference != "forward":
            given: Reference = inputs["reference"]
            return given
        # Before the policy's forward: leaving the adapter out and taking it in again may not fall between a forward and
        # the recomputation of its activations in the backward.
        with torch.no_grad(), self.accelerator.unwrap_model(self.model).disable_adapter():
            return branch_logps(model, inputs["responses"])

    def compute_loss_context_manager(self) -> contextlib.ExitStack:
        """Mixed precision around the whole loss; see `_prepare_for_training`."""
        stack = super().compute_loss_context_manager()
        stack.enter_context(self.accelerator.autocast())
        return stack

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Tensor]:
        """The batches of one optimiser step, and the sum of their weights over all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        weight = torch.stack([batch["weight"].sum() for batch in batches]).sum() if batches else torch.zeros(())
        if self.ascent is not None and batches:
            count = len(self.ascent.names)
            totals = torch.stack([group_sums(batch["weight"], batch["group"], count) for batch in batches]).sum(dim=0)
            self._ascent_step = AscentStep(
                self.ascent,
                self._sum_over_processes(totals.to(device)),
                rate=float(self._get_learning_rate()) / self.args.learning_rate,
                over_processes=self._sum_over_processes,
            )
        return batches, self.accelerator.reduce(weight.to(device), "sum")

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the means of the objective's terms beside the loss."""
        if "loss" in logs:
            logs |= self._means.take(self._sum_over_processes) | self._groups.take(self._sum_over_processes)
            if self.ascent is not None:
                logs |= self.ascent.logged
        super().log(logs, start_time)

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Loss, weighted by rows, and metrics over held-out rows; each counts once, whatever the processes."""
        model = self.model_wrapped
        model.eval()
        means, groups = MetricMeans(), GroupMeans(self._groups.names)
        sums = torch.zeros(2, device=self.args.device)
        for inputs in dataloader:
            with torch.no_grad(), self.compute_loss_context_manager():
                losses = self._losses(model, inputs)
            means.add(losses.terms, inputs["counts"])
            groups.add(losses, inputs["weight"], inputs["group"])
            weighted = (inputs["weight"] * losses.per_example).sum()
            sums = sums + torch.stack([weighted, inputs["weight"].sum()])
            self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        loss, weight = self._sum_over_processes(sums).tolist()
        found = means.take(self._sum_over_processes) | groups.take(self._sum_over_processes)
        metrics = {"loss": loss / weight if weight else 0.0, **found}
        named = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(None, None, named, num_samples=len(dataloader.dataset))  # type: ignore[arg-type]

    def _sum_over_processes(self, values: Tensor) -> Tensor:
        summed: Tensor = self.accelerator.reduce(values, "sum")
        return summed

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The norm, checked: the one place that every optimiser step passes before it changes a weight."""
        norm = super()._get_grad_norm(model, grad_norm)
        checked = {"loss": self._tr_loss}
        # The scaler of float16 meets infinite gradients by design, and leaves such a step out.
        if self.accelerator.scaler is None:
            checked["gradient"] = torch.as_tensor(norm, device=self._tr_loss.device)
        values = torch.stack([value.detach().to(torch.float32) for value in checked.values()])
        broken = self._sum_over_processes((~values.isfinite()).float()).tolist()
        for name, processes in zip(checked, broken, strict=True):
            if processes:
                raise FloatingPointError(
                    f"the {name} is not finite (NaN or infinite) at step {self.state.global_step + 1}"
                )
        if self._ascent_step is not None:
            self._ascent_step.end()
        return norm

    # ---- order of the rows ----

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int]:
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        in_order = self.args.train_sampling_strategy == "sequential"
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return EpochSampler(
            len(rows),
            multiple=self._filled_to(self._train_batch_size),
            seed=None if in_order else seed,
            # The state's epoch is a float that reaches the next whole number with an epoch's last step.
            epoch=lambda: int(self.state.epoch or 0),
            draw=rows.draw,
        )

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Sampler[int]:
        length = len(eval_dataset)  # type: ignore[arg-type]
        return EpochSampler(length, multiple=self._filled_to(self.args.eval_batch_size))

    def _filled_to(self, batch_size: int) -> int:
        processes = self.accelerator.num_processes
        return batch_size * processes if processes > 1 else 1

    # ---- checkpoints ----

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Stage a checkpoint, then give it its name; the newest and the best are kept.

        Training that is over needs none: what it leaves is saved as the result.
        """
        if self.control.should_training_stop or self.state.global_step >= self.state.max_steps:
            return
        folder = Path(self.args.output_dir)
        checkpoint = checkpoint_path(folder, self.state.global_step)
        staging = staging_path(checkpoint)
        try:
            self._fill_checkpoint(staging, checkpoint)
            if self.args.should_save:
                publish(staging, checkpoint)
                best = self.state.best_model_checkpoint if self.args.load_best_model_at_end else None
                remove_others(folder, keep={checkpoint, Path(best or checkpoint)})
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        self.accelerator.wait_for_everyone()

    def _fill_checkpoint(self, staging: Path, checkpoint: Path) -> None:
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        self.store_flos()
        if self.state.best_global_step == self.state.global_step:
            self.state.best_model_checkpoint = str(checkpoint)
        self.save_model(str(staging), _internal_call=True)
        self._save_optimizer_and_scheduler(str(staging))
        self._save_scaler(str(staging))
        self._save_rng_state(str(staging))
        if self.args.should_save:
            self.state.save_to_json(str(staging / TRAINER_STATE_NAME))
            if self.ascent is not None:
                self.ascent.save(staging)
            if self.moving is not None:
                self.moving.save(staging)
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Weights and configuration; the Trainer would add its arguments as a pickle, and PEFT a model card."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        policy = self.accelerator.unwrap_model(self.model)
        if not isinstance(policy, PeftModel):
            policy.save_pretrained(folder, state_dict=state_dict)
            return
        # Embeddings never change; asked to find out, PEFT would look for the base's configuration on the hub.
        weights = get_peft_model_state_dict(policy, state_dict=state_dict, save_embedding_layers=False)
        tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
        save_file(tensors, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
        policy.peft_config[policy.active_adapter].save_pretrained(str(folder))

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Note a new best value, and keep its weights also where no checkpoint is due."""
        name = (self.args.metric_for_best_model or "loss").removeprefix("eval_")
        if f"eval_{name}" not in metrics:
            given = ", ".join(key.removeprefix("eval_") for key in metrics if "/" in key or key == "eval_loss")
            reason = f"validation gives no {name!r} (training.metric_for_best_model), it gives {given}"
            raise PersonError(str(self.args.run_name), reason)
        is_best: bool = super()._determine_best_metric(metrics, trial)
        if is_best and self.args.load_best_model_at_end:
            self.control.should_save = True
        return is_best

    def _load_best_model(self) -> None:
        if self.state.best_global_step != self.state.global_step:
            super()._load_best_model()

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> Any:
        position = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if self.ascent is not None and resume_from_checkpoint is not None:
            self.ascent.load(Path(resume_from_checkpoint))
        if self.moving is not None and resume_from_checkpoint is not None:
            self.moving.load(Path(resume_from_checkpoint))
        # The folder may have moved since the state was written.
        if self.state.best_global_step:
            best = checkpoint_path(Path(self.args.output_dir), self.state.best_global_step)
            self.state.best_model_checkpoint = str(best) if best.is_dir() else None
        return position

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        prepared = super()._prepare_for_training(*args, **kwargs)
        # Under mixed precision accelerate replaces the model's forward by one that hands out a float32 copy of the
        # logits and lets the backward keep it; here autocast surrounds the loss, and log-probs are float32 anyway.
        self.accelerator.unwrap_model(self.model).__dict__.pop("forward", None)
        return prepared
