"""What `pluralign online` is given, beside what `pluralign train` takes: where comparisons come from.

No torch here: help and error messages must not pay for it. Each key's help is the docstring below it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pluralign.annotation import AnnotatorConfig
from pluralign.config import TrainConfig
from pluralign.seats import GenerationConfig, ReferenceConfig


@dataclass
class OnlineReferenceConfig(ReferenceConfig):
    """What the policy is compared with."""

    policy: Literal["behavior", "fixed", "periodic", "ema", "given"] = "behavior"
    """The policy that sampled the pair; the base; the policy as it was some phases ago (`every`); one that follows it
    (`ema`, moved after every phase); or those of `models`."""
    every: int = 2
    """Phases between two moves of a `periodic` reference, >= 1."""
    kl_to_base: float = 0.0
    """Weight of KL(policy || base), in nats, estimated on what the policy sampled; 0 is off. It holds the policy near
    the base whatever it is compared with."""


@dataclass
class ServerConfig:
    """An OpenAI-compatible server that loads adapters while it runs (vLLM's protocol) and answers with them."""

    url: str = ""
    """Base address, as `http://localhost:8000/v1`; by default responses are generated in this process."""
    model: str = ""
    """Name of the base there; by default the one it has here (`model`)."""
    adapters: str = ""
    """Folder that adapters are written to, under the path by which the server sees it, too; by default `state/served`
    of the run."""
    adapters_at_once: int = 1
    """People whose adapters are on the server at a time, >= 1: as many as it computes with side by side (vLLM's
    `--max-loras`, 1 where it is not said)."""
    key_variable: str = "VLLM_API_KEY"
    """Environment variable with the key; it is written nowhere. Unset, no key is sent."""
    requests_at_once: int = 32
    """Requests in flight, >= 1."""
    retries: int = 4
    """Further tries of a request that failed, stalled or was refused for load, with growing pauses."""
    timeout: float = 300.0
    """Seconds until a request counts as stalled; waiting in the server's queue counts."""


@dataclass
class SampledPairsConfig:
    """Where comparisons come from: responses that people's own policies sample, in phases, labelled by an annotator."""

    prompts: str | list[str] = field(default_factory=list)
    """Files of prompts (a table with `prompt`, and `user` where a prompt is one person's), or prompts; by default those
    of `data`, of each person, less what is held out."""
    phases: int | Literal["every_step"] = 2
    """Sampling phases F, >= 1: 1 samples everything before the first step, `every_step` anew for each."""
    responses: int = 2
    """Responses to a prompt, >= 2."""
    form: Literal["best_worst", "all", "sampled"] = "best_worst"
    """Pairs of them: the best and the worst; every two that differ; or the only two (`responses: 2`)."""
    ensemble: list[str] = field(default_factory=list)
    """Adapters that sample together with each person's policy: folders of adapters, or of runs, of which each person's
    own is taken. The sampler is the mean of what they add to the weights, merged exactly; it is not trained."""
    budget: int | None = None
    """Prompts a person's responses are annotated to, over all phases; by default each prompt once."""
    generation: GenerationConfig = field(default_factory=lambda: GenerationConfig(do_sample=True))
    server: ServerConfig = field(default_factory=ServerConfig)


@dataclass
class ExtrapolationConfig:
    """A step beyond what an iteration learned, before the next one samples (APO)."""

    alpha: float = 0.0
    """How far, in units of what it learned; 0 is off."""


@dataclass
class OnlineConfig(TrainConfig):
    """`pluralign online`: one adapter a person, from responses that the policies sample and an annotator labels."""

    method: str = "bpo"
    """A preset (bpo, apo, online-dpo, iterative-dpo, or any of `train`) or a YAML file of yours."""
    output_dir: str = "runs/online"
    """Folder of the results; one of another run is never overwritten without `overwrite`."""
    reference: OnlineReferenceConfig = field(default_factory=OnlineReferenceConfig)
    pairs: SampledPairsConfig = field(default_factory=SampledPairsConfig)
    annotator: AnnotatorConfig = field(default_factory=AnnotatorConfig)
    extrapolation: ExtrapolationConfig = field(default_factory=ExtrapolationConfig)


@dataclass
class RelabelConfig:
    """`pluralign relabel`: what a run has sampled, compared anew by another annotator, as a table for `train`."""

    run: str = ""
    """Folder of an online run, finished or not."""
    annotator: AnnotatorConfig = field(default_factory=AnnotatorConfig)
    form: Literal["best_worst", "all", "sampled"] = "best_worst"
    """Pairs of a prompt's responses, as in `pairs.form`."""
    output: str = ""
    """The table to write (`.jsonl`); by default `relabelled.jsonl` in the run's folder. Verdicts are kept beside it as
    they are given: the same command goes on where it was stopped."""
