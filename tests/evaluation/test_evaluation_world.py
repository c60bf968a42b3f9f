"""The embedded default: what the evaluation says of the base itself, whose truth is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from pluralign.config import EvaluationConfig, GenerationConfig, ModelConfig, ParametersConfig
from pluralign.evaluation import evaluate_people
from pluralign.models import Encoder, context_length, load_base
from pluralign.models.adapters import detach_adapter, new_adapter, save_adapter
from pluralign.models.anchoring import anchor_preferences
from pluralign.models.cache import Cache
from pluralign.preferences import Preference
from pluralign.world import World


def test_the_base_knows_its_world_and_speaks_plainly(tmp_path: Path) -> None:
    world, base = World(0), load_base(ModelConfig(model="nano", device="cpu"))
    names = ("user", "group", "prompt", "chosen", "rejected")
    rows = [Preference(**{name: row[name] for name in names}) for row in world.preferences(6, pairs_per_user=12)]
    encoder = Encoder(
        base.tokenizer, max_prompt_length=128, max_response_length=128, context_length=context_length(base.model)
    )
    cache, generation = Cache(tmp_path / "cache"), GenerationConfig()
    held_out = anchor_preferences(
        base, rows, encoder=encoder, settings=generation, cache=cache, layout="shared", branches=("chosen", "rejected")
    )
    policy = new_adapter(base, ParametersConfig(), seed=0)
    save_adapter(policy, tmp_path / "fresh", base=base, user="anybody")
    detach_adapter(policy)
    users = list(dict.fromkeys(row.user for row in rows if row.user))
    found = evaluate_people(
        base,
        dict.fromkeys(users, tmp_path / "fresh"),
        held_out,
        per="user",
        settings=EvaluationConfig(probes="world", max_probes=150, cross_table=0),
        generation=generation,
        encoder=encoder,
        cache=cache,
        layout="shared",
    )
    assert found.base["world"] == 0
    for user, person in found.people.items():
        assert person["retention"]["base_accuracy"] > 0.9
        assert person["retention"]["kept"] == 1.0
        assert person["retention"]["kept_own"] == 1.0
        assert person["behaviour"]["person"]["right"] > 0.9
        assert person["behaviour"]["person"]["degenerate"] < 0.1
        assert person["behaviour"]["person"]["style"] == pytest.approx(float(user.startswith("plain")), abs=0.1)
        topics = person["retention"]["topics"]
        assert sum(part["n"] for part in topics.values()) == 150
