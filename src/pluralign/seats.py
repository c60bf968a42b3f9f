"""The seats of a method and the groups beside them: the choices that a run is made of.

No torch here: help and error messages must not pay for it. Each key's help is the docstring below it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
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
class ConditioningConfig:
    """What the model sees of the person, in the prompt of policy and reference alike."""

    template: str = ""
    """A prompt of text becomes this: `{prompt}` and columns in braces (`{group}`, `{user_info}`, yours)."""
    system: str = ""
    """A prompt of messages gets this as its system message, columns in braces; one that is there stands below it."""
    absent: str | None = None
    """What a column without a value becomes; by default such a row is left out, with its place."""


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
    start: str | None = None
    """Folder of a PEFT adapter that everybody begins with, or of a run, whose people begin with their own; by default
    adapters are fresh. Rank, scale and layers are then those of the adapter."""


@dataclass
class ReferenceConfig:
    """What the policy is compared with."""

    compute: Literal["cached", "forward", "table"] = "cached"
    """Reference log-probs computed once and cached, in every step by the same forward without the adapter, or as the
    table has them (`ref_chosen_logps`, `ref_rejected_logps`)."""
    models: list[str] = field(default_factory=list)
    """References: folders of models, of PEFT adapters of the base, hub ids, or `base`; by default the base alone. The
    last one is the one that is trusted, usually the policy's own beginning."""
    combine: Literal["harmonic", "geometric", "losses"] = "harmonic"
    """Several as one: a weighted mean of their probabilities, or the weighted mean of a loss for each."""
    weights: str | list[float] = "equal"
    """`equal`, `confidence` (by how clearly each tells chosen from rejected), or a number >= 0 for each."""
    clip: float = 0.0
    """Half-width of the trust region around the last reference that the others are clipped to, as a share of its
    log-probs; 0 clips nothing."""
    clip_by: Literal["adaptive", "fixed"] = "adaptive"
    """Whether chosen and rejected share the width by how unlikely they are, or each has all of it."""
    swap_weights: bool = False
    """Exchange the weights of two references, as the official code does where its formula does not."""
    ema: float | None = None
    """Decay in [0, 1) of a reference that follows the policy: after every step, decay times itself, the rest the
    policy. In the Trainer only."""


@dataclass
class ContrastConfig:
    """What every chosen response of a batch is compared with (`loss.type: contrast`)."""

    weights: Literal["semantic", "one", "share", "diagonal"] = "semantic"
    """Of the rejected responses: by the likeness of their prompts, all 1, all 1/N, or `diagonal_weight` for a row's own
    and the rest for the others."""
    embeddings: str = "ngrams"
    """What prompts are alike by: `ngrams` (hashed, of characters), `hidden` (the base's last hidden states, mean),
    `column:NAME` (a column of vectors), or the folder or hub id of a sentence-transformers or transformers model."""
    temperature: float = 0.5
    """Of the softmax of the likenesses, > 0."""
    diagonal_weight: float = 0.8
    """Weight of a row's own rejected response with `diagonal`, in [0, 1]."""


@dataclass
class LossConfig:
    """What is asked of one pair."""

    type: str = "sigmoid"
    """sigmoid, ipo, hinge, robust, sppo_hard, simpo, orpo, nll, kto, contrast, or a function by import path
    (`package.module:function`)."""
    beta: float = 0.1
    """Strength of the pull to the reference, > 0."""
    label_smoothing: float = 0.0
    """Probability in [0, 0.5) that a label is flipped (sigmoid and robust)."""
    length_average: bool = False
    """Take each response's log-prob as its mean per token before the margin (TRL's form of IPO); for nll, per token."""
    target_margin: float = 0.5
    """Margin that simpo asks for, gamma, >= 0; not a multiple of beta."""
    desirable_weight: float = 1.0
    """Weight of chosen responses in kto, >= 0."""
    undesirable_weight: float = 1.0
    """Weight of rejected responses in kto, >= 0."""
    contrast: ContrastConfig = field(default_factory=ContrastConfig)


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
class GroupWeightingConfig:
    """How much the groups of a policy's rows count."""

    by: Literal["rows", "importance", "sampling", "worst"] = "rows"
    """By their rows; each alike, by weights 1/N_g or by drawing rows of each as often; or the worst of them, by mirror
    ascent."""
    column: str = "group"
    """Column that names a row's group."""
    step_size: float = 0.05
    """Step size of the ascent, per unit of a group's loss (for `worst`); 0 keeps the groups alike."""
    step_factor: float = 1.0
    """What the step size is multiplied by for every tenfold drop of the learning rate below its peak; 1 keeps it."""
    trade_off: float = 1.0
    """In [0, 1]: 1 is the worst group, 0 the mean over groups (for `worst`)."""
    adjustment: float = 0.0
    """C >= 0: C / sqrt(N_g) is added to the loss of a group when groups are compared (for `worst`)."""
    scale: Literal["mean", "unbiased", "sum"] = "mean"
    """Loss of a group in a step: mean over its rows, N/N_g times its share of the mean over all, or N/N_g times its
    sum."""
    update: Literal["step", "batch"] = "step"
    """Weights move after every optimiser step, by all its rows; or before every forward's loss, as in the official
    code."""


@dataclass
class WeightingConfig:
    """How much an example counts."""

    column: str | None = None
    """A column of non-negative numbers; the loss of an optimiser step is the weighted sum over the sum of weights."""
    groups: GroupWeightingConfig = field(default_factory=GroupWeightingConfig)


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

    def greedy(self) -> GenerationConfig:
        """The same, but for the most likely token always."""
        return replace(self, do_sample=False)


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
class SftStageConfig:
    """Supervised fine-tuning before the method's own stage, which begins with it and is compared with it."""

    num_train_epochs: float = 0.0
    """Passes over the chosen responses; 0 leaves the stage out. For one policy (`parameters.per: none`)."""
    learning_rate: float = 5e-4
    """Peak learning rate of the stage."""
    data: str | list[str] = field(default_factory=list)
    """A table of its own; by default that of the run, less what it holds out."""


@dataclass
class BankConfig:
    """Many people at once: adapters stacked on the one base."""

    slots: int | None = None
    """Adapters in memory at a time; by default what suits the device and fits."""
    batch_tokens: int | None = None
    """Tokens of one forward, whoever they belong to, padding included; by default what suits the device."""


@dataclass
class KnowledgeConfig:
    """Tasks of lm-eval (extra `knowledge`), put to the base and to everybody."""

    tasks: str | list[str] = field(default_factory=list)
    """Tasks, groups or tags of lm-eval by name, or YAML files of tasks: one, several with commas between, or a list."""
    include_path: str | list[str] = field(default_factory=list)
    """Folders of tasks of your own, which are then known by their names."""
    num_fewshot: int | None = None
    """Examples before each question; by default as each task has it."""
    limit: float | None = None
    """Documents of each task at most; below 1, a share of them."""
    apply_chat_template: bool = False
    """Put questions as turns of the chat template."""
    batch_size: int = 16
    """Rows in one forward."""

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks, each once."""
        given = self.tasks.split(",") if isinstance(self.tasks, str) else self.tasks
        return tuple(dict.fromkeys(name.strip() for name in given if name.strip()))

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders of tasks."""
        given = [self.include_path] if isinstance(self.include_path, str) else self.include_path
        return tuple(str(Path(one).expanduser()) for one in given if one)


@dataclass
class DistributionConfig:
    """Survey answers that people's policies are compared with."""

    answers: str | list[str] = field(default_factory=list)
    """Tables of survey answers (`group, question, options, distribution`), as of `pluralign fewshot`."""
    group: str = "group"
    """Column that says whose answers they are: a person's id, or the group of their rows."""

    @property
    def tables(self) -> tuple[str, ...]:
        """The tables, each once."""
        given = [self.answers] if isinstance(self.answers, str) else self.answers
        return tuple(dict.fromkeys(one for one in given if one))


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
    identities: bool = False
    """Where prompts are conditioned: score held-out pairs also under another person's identity and under none."""
    knowledge: KnowledgeConfig = field(default_factory=KnowledgeConfig)
    distribution: DistributionConfig = field(default_factory=DistributionConfig)

    @property
    def asks(self) -> bool:
        """Whether there is something to measure with where no pairs are held out."""
        return bool(self.probes or self.knowledge.names or self.distribution.tables)
