"""What a command is given, as dataclasses that are command line, YAML and Python call alike.

The seats of a method are in `seats.py`. No torch here: help and error messages must not pay for it. Each key's help is
the docstring below it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pluralign.seats import (
    AnchorConfig,
    BankConfig,
    BaseAnchorConfig,
    ChosenAnchorConfig,
    ConditioningConfig,
    ContrastConfig,
    DataConfig,
    EvaluationConfig,
    GenerationConfig,
    GroupWeightingConfig,
    LossConfig,
    NllAnchorConfig,
    ParametersConfig,
    ReferenceConfig,
    SftStageConfig,
    TrainingConfig,
    WeightingConfig,
)

__all__ = [
    "AnchorConfig",
    "AnchorTableConfig",
    "BankConfig",
    "BaseAnchorConfig",
    "CheckConfig",
    "ChosenAnchorConfig",
    "ConditioningConfig",
    "ContrastConfig",
    "DataConfig",
    "DemoConfig",
    "EmbeddingConfig",
    "EvaluateConfig",
    "EvaluationConfig",
    "FewshotAskConfig",
    "FewshotEvaluateConfig",
    "FewshotFitConfig",
    "FewshotPredictConfig",
    "GenerateConfig",
    "GenerationConfig",
    "GroupWeightingConfig",
    "LossConfig",
    "MetaPairsConfig",
    "ModelConfig",
    "ModuleTrainingConfig",
    "NllAnchorConfig",
    "ParametersConfig",
    "PeopleListConfig",
    "PeopleRemoveConfig",
    "PeopleShowConfig",
    "ReferenceConfig",
    "SftStageConfig",
    "TrainConfig",
    "TrainingConfig",
    "WeightingConfig",
    "WorldConfig",
]


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
    """A preset (see docs/methods) or a YAML file of yours; keys beside it override it."""
    data: DataConfig = field(default_factory=DataConfig)
    output_dir: str = "runs/train"
    """Folder of the results; one of another run is never overwritten without `overwrite`."""
    overwrite: bool = False
    """Replace the results of another run."""
    update: str | list[str] = field(default_factory=list)
    """People of a finished folder to train anew on the present table: an id, several with commas between, or a list."""
    conditioning: ConditioningConfig = field(default_factory=ConditioningConfig)
    parameters: ParametersConfig = field(default_factory=ParametersConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    anchor: AnchorConfig = field(default_factory=AnchorConfig)
    weighting: WeightingConfig = field(default_factory=WeightingConfig)
    base_responses: GenerationConfig = field(default_factory=GenerationConfig)
    sft: SftStageConfig = field(default_factory=SftStageConfig)
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
    group: str | None = None
    """Where the run conditions prompts: what stands for `{group}`."""
    user_info: str | None = None
    """Where the run conditions prompts: what stands for `{user_info}`."""
    system_info: str | None = None
    """Where the run conditions prompts: what stands for `{system_info}`."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    best_of: int = 1
    """Answers to sample for each that is shown: the one that `taste` says is taken first of them."""
    taste: str | None = None
    """What `pluralign fewshot fit` wrote; with `best_of`."""
    answers: str | list[str] = field(default_factory=list)
    """Tables of answers or preferences of the one person whose taste chooses; with `best_of`."""
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
    """A preset (see docs/methods) or a YAML file of yours."""
    seed: int = 0
    """Fixes people, splits, initial adapters, order."""


@dataclass
class EmbeddingConfig:
    """Answer options as vectors."""

    model: str = "ngrams"
    """`ngrams` (hashed words), or folder or hub id of a transformers or sentence-transformers model."""
    pooling: Literal["answer", "all"] = "answer"
    """Mean over the answer's tokens, or over all of question, options and answer, as published."""
    device: str = "auto"
    """`auto` (a GPU where there is one), `cpu`, `cuda`, `cuda:1`."""


@dataclass
class ModuleTrainingConfig:
    """How the published module is trained."""

    steps: int = 3000
    """Of the optimiser; the published 200,000 take hours."""
    learning_rate: float = 3e-4
    """At first; it falls to 0 along a cosine."""
    loss: Literal["cross_entropy", "gaussian_nll"] = "cross_entropy"
    """Cross-entropy of shares, or the published Gaussian likelihood, which grows over-confident."""
    groups: int = 32
    """Groups in a step, at most."""


@dataclass
class FewshotConfig:
    """What fitting and comparing few-shot predictors share."""

    data: str | list[str] = field(default_factory=list)
    """Tables of survey answers (`group, question, options, distribution`), or of preferences."""
    group: str | None = None
    """Column that says whose answers they are; by default `group` of survey answers and `user` of preferences."""
    groups: list[str] = field(default_factory=list)
    """Which groups to take; all by default. `paper_countries` and `paper_groups` stand for the 14 countries and the 22
    groups of the survey papers."""
    embeddings: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    module: ModuleTrainingConfig = field(default_factory=ModuleTrainingConfig)
    overwrite: bool = False
    """Replace a file that is there."""
    cache_dir: str | None = None
    """Folder of the cache of vectors; by default the user's cache folder."""
    seed: int = 0
    """Fixes groups kept apart, initial weights and episodes; of several splits it is the first one's."""


@dataclass
class FewshotFitConfig(FewshotConfig):
    """`pluralign fewshot fit`: a predictor of whole answers from a few, learned of some groups."""

    method: str | None = None
    """A preset: `gpo`, the module as published but for its steps; or a YAML file. Keys beside it override it."""
    predictor: Literal["taste", "gpo"] = "taste"
    """The closed form, or the published module."""
    output: str = "predictor.safetensors"
    """The file to write."""


@dataclass
class FewshotPredictConfig:
    """`pluralign fewshot predict`: what groups will answer, from a few of their answers."""

    predictor: str = "predictor.safetensors"
    """What `pluralign fewshot fit` wrote."""
    answers: str | list[str] = field(default_factory=list)
    """Tables of what the groups have answered, in the form of the predictor's own data."""
    group: str | None = None
    """Column that says whose answers they are, as of `fewshot fit`."""
    questions: str | list[str] = field(default_factory=list)
    """Tables of what to predict: `question, options`, or preferences."""
    level: float = 0.8
    """Share of the true answers that the intervals should hold: 0.5, 0.8, 0.9 or 0.95."""
    output: str = "predictions.jsonl"
    """The file to write, a row a group and question."""
    cache_dir: str | None = None
    """Folder of the cache of vectors; by default the user's cache folder."""


@dataclass
class FewshotAskConfig:
    """`pluralign fewshot ask`: which question to ask a group or person next."""

    predictor: str = "predictor.safetensors"
    """What `pluralign fewshot fit` wrote, with `predictor: taste`."""
    answers: str | list[str] = field(default_factory=list)
    """Tables of what the one group has answered; none asks for the first question."""
    group: str | None = None
    """Column that says whose answers they are, as of `fewshot fit`."""
    questions: str | list[str] = field(default_factory=list)
    """Tables of what could be asked: `question, options`, or preferences. What has been answered is left out."""
    targets: str | list[str] = field(default_factory=list)
    """Tables of what is to be known; by default what could be asked."""
    output: str | None = None
    """A JSONL file for all of them, best first, beside the first ones in the terminal."""
    cache_dir: str | None = None
    """Folder of the cache of vectors; by default the user's cache folder."""


@dataclass
class FewshotEvaluateConfig(FewshotConfig):
    """`pluralign fewshot evaluate`: predictors and baselines, on groups that taught nothing."""

    methods: list[str] = field(
        default_factory=lambda: ["uniform", "mean", "nearest", "mixture", "ridge", "gpo", "taste"]
    )
    """What is compared."""
    sizes: list[int] = field(default_factory=lambda: [5, 10, 20, 50])
    """Answers of a context; a group is tested with those that it has enough answers for."""
    splits: int = 5
    """Random splits of the groups, and of the questions where these are new."""
    least: int = 15
    """Answers that a group needs to be tested; groups with fewer always teach."""
    output: str = "fewshot.json"
    """The file of results; a plot stands beside it, as `.svg`."""


@dataclass
class MetaPairsConfig:
    """`pluralign data meta-pairs`: pairs whose label follows the priorities in the prompt, from scored responses."""

    data: str | list[str] = field(default_factory=list)
    """Files with a row a response: `prompt`, `response` and a column of numbers for every criterion."""
    priorities: str = ""
    """YAML: a list of `{name, scores: {column: weight}}`, each with `system_info`, `user_info` or both."""
    output: str = "meta-pairs.jsonl"
    """The table of pairs to write."""
    overwrite: bool = False
    """Replace a table that is there."""
