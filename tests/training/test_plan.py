"""A plan: what it counts is what the run then does, and it leaves no trace but in the cache."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pluralign
from pluralign import cli
from pluralign.config import BaseAnchorConfig, GroupWeightingConfig
from pluralign.errors import InputError
from pluralign.training import train
from pluralign.training import trainer as trainer_module
from pluralign.training.bank import forwards as bank_forwards
from pluralign.training.bank import loop
from pluralign.training.bank.snapshots import Snapshots
from pluralign.training.planning.costs import Cost, Stopwatch, Work, fitted
from pluralign.training.planning.counts import begins_of
from pluralign.training.shares import Share


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def bytes_in(folder):
    return sum(map(len, files(folder).values()))


@pytest.fixture
def tokens(monkeypatch):
    """Tokens that go through a policy, padding included: of training steps, and of validations."""
    seen = {"training_tokens": 0, "validation_tokens": 0}
    for module in (bank_forwards, trainer_module):
        own = module.branch_logps

        def counted(model, batch, own=own):
            seen["training_tokens" if torch.is_grad_enabled() else "validation_tokens"] += batch.input_ids.numel()
            return own(model, batch)

        monkeypatch.setattr(module, "branch_logps", counted)
    return seen


def uneven(make_rows):
    groups = {"group": lambda number: "xy"[number % 2]}
    return [row for number, user in enumerate("abcdefg") for row in make_rows([user], pairs=3 + 4 * number, **groups)]


@pytest.mark.parametrize(
    "changes",
    [
        {"bank": {"slots": 3, "batch_tokens": 200}},
        {"bank": {"slots": 2}, "training": {"gradient_accumulation_steps": 2, "max_steps": 7}},
        {"training": {"eval_strategy": "steps", "eval_steps": 3, "logging_steps": 4, "save_strategy": "no"}},
        {
            "weighting": {"groups": GroupWeightingConfig(by="worst", update="batch")},
            "training": {"gradient_accumulation_steps": 2},
        },
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
    cached = bytes_in(Path(config.cache_dir))
    result = train(config)
    assert plan.people == {"new": len(result.adapters), "updated": 0, "left": 0, "skipped": 0}
    assert {name: plan.work[name] for name in tokens} == tokens
    lines = metrics(config.output_dir)
    assert plan.work["steps"] == sum(
        max(line["step"] for line in lines if line["user"] == user) for user in result.adapters
    )
    left = bytes_in(result.output_dir) + bytes_in(Path(config.cache_dir)) - cached
    assert plan.disk["total"] == pytest.approx(left, rel=0.2)
    assert plan.disk["metrics"] == pytest.approx((result.output_dir / "metrics.jsonl").stat().st_size, rel=0.1)


@pytest.mark.parametrize("sampled", [False, True])
def test_what_the_sample_has_computed_is_not_computed_again(sampled, make_rows, make_config, monkeypatch):
    # Sampled base responses are none of the answers that the evaluation asks for: both are counted, and made once.
    config = make_config(make_rows("ab"), method="bapo", anchor={"base": BaseAnchorConfig(weight=0.25)})
    config.base_responses.do_sample = sampled
    # Few rows: the sample is all there is.
    first = pluralign.plan(config)
    again = pluralign.plan(config)
    for plan in (first, again):
        assert (plan.work["base_responses"], plan.work["reference_tokens"], plan.disk["cache"]) == (0, 0, 0)
    # Sampled responses differ in length, which only the second plan knows of each.
    assert sampled or again.work == first.work

    def refused(_, asked, *more, **__):
        assert not (more[0] if more and isinstance(more[0], list) else asked), "computed again"
        return iter(())

    monkeypatch.setattr("pluralign.models.references.iterate_generated", refused)
    monkeypatch.setattr("pluralign.models.references.iterate_scores", refused)
    train(config)


def test_nothing_is_left_but_in_the_cache(make_rows, make_config, tmp_path):
    config = make_config(make_rows("ab"))
    there = files(tmp_path)
    plan = pluralign.plan(config)
    new = files(tmp_path).keys() - there.keys()
    assert new and {path.parts[0] for path in new} == {"cache"}
    assert not list(tmp_path.glob(".plan-*")) and not Path(config.output_dir).exists()
    assert plan.as_dict()["seconds"]["total"] == pytest.approx(
        sum(seconds for name, seconds in plan.seconds.items() if name != "total"), abs=0.01
    )


def test_a_population_that_grows(make_rows, make_config):
    config = make_config(make_rows("ab"))
    train(config)
    before = files(Path(config.output_dir))
    done = pluralign.plan(config)
    assert done.people == {"new": 0, "updated": 0, "left": 2, "skipped": 0}
    assert (done.work["steps"], done.disk["total"]) == (0, 0) and done.seconds["total"] == done.seconds["loading"]
    grown = make_config(make_rows("abc"), update="b")
    plan = pluralign.plan(grown)
    assert plan.people == {"new": 1, "updated": 1, "left": 1, "skipped": 0}
    assert files(Path(config.output_dir)) == before
    assert sorted(train(grown).adapters) == ["a", "b", "c"]


def test_a_killed_run_has_fewer_steps_left(make_rows, make_config, monkeypatch):
    config = make_config(make_rows("ab"), training={"save_strategy": "steps", "save_steps": 1})
    whole = pluralign.plan(config).work["steps"]
    monkeypatch.setattr(loop.Snapshots, "affordable", property(lambda _: True))
    report, steps = loop.BankPopulation._report, []

    def killed(self, learners, logs):
        steps.append(1)
        if len(steps) == 8:
            raise KeyboardInterrupt
        report(self, learners, logs)

    with monkeypatch.context() as during, pytest.raises(KeyboardInterrupt):
        during.setattr(loop.BankPopulation, "_report", killed)
        train(config)
    snapshot = Snapshots(Path(config.output_dir) / "state", Share()).read()[0]
    made = sum(snapshot.steps.values())
    assert 0 < made < whole and pluralign.plan(config).work["steps"] == whole - made


def test_the_plan_is_no_difference_of_the_run(make_rows, make_config):
    config = make_config(make_rows("ab"))
    with pytest.raises(InputError, match="plan is set"):
        train(replace(config, plan=True))
    train(config)
    assert pluralign.plan(replace(config, plan=True)).people["left"] == 2
    assert "plan: false" in (Path(config.output_dir) / "config.yaml").read_text()


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"path": "absent.jsonl"}},
        {"training": {"learning_rate": -1.0}},
        {"evaluation": {"probes": "absent.jsonl"}},
        {"parameters": {"kind": "full"}},
        {"parameters": {"target_modules": "absent"}},
        {"bank": {"slots": 2}},
        {"update": "absent"},
        {"model": "absent"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_bad_input_is_answered_as_by_train(changes, make_rows, make_config, monkeypatch):
    if "bank" in changes:
        monkeypatch.setattr("pluralign.training.bank.capacity.free_memory", lambda _: 1000)
    config = make_config(make_rows("ab"), **changes)
    with pytest.raises(InputError) as planned:
        pluralign.plan(config)
    with pytest.raises(InputError) as trained:
        train(config)
    assert str(planned.value) == str(trained.value)


def test_the_command_prints_a_table(make_rows, make_config, capsys):
    config = make_config(make_rows("ab"))
    arguments = ["--model", config.model, "--method", "dpo", "--data", config.data.path, "--training.max_steps", "4"]
    assert cli.main(["train", *arguments, "--output_dir", config.output_dir, "--plan"]) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("new", "training tokens", "total", "MiB", "free on cpu"))
    assert not Path(config.output_dir).exists()


def test_what_does_not_suffice_is_said(make_rows, make_config, monkeypatch):
    monkeypatch.setattr("pluralign.training.planning.estimate.shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    monkeypatch.setattr("pluralign.training.planning.memory.Levels.free", property(lambda _: 1000))
    warnings = pluralign.plan(make_config(make_rows("ab"))).warnings
    assert len(warnings) == 2 and "memory does not suffice" in warnings[0] and "disk does not suffice" in warnings[1]


# ---- costs and counts ----


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.integers(1, 5))
def test_people_take_slots_as_they_become_free(steps, slots):
    begins, end = begins_of(steps, slots)
    assert begins == sorted(begins) and end == max(map(sum, zip(begins, steps, strict=True)))
    for now in range(end):
        active = sum(begin <= now < begin + own for begin, own in zip(begins, steps, strict=True))
        waiting = any(begin > now for begin in begins)
        assert active == slots or not waiting


def test_a_cost_is_what_the_measured_work_says():
    true = Cost(piece=0.5, unit=0.01)
    work = [Work(pieces, size) for pieces, size in ((1, 100), (1, 900), (3, 1200), (2, 50))]
    found = fitted([(one, true.of(one)) for one in work])
    assert found.of(Work(10, 5000)) == pytest.approx(true.of(Work(10, 5000)))
    alike = fitted([(Work(1, 100), 1.0), (Work(1, 110), 1.2), (Work(2, 205), 2.0)])
    assert alike == Cost(unit=4.2 / 415) and fitted([]) == Cost()


def test_a_part_does_not_have_the_time_of_the_parts_in_it(monkeypatch):
    clock = iter([0.0, 1.0, 4.0, 10.0])
    monkeypatch.setattr("pluralign.training.planning.costs.time.perf_counter", lambda: next(clock))
    watch = Stopwatch()
    with watch.part("outer"), watch.part("inner", Work(1, 7)):
        pass
    assert watch.seconds == {"inner": 3.0, "outer": 7.0} and watch.measured["inner"] == [(Work(1, 7), 3.0)]
