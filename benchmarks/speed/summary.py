"""From the sides' figures to ratios with their spread, and to the table of docs/speed.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from workloads import Claim, Workload

RESAMPLES = 2000


def claims(workload: Workload, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The ratios that are claimed from a workload."""
    return [_claim(claim, found) for claim in workload.claims]


def _claim(claim: Claim, found: Mapping[str, Any]) -> dict[str, Any]:
    """The quickest of their sides decides; ratios are of neighbours in time."""
    theirs = min(claim.theirs, key=lambda name: float(np.median(values(found[name]))))
    ours, others = np.array(values(found[claim.ours])), np.array(values(found[theirs]))
    ratios = ours / others if claim.inverse else others / ours
    said = {
        "title": claim.title,
        "against": theirs,
        "ours": round(float(np.median(ours)), 4),
        "theirs": round(float(np.median(others)), 4),
        "ratio": round(float(np.median(ratios)), 3),
        "interval": _interval(ratios),
        "range": [round(float(ratios.min()), 3), round(float(ratios.max()), 3)],
        **_by_cpu(claim, found, theirs),
        "repeats": len(ratios),
        "aim": claim.least,
        "inverse": claim.inverse,
        "unit": "MiB above the loaded model" if "peak" in found[claim.ours] else "s",
    }
    if "peak" in found[claim.ours]:
        absolute = [float(np.median(found[name]["peak"])) for name in (claim.ours, theirs)]
        said |= {"ours_absolute": absolute[0], "theirs_absolute": absolute[1]}
    return said


def _by_cpu(claim: Claim, found: Mapping[str, Any], theirs: str) -> dict[str, float]:
    """The same ratio in CPU time, which other programs on the machine touch less."""
    if "cpu" not in found[claim.ours]:
        return {}
    ours, others = np.array(found[claim.ours]["cpu"]), np.array(found[theirs]["cpu"])
    ratios = ours / others if claim.inverse else others / ours
    return {"ratio_cpu": round(float(np.median(ratios)), 3)}


def values(side: Mapping[str, Any]) -> list[float]:
    """What counts of a side: seconds by the clock, or memory above the loaded model."""
    if "peak" in side:
        return [peak - loaded for peak, loaded in zip(side["peak"], side["loaded"], strict=True)]
    return list(side["wall"])


def _interval(ratios: np.ndarray) -> list[float]:
    """95% bootstrap interval of the median."""
    generator = np.random.default_rng(0)
    medians = np.median(generator.choice(ratios, (RESAMPLES, len(ratios))), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return [round(float(low), 3), round(float(high), 3)]


def utilisation(found: Mapping[str, Any], device: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Side -> what it does of what the device reaches in matrix products: useful operations, and those it runs."""
    reached = device["matmul_flops_per_second"]
    return {
        name: {
            kind: round(count / float(np.median(side["wall"])) / reached, 4) for kind, count in side["flops"].items()
        }
        for name, side in found.items()
    }


def markdown(results: Mapping[str, Any]) -> str:
    """The tables of the page: a line a claim, and on a GPU a line a side."""
    rows = [["workload", "ours", "theirs", "ratio", "95%", "CPU time", "aim"], ["---"] * 7]
    for workload in results["workloads"].values():
        rows += [_row(claim) for claim in workload["claims"]]
    sides = [
        _side(name, side, workload)
        for name, workload in results["workloads"].items()
        for side in workload.get("utilisation", ())
    ]
    head = [
        "workload",
        "side",
        "time",
        "useful FLOPs",
        "FLOPs run",
        "utilisation, useful",
        "run",
        "of TFLOP/s",
        "copy, TB/s",
    ]
    return _table(rows) + ("\n" + _table([head, ["---"] * len(head), *sides]) if sides else "")


def _table(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def _side(name: str, side: str, workload: Mapping[str, Any]) -> Sequence[str]:
    found, used, device = workload["sides"][side], workload["utilisation"][side], workload["machine"]["device"]
    return [
        name,
        side,
        f"{float(np.median(found['wall'])):.3g} s",
        *(f"{found['flops'][kind]:.3g}" for kind in ("useful", "run")),
        *(f"{100 * used[kind]:.1f}%" for kind in ("useful", "run")),
        f"{device['matmul_flops_per_second'] / 1e12:.4g}",
        f"{device['copy_bytes_per_second'] / 1e12:.3g}",
    ]


def _row(claim: Mapping[str, Any]) -> Sequence[str]:
    sign = "at most" if claim["inverse"] else "at least"
    aim = f"{sign} {claim['aim']:g}" if claim["aim"] is not None else ""
    memory = claim["unit"].startswith("MiB")
    shown = [f"{claim[key]:.0f} MiB" if memory else f"{claim[key]:.3g} s" for key in ("ours", "theirs")]
    low, high = claim["interval"]
    cpu = f"{claim['ratio_cpu']:.2f}x" if "ratio_cpu" in claim else ""
    return [claim["title"], *shown, f"{claim['ratio']:.2f}x", f"[{low:.2f}, {high:.2f}]", cpu, aim]
