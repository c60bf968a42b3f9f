"""The recipes that are compared: choices in the seats of the configuration, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Settings = dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """A method with its settings; the learning rate is apart.

    Attributes:
        name: unique.
        family: recipes of which at most one baseline becomes a finalist; `ours` are those with a base anchor.
        loss, anchor, base_responses: the groups of the configuration.
        general: whether prompts without a pair are added, as many for each pair.
    """

    name: str
    family: str
    loss: Settings
    anchor: Settings = field(default_factory=dict)
    base_responses: Settings = field(default_factory=dict)
    general: float = 0.0

    def settings(self, general_prompts: str) -> Settings:
        """The groups of the configuration."""
        anchor = {name: dict(value) for name, value in self.anchor.items()}
        if self.general:
            anchor["base"] |= {"prompts": general_prompts, "prompts_per_pair": self.general}
        return {"loss": self.loss, "anchor": anchor, "base_responses": self.base_responses}


OURS = "ours"
SFT = {"type": "nll", "length_average": True}
SAMPLED = {"do_sample": True, "temperature": 1.0}


def dpo(beta: float) -> Settings:
    """The sigmoid loss."""
    return {"type": "sigmoid", "beta": beta}


def nll(weight: float) -> Settings:
    """The likelihood of the chosen response."""
    return {"nll": {"weight": weight}}


def base(weight: float, form: str = "hinge", **more: Any) -> Settings:
    """The base anchor, its weight as a multiple of beta."""
    return {"base": {"weight": weight, "form": form, **more}}


def _baselines() -> list[Recipe]:
    found = [Recipe(f"dpo b{beta:g}", "dpo", dpo(beta)) for beta in (0.1, 0.3, 1.0, 3.0, 10.0)]
    found += [Recipe(f"ipo b{beta:g}", "ipo", {"type": "ipo", "beta": beta}) for beta in (0.02, 0.05)]
    found += [Recipe(f"dpop b{b:g} w5", "dpop", dpo(b), {"chosen": {"weight": 5.0}}) for b in (0.1, 1.0)]
    found += [Recipe(f"dpo b{b:g} nll1", "dpo nll", dpo(b), nll(1.0)) for b in (0.1, 1.0, 3.0)]
    # Negative log-likelihood of one sample of the base a prompt: KL(base || policy) on the preferences' prompts, but
    # for a constant. The weights are multiples of beta: 0.3 of 0.1 is 0.03 for every nat.
    found += [Recipe(f"dpo b0.1 kl{weight:g}", "kl", dpo(0.1), base(weight, "nll"), SAMPLED) for weight in (0.3, 1.0)]
    found += [Recipe("dpo b0.1 kl0.3 nll1", "kl", dpo(0.1), base(0.3, "nll") | nll(1.0), SAMPLED)]
    found += [Recipe("dpo b1 kl0.03", "kl", dpo(1.0), base(0.03, "nll"), SAMPLED)]
    return [*found, Recipe("sft", "sft", SFT)]


def _ours() -> list[Recipe]:
    def made(name: str, beta: float, anchor: Settings, responses: Settings | None = None, general: float = 0) -> Recipe:
        return Recipe(name, OURS, dpo(beta), anchor, responses or {}, general)

    found = [made(f"hinge{weight:g}", 0.1, base(weight)) for weight in (0.1, 0.3)]
    return [
        *found,
        made("absolute0.3", 0.1, base(0.3, "absolute")),
        made("squared0.03", 0.1, base(0.03, "squared")),
        made("nll0.3", 0.1, base(0.3, "nll")),
        made("token-hinge3", 0.1, base(3.0, per_token=True)),
        made("hinge0.3 sampled", 0.1, base(0.3), SAMPLED),
        made("hinge0.3 nll1", 0.1, base(0.3) | nll(1.0)),
        made("hinge0.3 nll1 sampled", 0.1, base(0.3) | nll(1.0), SAMPLED),
        made("hinge0.3 general", 0.1, base(0.3), general=0.5),
        made("hinge0.3 nll1 general", 0.1, base(0.3) | nll(1.0), general=0.5),
        made("hinge0.3 nll1 sampled general", 0.1, base(0.3) | nll(1.0), SAMPLED, general=0.5),
        made("b0.3 hinge0.3 nll1 general", 0.3, base(0.3) | nll(1.0), general=0.5),
        made("b1 hinge0.03 nll1", 1.0, base(0.03) | nll(1.0)),
        made("b1 hinge0.03 nll1 sampled", 1.0, base(0.03) | nll(1.0), SAMPLED),
        made("b0.3 hinge0.1 nll1 sampled", 0.3, base(0.1) | nll(1.0), SAMPLED),
        made("b1 hinge0.03 nll1 general", 1.0, base(0.03) | nll(1.0), general=0.5),
        made("b1 hinge0.1 nll1 general", 1.0, base(0.1) | nll(1.0), general=0.5),
        made("b3 hinge0.01 nll1 general", 3.0, base(0.01) | nll(1.0), general=0.5),
        made("b1 hinge0.03 nll1 sampled general", 1.0, base(0.03) | nll(1.0), SAMPLED, general=0.5),
        made("b0.3 hinge0.1 nll1 sampled general", 0.3, base(0.1) | nll(1.0), SAMPLED, general=0.5),
        made("b0.3 hinge0.3 nll1 sampled general", 0.3, base(0.3) | nll(1.0), SAMPLED, general=0.5),
        made("b0.3 kl0.1 nll1 general", 0.3, base(0.1, "nll") | nll(1.0), SAMPLED, general=0.5),
        Recipe("sft hinge0.03 sampled", OURS, SFT, base(0.3), SAMPLED),
        Recipe("sft hinge0.03 sampled general", OURS, SFT, base(0.3), SAMPLED, general=0.5),
        Recipe("sft hinge0.01 sampled", OURS, SFT, base(0.1), SAMPLED),
        Recipe("sft hinge0.01 sampled general", OURS, SFT, base(0.1), SAMPLED, general=0.5),
        made("hinge0.3 nll3 sampled", 0.1, base(0.3) | nll(3.0), SAMPLED),
        made("hinge0.3 nll3 sampled general", 0.1, base(0.3) | nll(3.0), SAMPLED, general=0.5),
        made("b1 hinge0.1 nll10 sampled", 1.0, base(0.1) | nll(10.0), SAMPLED),
        made("b1 hinge0.1 nll10 sampled general", 1.0, base(0.1) | nll(10.0), SAMPLED, general=0.5),
    ]


RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (*_baselines(), *_ours())}
LEARNING_RATES = (5e-4, 1e-3, 2e-3)
"""The trials of every recipe."""
MIXED = (
    "dpo b0.1",
    "dpo b0.3",
    "dpo b1",
    "dpo b3",
    "dpo b0.1 nll1",
    "dpo b0.1 kl0.3 nll1",
    "sft",
    "hinge0.3 nll1 sampled",
    "hinge0.3 nll1 sampled general",
    "b0.3 hinge0.1 nll1 sampled",
    "b0.3 hinge0.1 nll1 sampled general",
    "b1 hinge0.03 nll1 sampled",
    "b1 hinge0.03 nll1 sampled general",
    "sft hinge0.03 sampled",
    "sft hinge0.03 sampled general",
    "sft hinge0.01 sampled",
    "sft hinge0.01 sampled general",
    "hinge0.3 nll3 sampled",
    "hinge0.3 nll3 sampled general",
    "b1 hinge0.1 nll10 sampled",
    "b1 hinge0.1 nll10 sampled general",
)
"""Recipes that are also tried on people whose labels err or whose taste changes with the topic."""
EARLIER = ("b0.3 kl0.1 nll1 general", "b1 hinge0.03 nll1 sampled", "b1 hinge0.03 nll1 sampled general")
"""Ours that were reported before people whose labels err were tried, the preset's settings of then among them: they
stay beside the finalists, and are none."""
