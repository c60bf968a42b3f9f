"""What a run is: the seats and their choices, as dataclasses that are command line, YAML and Python call alike.

No torch here: help and error messages must not pay for it. Each key's help is the docstring below it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass
class DataConfig:
    """The table of preferences."""

    path: str | list[str] = "world"
    """A file (JSONL, CSV, Parquet, Arrow; gzip of these), several, a folder, a hub id, or `world`, the embedded one."""
    source: str = "auto"
    """How rows are read: `auto` by their columns, `table`, or as published: hh, dsp, personas, helpsteer2, pandalm."""
    split: str = "train"
    """Split of a hub data set; files have none."""
    revision: str | None = None
    """Revision of a hub data set."""
    validation: float | str = 0.1
    """Held-out pairs: a share of each person's rows, or a file with rows of its own."""
    split_by: Literal["row", "prompt", "user"] = "prompt"
    """What a held-out share is drawn from; `prompt` puts no prompt on both sides, `user` holds out whole people."""
    max_prompt_length: int = 512
    """Tokens a prompt may have; a longer one is cut on the left, counted and reported."""
    max_response_length: int = 512
    """Tokens a response may have; a longer one is cut on the right, counted and reported."""
    chat_template: Literal["messages", "always"] = "messages"
    """Where the tokenizer's chat template applies: to rows of messages only, or to plain text too, as one user turn."""


@dataclass
class ParametersConfig:
    """What a person owns."""

    per: Literal["user", "group", "none"] = "user"
    """One adapter per value of this column, or one policy for all."""
    kind: Literal["lora", "full"] = "lora"
    """A LoRA adapter, or all weights (only with `per: none`)."""
    rank: int = 8
    """Rank of the adapter, as in PEFT's `LoraConfig`."""
    alpha: float = 16.0
    """Scale of the adapter, as in PEFT's `LoraConfig`."""
    dropout: float = 0.0
    """Dropout before the adapter, as in PEFT's `LoraConfig`."""
    target_modules: str | list[str] = "all-linear"
    """Layers that get an adapter: names as in PEFT's `LoraConfig`, or `all-linear` (all but the head)."""


@dataclass
class ReferenceConfig:
    """What the policy is compared with."""

    compute: Literal["cached", "forward"] = "cached"
    """Reference log-probs computed once and cached, or in every step by the same forward without the adapter."""


@dataclass
class LossConfig:
    """What is asked of one pair."""

    type: str = "sigmoid"
    """sigmoid, ipo, hinge, robust, sppo_hard, nll, or a function by import path (`package.module:function`)."""
    beta: float = 0.1
    """Strength of the pull to the reference, > 0."""
    label_smoothing: float = 0.0
    """Probability in [0, 0.5) that a label is flipped (sigmoid and robust)."""
    length_average: bool = False
    """Take each response's log-prob as its mean per token before the margin (TRL's form of IPO); for nll, per token."""


@dataclass
class BaseAnchorConfig:
    """Pull to the base model's own response."""

    weight: float = 0.0
    """Weight as a multiple of beta; 0 is off, and from 0.5 on it may forbid the new style (a warning says so)."""
    form: Literal["hinge", "absolute", "squared", "nll"] = "hinge"
    """Penalty on rho = policy - reference log-prob of the base response: max(0, -rho), |rho|, rho^2, or -policy."""
    per_token: bool = False
    """Mean log-prob per token instead of the sum."""
    placement: Literal["outside", "inside"] = "outside"
    """Added to the pairwise loss, or subtracted from the margin inside it."""
    prompts: str | list[str] = field(default_factory=list)
    """Prompts without a pair, or files of them (a table with a `prompt` column, or `.txt` with one a line), whose base
    responses are kept as well: everybody gets some of them beside their pairs."""
    prompts_per_pair: float = 0.25
    """Rows of such prompts a person gets for each of their rows to learn from, > 0."""


@dataclass
class ChosenAnchorConfig:
    """Pull to the reference's likelihood of the chosen response (DPOP)."""

    weight: float = 0.0
    """Weight as a multiple of beta; 0 is off."""
    placement: Literal["outside", "inside"] = "inside"
    """Added to the pairwise loss, or subtracted from the margin inside it (DPOP)."""


@dataclass
class NllAnchorConfig:
    """Plain likelihood of the chosen response."""

    weight: float = 0.0
    """Weight of the chosen response's negative log-likelihood, mean per token; 0 is off. Not a multiple of beta."""


@dataclass
class AnchorConfig:
    """What keeps the policy near something it already does."""

    base: BaseAnchorConfig = field(default_factory=BaseAnchorConfig)
    chosen: ChosenAnchorConfig = field(default_factory=ChosenAnchorConfig)
    nll: NllAnchorConfig = field(default_factory=NllAnchorConfig)


@dataclass
class WeightingConfig:
    """How much an example counts."""

    column: str | None = None
    """A column of non-negative numbers; the loss of an optimiser step is the weighted sum over the sum of weights."""


@dataclass
class GenerationConfig:
    """How responses are sampled."""

    max_new_tokens: int = 64
    """Tokens a response may have; one that reaches it is cut and carries no end-of-sequence token."""
    do_sample: bool = False
    """Sample instead of taking the most likely token."""
    temperature: float = 1.0
    """Temperature of sampling, > 0."""
    top_p: float = 1.0
    """Mass of the nucleus that is sampled from, in (0, 1]."""
    top_k: int = 0
    """Number of tokens that are sampled from; 0 is all."""
    batch_size: int = 32
    """Prompts in one batch; prompts of like length go together."""


@dataclass
class TrainingConfig:
    """Settings of the trainer, with the names of `transformers.TrainingArguments`."""

    num_train_epochs: float = 3.0
    """Passes over a person's pairs."""
    max_steps: int = -1
    """Optimiser steps; overrides the epochs where positive."""
    per_device_train_batch_size: int = 8
    """Examples in one forward."""
    per_device_eval_batch_size: int = 32
    """Held-out examples in one forward."""
    gradient_accumulation_steps: int = 1
    """Forwards in one optimiser step."""
    learning_rate: float = 5e-4
    """Peak learning rate."""
    lr_scheduler_type: str = "linear"
    """Schedule of the learning rate."""
    warmup_steps: float = 0.0
    """Steps of warm-up; below 1, a share of all steps."""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm; 0 clips nothing."""
    bf16: bool = False
    """Mixed precision in bfloat16."""
    fp16: bool = False
    """Mixed precision in float16 (GPU)."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass."""
    logging_steps: float = 10
    """Steps between two lines of metrics; below 1, a share of all steps."""
    eval_strategy: Literal["no", "steps", "epoch"] = "epoch"
    """When held-out pairs are scored; `no` where there are none."""
    eval_steps: float | None = None
    """Steps between two validations with `eval_strategy: steps`."""
    save_strategy: Literal["no", "steps", "epoch"] = "epoch"
    """When a person's training is checkpointed, to go on from there after a kill."""
    save_steps: float = 100
    """Steps between two checkpoints with `save_strategy: steps`."""
    load_best_model_at_end: bool = False
    """Keep the checkpoint with the best `metric_for_best_model` instead of the last."""
    metric_for_best_model: str = "loss"
    """Metric of the held-out pairs that decides which checkpoint is best."""
    early_stopping_patience: int | None = None
    """Stop a person after so many validations without improvement."""
    report_to: str | list[str] = "none"
    """Trackers that also get the metrics (tensorboard, wandb, ...), as in `TrainingArguments`."""
    extra_arguments: dict[str, Any] = field(default_factory=dict)
    """Any other `TrainingArguments` by name (fsdp, deepspeed, optim, ...)."""


@dataclass
class BankConfig:
    """Many people at once: adapters stacked on the one base."""

    slots: int | None = None
    """Adapters in memory at a time; by default what suits the device and fits."""
    batch_tokens: int | None = None
    """Tokens of one forward, whoever they belong to, padding included; by default what suits the device."""


@dataclass
class EvaluationConfig:
    """What is measured of each person."""

    probes: str | list[str] | None = None
    """Knowledge probes (JSONL), or trivia and arc files by `name:path`; `world` for the embedded default's own."""
    max_probes: int | None = None
    """At most so many probes a file, a sample fixed by the seed."""
    cross_table: int = 32
    """All people against all up to so many; beyond, each with its own, its nearest and a fixed sample."""
    generate: bool = True
    """Let base and person answer held-out prompts; on the world, judge the answers."""
    max_prompts: int = 64
    """Held-out prompts a person that are answered and judged."""


@dataclass
class ModelConfig:
    """The one base model, and where and how it is loaded. Shared by every command that touches it."""

    model: str = "nano"
    """Folder of the base model, a hub id, or `nano` for the model in the package."""
    model_revision: str | None = None
    """Revision of a hub model."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
    """Type of the base's weights; `auto` is the one they were saved in."""
    quantization: Literal["none", "4bit"] = "none"
    """`4bit` holds the base's linear layers in 4 bits (NF4 by bitsandbytes, on a GPU), under adapters as they are."""
    attn_implementation: str | None = None
    """Attention kernel, as in transformers; the model's own choice by default."""
    device: str = "auto"
    """`auto` (a GPU where there is one), `cpu`, `cuda`, `cuda:1`."""
    cache_dir: str | None = None
    """Folder of the cache of base responses and reference log-probs; by default the user's cache folder."""
    seed: int = 0
    """Fixes splits, initial adapters, order and dropout."""


@dataclass
class AnchorTableConfig(ModelConfig):
    """`pluralign anchor`: base responses and reference log-probs of a table, once per distinct text."""

    data: DataConfig = field(default_factory=DataConfig)
    base_responses: GenerationConfig = field(default_factory=GenerationConfig)
    output: str = "anchored.parquet"
    """The anchored table to write (Parquet)."""
    overwrite: bool = False
    """Replace an anchored table that is there."""


@dataclass
class TrainConfig(ModelConfig):
    """`pluralign train`: one adapter a person from a table of preferences."""

    method: str = "bapo"
    """A preset (sft, dpo, ipo, slic, dpop, bapo) or a YAML file of yours; keys beside it override it."""
    data: DataConfig = field(default_factory=DataConfig)
    output_dir: str = "runs/train"
    """Folder of the results; one of another run is never overwritten without `overwrite`."""
    overwrite: bool = False
    """Replace the results of another run."""
    update: str | list[str] = field(default_factory=list)
    """People of a finished folder to train anew on the present table: an id, several with commas between, or a list."""
    parameters: ParametersConfig = field(default_factory=ParametersConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    anchor: AnchorConfig = field(default_factory=AnchorConfig)
    weighting: WeightingConfig = field(default_factory=WeightingConfig)
    base_responses: GenerationConfig = field(default_factory=GenerationConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    engine: Literal["auto", "bank", "trainer", "ray"] = "auto"
    """How people are trained: together in the bank, one after another in the Trainer, what fits the run, or in banks
    on the workers of a Ray cluster."""
    bank: BankConfig = field(default_factory=BankConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    plan: bool = False
    """Print what the run will take, and stop: nothing is written to output_dir."""


@dataclass
class EvaluateConfig:
    """`pluralign evaluate`: what each person of a finished run won, and what it cost."""

    run: str = "runs/train"
    """Folder of a finished run."""
    data: DataConfig | None = None
    """Held-out pairs; by default those that the run held out."""
    output: str | None = None
    """The file to write; by default `evaluation.json` in the run's folder."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    device: str = "auto"
    """`auto` (a GPU where there is one), `cpu`, `cuda`, `cuda:1`."""


@dataclass
class GenerateConfig:
    """`pluralign generate`: prompts answered by the base and by people, side by side."""

    run: str = "runs/train"
    """Folder of a finished run."""
    prompts: str | list[str] = field(default_factory=list)
    """Prompts, or files of them (a table with a `prompt` column, or `.txt` with one a line)."""
    users: str | list[str] | None = None
    """Whose adapters answer: an id, several with commas between, or a list; everybody's by default."""
    plain: bool = False
    """Take text prompts as they are; without it they are one user turn of the chat template, where there is one."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    output: str | None = None
    """A JSONL file for the answers, beside the table in the terminal."""
    seed: int = 0
    """Fixes sampling."""
    device: str = "auto"
    """`auto` (a GPU where there is one), `cpu`, `cuda`, `cuda:1`."""


@dataclass
class PeopleListConfig:
    """`pluralign people list`: everybody of a run on a line each."""

    run: str = "runs/train"
    """Folder of a run."""
    output: str | None = None
    """A JSON file for the list, beside the table in the terminal."""


@dataclass
class PeopleShowConfig:
    """`pluralign people show`: everything about one person of a run."""

    run: str = "runs/train"
    """Folder of a run."""
    user: str = ""
    """The id of the person to show."""
    output: str | None = None
    """A JSON file for it, beside the tables in the terminal."""


@dataclass
class PeopleRemoveConfig:
    """`pluralign people remove`: people out of a run, with everything that tells of them, and the proof."""

    run: str = "runs/train"
    """Folder of a run."""
    user: str | list[str] = field(default_factory=list)
    """Who goes: an id, several with commas between, or a list."""
    data: DataConfig | None = None
    """The table that they were trained on, where it is not that of the run any more; it finds their cached texts."""


@dataclass
class CheckConfig:
    """`pluralign data check`: what one wants to know of a table before training on it."""

    data: DataConfig = field(default_factory=DataConfig)
    model: str | None = None
    """Folder or hub id of a model (or `nano`): lengths are counted in its tokens, in characters without one."""
    output: str | None = None
    """A JSON file for the report, beside the table in the terminal."""


@dataclass
class WorldConfig:
    """`pluralign world make`: a small world with known truth, as files."""

    seed: int = 0
    """Another seed makes another world."""
    out: str = "world"
    """Folder to write: corpus, preferences, probes, facts."""
    users: int = 8
    """People whose preferences are drawn."""
    pairs_per_user: int = 240
    """Pairs of each."""
    model: bool = False
    """Also train a nano model on the world's corpus (some minutes on one core)."""
    overwrite: bool = False
    """Replace a folder that is there."""


@dataclass
class DemoConfig:
    """`pluralign demo`: the main job on the embedded default, offline."""

    output_dir: str = "runs/demo"
    """Folder of the results; the same demo there is gone on with, another one replaced."""
    users: int = 6
    """People of the world who get an adapter."""
    method: str = "bapo"
    """A preset (sft, dpo, ipo, slic, dpop, bapo) or a YAML file of yours."""
    seed: int = 0
    """Fixes people, splits, initial adapters, order."""
