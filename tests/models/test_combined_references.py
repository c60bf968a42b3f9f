"""Several references as one: the official code's figures, clips, weights, and what is refused."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pluralign.config import ReferenceConfig, TrainConfig
from pluralign.errors import InputError
from pluralign.models.combined_references import Compared, check_reference, combine_rows, uses_given
from pluralign.objectives import sigmoid_loss
from pluralign.resolve import preset, resolve

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "mrpo.json").read_text())


def single(found: list[Compared]) -> list[dict[str, float]]:
    assert all(one.weights == (1.0,) for one in found)
    return [one.logps[0] for one in found]


def near(found: dict[str, float], expected: dict[str, float], bound: float = 1e-4) -> None:
    assert found == pytest.approx(expected, abs=bound)


SEVERAL: list[dict[str, Any]] = [
    {"combine": combine, "weights": weights, "clip": clip, "clip_by": clip_by}
    for combine in ("harmonic", "geometric", "losses")
    for weights in ("equal", "confidence", [0.5, 0.0, 3.0])
    for clip, clip_by in ((0.0, "adaptive"), (0.1, "adaptive"), (0.1, "fixed"))
]


def margin(logps: dict[str, float]) -> float:
    return logps["chosen"] - logps["rejected"]


@pytest.mark.parametrize("settings", SEVERAL, ids=lambda one: "-".join(map(str, one.values())))
def test_a_reference_given_thrice_is_one(settings: dict[str, Any]) -> None:
    said = [{"chosen": -812.25, "rejected": -90.5, "base": -3.0}, {"chosen": -4.5}, {}]
    config = ReferenceConfig(models=["a", "a", "base"], **settings)
    check_reference(config)
    for found, expected in zip(combine_rows(config, [said] * 3), said, strict=True):
        assert sum(found.weights) == pytest.approx(1, abs=1e-9)
        for one in found.logps:
            near(one, expected, 1e-6)
    if settings["combine"] == "losses":
        (found, *_) = combine_rows(config, [said] * 3)
        losses = [sigmoid_loss(torch.tensor(2.0 - margin(one)), beta=0.1) for one in found.logps]
        together = sum(weight * loss for weight, loss in zip(found.weights, losses, strict=True))
        assert float(together) == pytest.approx(float(losses[0]), abs=1e-6)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["name"])
def test_the_official_codes_figures(case: dict[str, Any]) -> None:
    inputs, expected = case["inputs"], case["expected"]
    said = [
        [
            {"chosen": chosen, "rejected": rejected}
            for chosen, rejected in zip(inputs[f"{who}_chosen_logps"], inputs[f"{who}_rejected_logps"], strict=True)
        ]
        for who in ("external", "initial")
    ]
    alpha, eta = inputs["alpha"], inputs["eta"]
    plain = ReferenceConfig(
        models=["external", "base"],
        weights="confidence" if alpha < 0 else [alpha, 1 - alpha],
        clip=abs(eta),
        clip_by="fixed" if eta < 0 else "adaptive",
    )
    variants = {
        "repository": {"swap_weights": True},
        "formula_harmonic": {},
        "formula_geometric": {"combine": "geometric"},
    }
    for name, changes in variants.items():
        config = replace(plain, **changes)
        check_reference(config)
        found = single(combine_rows(config, said))
        for side in ("chosen", "rejected"):
            wanted = expected[name][f"combined_reference_{side}"]
            assert [one[side] for one in found] == pytest.approx(wanted, abs=1e-6)
    for number, one in enumerate(combine_rows(replace(plain, combine="losses"), said)):
        assert one.weights[0] == pytest.approx(expected["alpha_external"][number], abs=1e-6)
        assert one.logps[0] == pytest.approx(
            {side: expected[f"clipped_external_{side}"][number] for side in ("chosen", "rejected")}, abs=1e-6
        )
        assert one.logps[1] == said[1][number]
        own = inputs["policy_chosen_logps"][number] - inputs["policy_rejected_logps"][number]
        losses = [sigmoid_loss(torch.tensor(own - margin(logps)), beta=inputs["beta"]) for logps in one.logps]
        total = sum(weight * float(loss) for weight, loss in zip(one.weights, losses, strict=True))
        assert total == pytest.approx(expected["multi_dpo"]["losses"][number], abs=1e-5)


def test_the_others_are_clipped_and_weighed_by_what_they_said_before() -> None:
    said = [[{"chosen": -50.0, "rejected": -10.0}], [{"chosen": -20.0, "rejected": -30.0}]]
    config = ReferenceConfig(models=["a", "base"], combine="losses", weights="confidence", clip=0.1, clip_by="fixed")
    (found,) = combine_rows(config, said)
    # |-40| against |10|, though after the clip it would be |-22 + 27| against |10|.
    assert found.weights == pytest.approx((0.8, 0.2), abs=1e-6)
    assert found.logps[0] == pytest.approx({"chosen": -22.0, "rejected": -27.0})
    assert found.logps[1] == said[1][0]


def test_a_row_with_one_response_is_clipped_by_half_and_left_to_the_last() -> None:
    said = [[{"chosen": -50.0}], [{"chosen": -20.0}]]
    config = ReferenceConfig(models=["a", "base"], combine="losses", weights="confidence", clip=0.1)
    (found,) = combine_rows(config, said)
    assert found.weights == pytest.approx((0.0, 1.0))
    assert found.logps[0] == pytest.approx({"chosen": -21.0})
    assert combine_rows(config, [[], []]) == []


# ---- the configuration ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ema": 1.0}, r"reference\.ema is 1\.0\. It must be at least 0"),
        ({"ema": -0.1}, r"reference\.ema"),
        ({"ema": 0.9, "models": ["a"]}, r"reference\.ema is 0\.9 and reference\.models names a"),
        ({"clip": -1.0}, r"reference\.clip is -1\.0"),
        ({"clip": math.nan}, r"reference\.clip is nan"),
        ({"models": ["a", " "]}, r"reference\.models is .*an empty name"),
        ({"compute": "forward", "models": ["a", "base"]}, r"reference\.compute is forward and .* names a, base"),
        ({"models": ["a", "base"], "weights": "even"}, r"reference\.weights is 'even'"),
        ({"models": ["a", "base"], "weights": [1.0, -1.0]}, r"reference\.weights is \[1\.0, -1\.0\]"),
        ({"models": ["a", "base"], "weights": [0.0, 0.0]}, r"reference\.weights .* one is above 0"),
        ({"models": ["a", "base"], "weights": [math.nan, 1.0]}, r"reference\.weights"),
        ({"models": ["a", "base"], "weights": [math.inf, 1.0]}, r"reference\.weights"),
        ({"models": ["a", "base"], "weights": [1.0]}, r"reference\.weights has 1 numbers for 2 references"),
        ({"models": ["a", "base"], "weights": []}, r"reference\.weights has 0 numbers for 2 references"),
        ({"models": ["a", "b", "base"], "swap_weights": True}, r"swap_weights is set, with 3 references"),
        ({"models": ["a", "b"], "swap_weights": True, "combine": "geometric"}, r"swap_weights .* combine geometric"),
        ({"swap_weights": True}, r"reference\.swap_weights is True, and reference\.models names none"),
        ({"models": ["a"], "clip": 0.1}, r"reference\.clip is 0\.1, and reference\.models names a alone\. .*base"),
        ({"combine": "losses"}, r"reference\.combine is losses, and reference\.models names none"),
    ],
)
def test_what_contradicts_itself_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_reference(ReferenceConfig(**changes))


@pytest.mark.parametrize(
    ("changes", "given"),
    [
        ({}, False),
        ({"models": ["base"], "compute": "forward"}, False),
        ({"models": ["a"]}, True),
        ({"ema": 0.0}, False),
        ({"ema": 0.99, "compute": "forward"}, False),
        ({"models": ["a", "base"], "weights": [0.0, 2.0], "clip": 5.0, "swap_weights": True}, True),
    ],
)
def test_what_is_taken(changes: dict[str, Any], given: bool) -> None:
    config = ReferenceConfig(**changes)
    check_reference(config)
    assert uses_given(config) is given


def test_the_preset_asks_for_a_second_reference() -> None:
    config = resolve(TrainConfig, {"method": "mrpo"}).reference
    with pytest.raises(InputError, match=r"names none\. Name at least two, the trusted one last"):
        check_reference(config)
    check_reference(replace(config, models=["other", "base"]))
    page = (Path(__file__).parents[2] / "docs" / "methods" / "mrpo.md").read_text(encoding="utf-8")
    (written,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert yaml.safe_load(written) == preset("mrpo")
