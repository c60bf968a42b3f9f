"""A population of adapters: by `pluralign.train`, by a bare loop over PEFT adapters, by a `DPOTrainer` for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import inputs
import measure
import torch
from accelerate.utils import send_to_device
from sides import SHARED, TRAINING_KEYS, Job, lora, shared, trl_only
from transformers.trainer_callback import PrinterCallback
from workloads import Side


def ours(side: Side, job: Job, out: Path) -> float:
    """`pluralign.train`; returns the mean training loss."""
    import pluralign

    result = pluralign.train(_configuration(side, job, out))
    assert not result.skipped, result.skipped
    return measure.mean_of_lines(out / "run" / "metrics.jsonl")


def peft_loop(side: Side, job: Job, out: Path) -> float:
    """One adapter after another with no trainer around it: our rows, log-probs and loss, PyTorch's optimiser."""
    from pluralign.config import TrainConfig
    from pluralign.models.adapters import detach_adapter, new_adapter, save_adapter
    from pluralign.models.anchoring import anchor_preferences, encoder_of
    from pluralign.models.base import load_base
    from pluralign.models.cache import Cache
    from pluralign.models.layout import choose_layout
    from pluralign.models.logprobs import branch_logps
    from pluralign.objectives import Objective
    from pluralign.preferences import load_preferences
    from pluralign.resolve import resolve
    from pluralign.training.batches import AnchoredDataset, PreferenceCollator
    from pluralign.training.people import person_seed

    config = resolve(TrainConfig, _configuration(side, job, out))
    base, objective = load_base(config), Objective(config.loss, config.anchor)
    layout = choose_layout(base.model, base.tokenizer)
    collate = PreferenceCollator(base.tokenizer.pad_token_id, objective.branches, layout)
    preferences = load_preferences(config.data)
    by_user = preferences.by("user")
    losses = []
    for user, rows in by_user.items():
        with job.autocast():
            anchored = anchor_preferences(
                base,
                rows,
                encoder=encoder_of(base, config.data),
                settings=config.base_responses,
                cache=Cache(config.cache_dir),
                layout=layout,
                branches=objective.branches,
            )
        policy = new_adapter(base, config.parameters, seed=person_seed(config.seed, user))
        policy.train()
        weights = [weight for weight in policy.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=job.learning_rate, weight_decay=0.0, fused=True)
        data = AnchoredDataset(anchored)
        for start in range(0, len(data), job.batch):
            batch = collate([data[number] for number in range(start, min(start + job.batch, len(data)))])
            batch = send_to_device(batch, job.device)
            with job.autocast():
                logps = branch_logps(policy, batch["responses"])
                found = objective(logps, batch["reference"], batch["responses"].branch_lengths(), batch["columns"])
            loss = found.per_example.mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, SHARED["max_grad_norm"])
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        save_adapter(policy, out / user, base=base, user=user)
        detach_adapter(policy)
    return float(torch.stack(losses).mean())


def trl(side: Side, job: Job, out: Path) -> float:
    """One `DPOTrainer` after another on one model."""
    from datasets import Dataset, disable_progress_bars
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    disable_progress_bars()
    model = AutoModelForCausalLM.from_pretrained(
        job.folder, attn_implementation=side.attention, dtype=getattr(torch, job.dtype)
    )
    tokenizer = AutoTokenizer.from_pretrained(job.folder)
    people: dict[str, list[dict[str, Any]]] = {}
    for row in inputs.rows_of(job.table):
        people.setdefault(row["user"], []).append({name: row[name] for name in ("prompt", "chosen", "rejected")})
    losses = []
    for user, rows in people.items():
        trainer = DPOTrainer(
            model,
            args=DPOConfig(
                output_dir=str(out / user),
                **shared(job.learning_rate),
                **trl_only(job.device),
                per_device_train_batch_size=job.batch,
                num_train_epochs=1,
                bf16=job.bf16,
                precompute_ref_log_probs=side.precomputed,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=LoraConfig(**lora(job.rank or 8)),
        )
        # It would print a line of times at the end of every person.
        trainer.remove_callback(PrinterCallback)
        losses.append(trainer.train().training_loss)
        trainer.save_model(str(out / user))
        model = trainer.model.unload()
    return sum(losses) / len(losses)


RUN = {"ours": ours, "peft": peft_loop, "trl": trl}


def _configuration(side: Side, job: Job, out: Path) -> dict[str, Any]:
    given = shared(job.learning_rate)
    engine = {} if side.engine == "auto" else {"engine": side.engine}
    return {
        "model": str(job.folder),
        "method": "dpo",
        "dtype": job.dtype,
        "attn_implementation": side.attention,
        "device": job.device,
        "output_dir": str(out / "run"),
        "cache_dir": str(out / "cache"),
        "data": {"path": str(job.table), "validation": 0},
        "parameters": {"per": "user", "rank": job.rank},
        **engine,
        "training": {
            **{key: given[key] for key in TRAINING_KEYS},
            "num_train_epochs": 1,
            "per_device_train_batch_size": job.batch,
            "bf16": job.bf16,
            "eval_strategy": "no",
            "save_strategy": "no",
            "logging_steps": 10**6,
            "extra_arguments": {"train_sampling_strategy": "sequential"},
        },
    }
