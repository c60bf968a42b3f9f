"""A plan: what it counts is what the run then does, and it leaves no trace but in the cache."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pluralign
from pluralign import cli
from pluralign.errors import InputError
from pluralign.training import train
from pluralign.training.bank import forwards as bank_forwards
from pluralign.training import trainer as trainer_module
from pluralign.training.planning.costs import Cost, Stopwatch, Work, fitted
from pluralign.training.planning.counts import begins_of


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def bytes_in(folder):
    return sum(map(len, files(folder).values()))


@pytest.fixture
def tokens(monkeypatch):
    """Tokens that go through a policy, padding included: of training steps, and of validations."""
    import torch

    seen = {"training_tokens": 0, "validation_tokens": 0}
    for module in (bank_forwards, trainer_module):
        own = module.branch_logps

        def counted(model, batch, own=own):
            seen["training_tokens" if torch.is_grad_enabled() else "validation_tokens"] += batch.input_ids.numel()
            return own(model, batch)

        monkeypatch.setattr(module, "branch_logps", counted)
    return seen


def uneven(make_rows):
    return [row for number, user in enumerate("abcdefg") for row in make_rows([user], pairs=3 + 4 * number)]


@pytest.mark.parametrize(
    "changes",
    [
        {"bank": {"slots": 3, "batch_tokens": 200}},
        {"bank": {"slots": 2}, "training": {"gradient_accumulation_steps": 2, "max_steps": 7}},
        {"training": {"eval_strategy": "steps", "eval_steps": 3, "logging_steps": 4, "save_strategy": "no"}},
        {"engine": "trainer", "training": {"num_train_epochs": 1.5}},
        {"parameters": {"per": "none"}},
        {"parameters": {"per": "none", "kind": "full"}, "training": {"max_steps": 6}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_counts_and_disk_are_those_of_the_run(changes, make_rows, make_config, tokens, metrics):
    config = make_config(uneven(make_rows), **changes)
    plan = pluralign.plan(config)
    tokens.update(training_tokens=0, validation_tokens=0)
    cache = config.cache_dir
    cached = bytes_in(_path(cache))
    result = train(config)
    assert plan.people == {"new": len(result.adapters), "updated": 0, "left": 0, "skipped": 0}
    assert {name: plan.work[name] for name in tokens} == tokens
    lines = metrics(config.output_dir)
    assert plan.work["steps"] == sum(max(line["step"] for line in lines if line["user"] == user) for user in result.adapters)
    left = bytes_in(result.output_dir) + bytes_in(_path(cache)) - cached
    print(plan.disk, {str(k): len(v) for k, v in files(result.output_dir).items()})
    assert plan.disk["total"] == pytest.approx(left, rel=0.2)
    assert plan.disk["metrics"] == pytest.approx((result.output_dir / "metrics.jsonl").stat().st_size, rel=0.1)


def _path(place):
    from pathlib import Path

    return Path(place)
