"""What is measured on a GPU: a model in the shape of Qwen2.5 0.5B with random weights, in bfloat16.

`shrunk` makes the same workloads so small that they try out the code, on a CPU too, and measure nothing.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec

from inputs import Pairs, Shape
from workloads import Claim, Curve, Side, Workload

FLEX = "flex_attention"
QWEN = Shape(
    family="qwen2",
    vocabulary=151936,
    hidden=896,
    intermediate=4864,
    layers=24,
    heads=14,
    kv_heads=2,
    context=32768,
)
"""As in the configuration of Qwen2.5-0.5B: 494M parameters, the head tied to the embedding."""

OURS = {"ours": Side("ours", attention="sdpa"), "ours_flex": Side("ours", attention=FLEX)}
TRL = {"trl": Side("trl", attention="sdpa")}
"""With precomputed references. Rows of one length need no padding mask, so `sdpa` is the causal flash kernel."""
IN_MEMORY = {"trl_in_memory": Side("trl", precomputed=False, attention="sdpa")}
if find_spec("flash_attn"):
    TRL["trl_flash"] = Side("trl", attention="flash_attention_2")
BANK = {name: replace(side, engine="bank") for name, side in OURS.items()}
ONE_BY_ONE = {"ours_one_by_one": Side("ours", attention="sdpa", engine="trainer")}
PEFT = {"peft": Side("peft", attention="sdpa")}


def _claims(title: str, least: float | None = None) -> tuple[Claim, ...]:
    best = tuple(TRL)
    return (
        Claim(f"{title}, against TRL with precomputed references", best, least),
        Claim(f"{title}, FlexAttention, the same", best, least, ours="ours_flex"),
        Claim(
            f"{title}, FlexAttention, against TRL's default, the reference in memory",
            tuple(IN_MEMORY),
            least,
            ours="ours_flex",
        ),
    )


def _long(name: str, title: str, **changes: object) -> Workload:
    return Workload(
        name,
        "steps",
        Pairs(48, 1024, 256),
        {**OURS, **TRL, **IN_MEMORY},
        _claims(f"DPO, 1024 + 2 x 256, {title}", 2.0),
        **{"shape": QWEN, "batch": 8, "bf16": True, "device": "cuda", "tolerance": 2e-2, "flops": True, **changes},
    )


def _memory(name: str, title: str, **changes: object) -> Workload:
    return Workload(
        name,
        "memory",
        Pairs(24, 1024, 256),
        {**OURS, **TRL, **IN_MEMORY},
        tuple(
            Claim(f"peak memory, 152k vocabulary, {title}, {kernel}, against {whom}", theirs, ours=ours, inverse=True)
            for ours, kernel in (("ours", "sdpa"), ("ours_flex", "FlexAttention"))
            for whom, theirs in (("TRL", tuple(TRL)), ("TRL's default", tuple(IN_MEMORY)))
        ),
        **{"shape": QWEN, "batch": 8, "bf16": True, "device": "cuda", "tolerance": 2e-2, "repeats": 1, **changes},
    )


def _people(name: str, people: int, sides: dict[str, Side], claims: tuple[Claim, ...] = ()) -> Workload:
    return Workload(
        name,
        "people",
        Pairs(16, 128, 64, people=people),
        sides,
        claims,
        shape=QWEN,
        batch=2,
        bf16=True,
        dtype="bfloat16",
        rank=8,
        repeats=1 if people > 64 else 2,
        tolerance=2e-2,
        device="cuda",
        warm_people=4,
        flops=True,
    )


FULL_RATE = 1e-6
"""Learning rate where all weights are trained: what half a billion of them stand."""
MANY = "256 people x 16 pairs of 128 + 2 x 64, rank 8"

WORKLOADS = (
    _long("gpu-long", "bf16 over float32 weights", learning_rate=FULL_RATE),
    _long("gpu-long-weights", "weights in bf16", learning_rate=FULL_RATE, dtype="bfloat16", tolerance=5e-2),
    _long("gpu-long-lora", "LoRA of rank 8 on bf16 weights", dtype="bfloat16", rank=8),
    _memory("gpu-memory", "all weights trained", learning_rate=FULL_RATE),
    _memory("gpu-memory-lora", "LoRA of rank 8", dtype="bfloat16", rank=8),
    _people(
        "gpu-people",
        256,
        {**BANK, **PEFT},
        (
            Claim(f"{MANY}, against a loop of PEFT adapters", ("peft",), 10.0),
            Claim("the same, FlexAttention and packed rows", ("peft",), 10.0, ours="ours_flex"),
        ),
    ),
    _people(
        "gpu-people-few",
        16,
        {**BANK, **ONE_BY_ONE, **PEFT, "trl": Side("trl", precomputed=False, attention="sdpa")},
        (
            Claim("16 such people, against a loop of PEFT adapters", ("peft",)),
            Claim("the same against our own loop over people", ("ours_one_by_one",)),
            Claim("the same against one `DPOTrainer` after another", ("trl",)),
        ),
    ),
)


def _point(name: str, pairs: Pairs, sides: dict[str, Side], shape: Shape = QWEN, batch: int = 4) -> Workload:
    return Workload(
        f"gpu-curve-{name}",
        "steps",
        pairs,
        sides,
        (),
        shape=shape,
        batch=batch,
        bf16=True,
        dtype="bfloat16",
        rank=8,
        repeats=5,
        tolerance=5e-2,
        device="cuda",
    )


def _curve(name: str, axis: str, unit: str, points: dict[int, Workload]) -> Curve:
    per = {at: one.pairs.people if one.kind == "people" else one.batch for at, one in points.items()}
    return Curve(f"gpu-curve-{name}", axis, unit, points, per)


CURVES = (
    _curve(
        "prompt",
        "tokens of the prompt (and two responses of 256)",
        "ms a pair",
        {at: _point(f"prompt-{at}", Pairs(28, at, 256), {**OURS, **TRL}) for at in (128, 512, 1024, 2048, 4096)},
    ),
    _curve(
        "branches",
        "responses a row (256 tokens each, to 1024)",
        "ms a row",
        {
            at: _point(
                f"branches-{at}", Pairs(28, 1024, 256, base=True), {n: replace(s, method=m) for n, s in OURS.items()}
            )
            for at, m in ((1, "sft"), (2, "dpo"), (3, "bapo"))
        },
    ),
    _curve(
        "vocabulary",
        "tokens in the vocabulary (512 + 2 x 256 a row)",
        "ms a pair",
        {
            at: _point(f"vocabulary-{at}", Pairs(28, 512, 256), {**OURS, **TRL}, replace(QWEN, vocabulary=at))
            for at in (8192, 32768, 151936)
        },
    ),
    _curve(
        "people",
        "people (16 pairs each)",
        "ms a person",
        {
            at: replace(_people(f"gpu-curve-people-{at}", at, {**BANK, **(PEFT if at <= 16 else {})}), repeats=1)
            for at in (1, 4, 16, 64, 256, 1024)
        },
    ),
)


def shrunk(workload: Workload, device: str) -> Workload:
    """The same code path in seconds: a tiny model, few and short pairs, and no FlexAttention on a CPU."""
    flex = [name for name, side in workload.sides.items() if side.attention == FLEX]
    tiny = replace(QWEN, vocabulary=512, hidden=64, intermediate=96, layers=2, heads=4)
    pairs = workload.pairs
    return replace(
        workload.without(() if device == "cuda" else flex),
        name=f"{workload.name}-shrunk",
        device=device,
        shape=tiny,
        pairs=replace(
            pairs,
            number=4,
            prompt=2 + pairs.prompt // 64,
            response=2 + pairs.response // 64,
            people=min(pairs.people, 3),
        ),
        batch=2,
        repeats=2,
    )


def shrunk_curve(curve: Curve, device: str) -> Curve:
    """A curve's first two points, shrunk."""
    points = {at: shrunk(one, device) for at, one in list(curve.points.items())[:2]}
    return replace(curve, name=f"{curve.name}-shrunk", points=points)
