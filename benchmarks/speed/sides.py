"""The sides: ours, and TRL's `DPOTrainer` at its best settings, on the same folder, pairs, order and optimiser."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import inputs
import torch
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from workloads import Side

from pluralign.models.matmul import quick_matmul

SHARED: dict[str, Any] = {
    "lr_scheduler_type": "constant",
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "optim": "adamw_torch_fused",
    "train_sampling_strategy": "sequential",
    "dataloader_num_workers": 0,
    "seed": inputs.SEED,
}
TRL: dict[str, Any] = {
    # Its defaults recompute activations, and log every tenth step.
    "gradient_checkpointing": False,
    "logging_strategy": "no",
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "max_length": None,
    "beta": 0.1,
}
"""`padding_free` is switched off by TRL 1.16 itself; all rows are of one length, so
nothing is padded."""


@dataclass(frozen=True)
class Job:
    """One policy's training.

    Attributes:
        folder: of the model.
        table: of the pairs.
        work: a folder for what is left over.
        batch: pairs a step.
        steps: optimiser steps.
        bf16: autocast.
        dtype: of the weights.
        rank: of a LoRA adapter on all linear layers; None trains all weights.
        learning_rate: constant.
        device: `cpu` or `cuda`.
    """

    folder: Path
    table: Path
    work: Path
    batch: int
    steps: int
    bf16: bool = False
    dtype: str = "float32"
    rank: int | None = None
    learning_rate: float = 1e-4
    device: str = "cpu"

    def autocast(self) -> torch.autocast:
        """Mixed precision as the trainers have it."""
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.bf16)


def shared(learning_rate: float) -> dict[str, Any]:
    """Arguments of both trainers."""
    return {"learning_rate": learning_rate, **SHARED}


def trl_only(device: str) -> dict[str, Any]:
    """Arguments of TRL's trainer alone."""
    return {**TRL, "use_cpu": device == "cpu"}


def trainer(side: Side, job: Job, callback: TrainerCallback | None = None) -> Any:
    """The trainer of a side, ready to train."""
    made = ours(side, job, callback) if side.who == "ours" else trl(side, job, callback)
    made.remove_callback(PrinterCallback)
    return made


def precision(side: Side) -> contextlib.AbstractContextManager[None]:
    """Float32 products as the side has them, for the time of the block."""
    return quick_matmul() if side.who == "ours" or side.quick_matmul else contextlib.nullcontext()


def ours(side: Side, job: Job, callback: TrainerCallback | None = None) -> Any:
    """Our trainer, as `pluralign train` makes it, with cached references; base responses are those of the table."""
    from pluralign.config import GenerationConfig, ParametersConfig, TrainConfig
    from pluralign.models.adapters import new_adapter
    from pluralign.models.anchoring import anchor_preferences, encoder_of
    from pluralign.models.base import load_base
    from pluralign.models.cache import Cache
    from pluralign.models.layout import choose_layout
    from pluralign.objectives import Objective
    from pluralign.preferences import load_preferences
    from pluralign.resolve import resolve
    from pluralign.training import PreferenceTrainer
    from pluralign.training.arguments import training_arguments
    from pluralign.training.batches import AnchoredDataset, PreferenceCollator

    given = shared(job.learning_rate)
    extra = {key: value for key, value in given.items() if key not in TRAINING_KEYS and key != "seed"}
    config = resolve(
        TrainConfig,
        {
            "model": str(job.folder),
            "method": side.method,
            "dtype": job.dtype,
            "attn_implementation": side.attention,
            "device": job.device,
            "data": {"path": str(job.table), "max_prompt_length": 4096},
            "training": {
                **{key: given[key] for key in TRAINING_KEYS},
                "per_device_train_batch_size": job.batch,
                "max_steps": job.steps,
                "bf16": job.bf16,
                "eval_strategy": "no",
                "save_strategy": "no",
                "logging_steps": 10**6,
                "extra_arguments": extra,
            },
        },
    )
    cache = Cache(str(job.work / "cache"))
    base = load_base(config)
    objective = Objective(config.loss, config.anchor)
    encoder = encoder_of(base, config.data)
    layout = choose_layout(base.model, base.tokenizer)
    with job.autocast():
        rows = anchor_preferences(
            base,
            load_preferences(config.data),
            encoder=encoder,
            settings=GenerationConfig(),
            cache=cache,
            layout=layout,
            branches=objective.branches,
        )
    if job.rank is None:
        policy = base.model.requires_grad_(True)
    else:
        policy = new_adapter(base, ParametersConfig(rank=job.rank), seed=inputs.SEED)
    arguments = training_arguments(config.training, output_dir=job.work / "ours", device=job.device)
    arguments.seed = arguments.data_seed = inputs.SEED
    return PreferenceTrainer(
        policy,
        arguments,
        objective,
        train_dataset=AnchoredDataset(rows),
        data_collator=PreferenceCollator(
            pad_id=base.tokenizer.pad_token_id, branches=objective.branches, layout=layout
        ),
        callbacks=[callback] if callback else [],
    )


TRAINING_KEYS = ("learning_rate", "lr_scheduler_type", "weight_decay", "max_grad_norm")


def trl(side: Side, job: Job, callback: TrainerCallback | None = None) -> Any:
    """TRL's trainer."""
    from datasets import Dataset, disable_progress_bars
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    disable_progress_bars()
    model = AutoModelForCausalLM.from_pretrained(
        job.folder, dtype=getattr(torch, job.dtype), attn_implementation=side.attention
    )
    columns = ("prompt", "chosen", "rejected")
    rows = [{name: row[name] for name in columns} for row in inputs.rows_of(job.table)]
    return DPOTrainer(
        model,
        args=DPOConfig(
            output_dir=str(job.work / "trl"),
            **shared(job.learning_rate),
            **trl_only(job.device),
            per_device_train_batch_size=job.batch,
            max_steps=job.steps,
            bf16=job.bf16,
            precompute_ref_log_probs=side.precomputed,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(job.folder),
        callbacks=[callback] if callback else [],
        peft_config=None if job.rank is None else LoraConfig(**lora(job.rank)),
    )


def lora(rank: int) -> dict[str, Any]:
    """PEFT's arguments for the adapter that ours has by default."""
    return {"r": rank, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


def warm_imports(side: Side) -> None:
    """Import what the side needs, so that nobody's imports are measured with the work."""
    if side.who == "trl":
        from trl import DPOTrainer  # noqa: F401
    else:
        import pluralign.evaluation
        import pluralign.training.run  # noqa: F401
