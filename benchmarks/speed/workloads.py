"""What is measured: each workload, its sides, and the figures that are claimed from it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Literal

from inputs import Pairs, Shape


@dataclass(frozen=True)
class Side:
    """One contestant of a workload.

    Attributes:
        who: `ours`; `trl`, its `DPOTrainer`; `peft`, a bare loop over PEFT adapters.
        method: our preset.
        precomputed: TRL's reference log-probs, computed before the training or in every step.
        attention: the kernel that is asked for; None leaves the choice to the library.
        quick_matmul: float32 products by oneDNN. `ours` always has them, and no other side by itself.
        engine: of `pluralign train`, where people are trained.
    """

    who: Literal["ours", "trl", "peft"]
    method: str = "dpo"
    precomputed: bool = True
    attention: str | None = None
    quick_matmul: bool = False
    engine: str = "auto"


@dataclass(frozen=True)
class Claim:
    """A figure of a workload: what `theirs` takes, as a multiple of what `ours` takes.

    Attributes:
        title: as the page names it.
        theirs: names of sides; the quickest of them counts.
        least: the ratio that was aimed at, or None.
        ours: name of a side.
        inverse: ours as a share of theirs (memory, whole processes): `least` is then the most it may be.
    """

    title: str
    theirs: tuple[str, ...]
    least: float | None = None
    ours: str = "ours"
    inverse: bool = False


@dataclass(frozen=True)
class Workload:
    """Sides on the same pairs.

    Attributes:
        kind: `steps`, a step of each side in turn; `memory` and `process`, a process of each side in turn; `people`, a
            population of each side in turn, in one process.
        batch: pairs a step (of a person).
        bf16: autocast in bfloat16.
        dtype: of the weights.
        rank: of a LoRA adapter on all linear layers; None trains all weights.
        repeats: measured steps, or processes, of each side.
        tolerance: by how much losses of a step may differ, relatively, between sides that have the same objective.
        learning_rate: of everybody.
        device: `cpu` or `cuda`.
        warm_people: so many people are trained by each side before the clock runs; a GPU's kernels are made then.
        flops: whether floating-point operations are counted.
    """

    name: str
    kind: Literal["steps", "memory", "process", "people"]
    pairs: Pairs
    sides: dict[str, Side]
    claims: tuple[Claim, ...]
    shape: Shape = field(default_factory=Shape)
    batch: int = 4
    bf16: bool = False
    dtype: str = "float32"
    rank: int | None = None
    repeats: int = 12
    tolerance: float = 1e-3
    learning_rate: float = 1e-4
    device: Literal["cpu", "cuda"] = "cpu"
    warm_people: int = 0
    flops: bool = False

    def without(self, names: Collection[str]) -> Workload:
        """The same without some sides, and without what is claimed of them."""
        sides = {name: side for name, side in self.sides.items() if name not in names}
        left = [replace(one, theirs=tuple(name for name in one.theirs if name in sides)) for one in self.claims]
        return replace(self, sides=sides, claims=tuple(one for one in left if one.ours in sides and one.theirs))


OURS, BAPO = Side("ours"), Side("ours", method="bapo")
TRL = {
    "trl": Side("trl", attention="sdpa"),
    "trl_eager": Side("trl", attention="eager"),
}
"""With precomputed references. Which kernel is quicker depends on lengths and precision: the quicker one counts."""
IN_MEMORY = Side("trl", precomputed=False)
"""TRL's default: the reference model runs in every step; transformers chooses the attention kernel (`sdpa`)."""
PRECOMPUTED, BEST = ("trl", "trl_eager"), ("trl", "trl_eager", "trl_in_memory")
QUICK = {"trl_onednn": Side("trl", attention="eager", quick_matmul=True)}
SHORT, LONG = Pairs(32, 73, 73), Pairs(32, 291, 73, base=True)
RAGGED = Pairs(104, 73, 73, ragged=True)
"""Prompts of 9 to 73 tokens, responses of as many; no pair comes twice."""
BANK = {
    "ours": Side("ours", engine="bank"),
    "ours_one_by_one": Side("ours", engine="trainer"),
    "peft": Side("peft"),
    "trl": Side("trl", precomputed=False, attention="eager"),
}

WORKLOADS = (
    Workload(
        "short-fp32",
        "steps",
        SHORT,
        {"ours": OURS, **TRL, **QUICK},
        (
            Claim("DPO, 73 + 2 x 73 tokens, fp32, against TRL with precomputed references", PRECOMPUTED, 1.6),
            Claim("the same, TRL with oneDNN's float32 products too", ("trl_onednn",)),
        ),
        repeats=24,
    ),
    Workload(
        "long-fp32",
        "steps",
        LONG,
        {"ours": OURS, "bapo": BAPO, **TRL, "trl_in_memory": IN_MEMORY, **QUICK},
        (
            Claim("DPO, 291 + 2 x 73, fp32, against TRL with precomputed references", PRECOMPUTED, 2.1),
            Claim("the same, TRL with oneDNN's float32 products too", ("trl_onednn",)),
            Claim("DPO, 291 + 2 x 73, fp32, against TRL's default, the reference in memory", ("trl_in_memory",), 2.8),
            Claim("BAPO, 291 + 3 x 73, fp32, against TRL's two branches, precomputed", PRECOMPUTED, 1.8, ours="bapo"),
        ),
    ),
    Workload(
        "long-bf16",
        "steps",
        LONG,
        {"ours": OURS, "bapo": BAPO, **TRL, "trl_in_memory": IN_MEMORY},
        (
            Claim("DPO, 291 + 2 x 73, bf16, against TRL with precomputed references", PRECOMPUTED, 2.8),
            Claim("DPO, 291 + 2 x 73, bf16, against TRL's default, the reference in memory", ("trl_in_memory",), 3.6),
            Claim("BAPO, 291 + 3 x 73, bf16, against TRL's two branches, precomputed", PRECOMPUTED, 2.3, ours="bapo"),
        ),
        bf16=True,
        tolerance=1e-2,
        repeats=16,
    ),
    Workload(
        "long-bf16-weights",
        "steps",
        LONG,
        {"ours": OURS, **TRL},
        (Claim("DPO, 291 + 2 x 73, weights in bf16, against TRL with precomputed references", PRECOMPUTED),),
        dtype="bfloat16",
        tolerance=5e-2,
        repeats=10,
    ),
    Workload(
        "long-bf16-lora",
        "steps",
        LONG,
        {"ours": OURS, **TRL},
        (Claim("DPO, 291 + 2 x 73, bf16, LoRA of rank 8, against TRL with precomputed references", PRECOMPUTED),),
        bf16=True,
        rank=8,
        tolerance=1e-2,
        repeats=10,
    ),
    Workload(
        "ragged-bf16",
        "steps",
        RAGGED,
        {"ours": OURS, **TRL, "trl_in_memory": IN_MEMORY},
        (
            Claim("DPO, ragged short texts, bf16, against TRL with precomputed references", PRECOMPUTED),
            Claim("DPO, ragged short texts, bf16, against TRL's default, the reference in memory", ("trl_in_memory",)),
        ),
        bf16=True,
        tolerance=1e-2,
        repeats=24,
    ),
    Workload(
        "memory",
        "memory",
        Pairs(12, 291, 73),
        {"ours": OURS, "trl": TRL["trl"], "trl_in_memory": IN_MEMORY},
        (
            Claim("peak memory, 128k vocabulary, all weights trained", ("trl",), 0.6, inverse=True),
            Claim("the same against TRL's default, the reference in memory", ("trl_in_memory",), inverse=True),
        ),
        shape=Shape(vocabulary=131072),
        repeats=2,
    ),
    Workload(
        "memory-lora",
        "memory",
        Pairs(12, 291, 73),
        {"ours": OURS, "trl": TRL["trl"]},
        (Claim("peak memory, 128k vocabulary, LoRA of rank 8", ("trl",), 0.6, inverse=True),),
        shape=Shape(vocabulary=131072),
        rank=8,
        repeats=2,
    ),
    Workload(
        "process",
        "process",
        Pairs(200, 291, 73),
        {"ours": OURS, "trl": Side("trl", precomputed=False, attention="eager")},
        (Claim("`pluralign train`, 200 long pairs, bf16, start to adapter", ("trl",), 0.6, inverse=True),),
        bf16=True,
        rank=8,
        repeats=2,
    ),
    Workload(
        "people",
        "people",
        Pairs(32, 24, 12, people=32),
        BANK,
        (
            Claim("32 people x 32 pairs of 24 + 2 x 12, rank 8, bf16, against a loop of PEFT adapters", ("peft",), 1.8),
            Claim("the same against our own loop over people", ("ours_one_by_one",)),
            Claim("the same against one `DPOTrainer` after another", ("trl",), 5.0),
        ),
        batch=2,
        bf16=True,
        dtype="bfloat16",
        rank=8,
        repeats=2,
    ),
    Workload(
        "people-longer",
        "people",
        Pairs(32, 64, 32, people=32),
        BANK,
        (
            Claim("32 people x 32 pairs of 64 + 2 x 32, against a loop of PEFT adapters", ("peft",)),
            Claim("the same against one `DPOTrainer` after another", ("trl",)),
        ),
        batch=2,
        bf16=True,
        dtype="bfloat16",
        rank=8,
        repeats=1,
    ),
)


@dataclass(frozen=True)
class Curve:
    """Cost along one axis.

    Attributes:
        axis: what is varied, as the plot names it.
        unit: of the cost; seconds are divided by `per` of the point.
        points: value on the axis -> its workload.
        per: value on the axis -> what a measured time is divided by.
    """

    name: str
    axis: str
    unit: str
    points: dict[int, Workload]
    per: dict[int, int]

    def without(self, names: Collection[str]) -> Curve:
        """The same without some sides."""
        return replace(self, points={at: workload.without(names) for at, workload in self.points.items()})


def _long(prompt: int, sides: dict[str, Side], vocabulary: int = 4096) -> Workload:
    return Workload(
        f"curve-{prompt}-{vocabulary}",
        "steps",
        Pairs(16, prompt, 73, base=True),
        sides,
        (),
        shape=Shape(vocabulary=vocabulary),
        bf16=True,
        tolerance=1e-2,
        repeats=3,
    )


def _many(people: int) -> Workload:
    sides = {
        name: side
        for name, side in BANK.items()
        if name == "ours" or (name == "ours_one_by_one" and people <= 64) or (name == "trl" and people <= 16)
    }
    pairs = Pairs(4, 32, 16, people=people)
    return Workload(
        f"curve-{people}", "people", pairs, sides, (), batch=2, bf16=True, rank=8, tolerance=1e-2, repeats=1
    )


_PROMPTS, _VOCABULARIES = (16, 64, 128, 256, 512), (1024, 4096, 16384, 65536)
_BRANCHES = {1: Side("ours", method="sft"), 2: OURS, 3: BAPO}
_PEOPLE = (1, 4, 16, 64, 256, 1024)

CURVES = (
    Curve(
        "prompt",
        "tokens of the prompt (and two responses of 73)",
        "ms a pair",
        {prompt: _long(prompt, {"ours": OURS, "trl": TRL["trl_eager"]}) for prompt in _PROMPTS},
        dict.fromkeys(_PROMPTS, 4),
    ),
    Curve(
        "branches",
        "responses a row (73 tokens each, to 291)",
        "ms a row",
        {number: _long(291, {"ours": side}) for number, side in _BRANCHES.items()},
        dict.fromkeys(_BRANCHES, 4),
    ),
    Curve(
        "vocabulary",
        "tokens in the vocabulary (128 + 2 x 73 a row)",
        "ms a pair",
        {size: _long(128, {"ours": OURS, "trl": TRL["trl_eager"]}, size) for size in _VOCABULARIES},
        dict.fromkeys(_VOCABULARIES, 4),
    ),
    Curve(
        "people",
        "people (four pairs each)",
        "ms a person",
        {people: _many(people) for people in _PEOPLE},
        {people: people for people in _PEOPLE},
    ),
)
