"""Together equals alone: what the bank gives a person is what that person would have got with the Trainer alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pluralign.config import AnchorConfig, BaseAnchorConfig
from pluralign.errors import InputError
from pluralign.objectives import sigmoid_loss
from pluralign.training import train
from pluralign.training.bank.forwards import Forwards
from pluralign.training.bank.schedule import Schedule
from pluralign.training.bank.snapshots import Snapshots

PEOPLE = {"a": 12, "b.c": 5, "": 0, "é": 30, "d": 3, "e": 17}
TRAINING = {
    "num_train_epochs": 3,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "max_grad_norm": 0.05,
    "weight_decay": 0.1,
    "warmup_steps": 2,
    "lr_scheduler_type": "cosine",
    "learning_rate": 5e-3,
    "logging_steps": 2,
}


def uneven(make_rows: Any, **columns: Any) -> list[dict[str, Any]]:
    """People with unequal numbers of pairs."""
    return [row for user, pairs in PEOPLE.items() if user for row in make_rows([user], pairs, **columns)]


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Norm of the difference, relative to the norm."""
    assert one.keys() == other.keys()
    flat = [torch.cat([tensors[name].double().flatten() for name in one]) for tensors in (one, other)]
    return float((flat[0] - flat[1]).norm() / flat[1].norm())


@pytest.fixture
def compare(weights: Any) -> Any:
    def worst(one: Any, other: Any) -> float:
        """The largest difference between anybody's two adapters."""
        return max(difference(weights(one.adapters[user]), weights(place)) for user, place in other.adapters.items())

    return worst


@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-10), ("float32", 1e-5)])
@pytest.mark.parametrize("method", ["dpo", "bapo"])
def test_the_bank_equals_the_trainer(
    dtype: str, bound: float, method: str, make_rows: Any, make_config: Any, compare: Any, metrics: Any
) -> None:
    """Adapters, and the lines of metrics: accumulation, clipping, decay, a schedule, uneven people, few slots."""
    table = uneven(make_rows, importance=lambda number: 0.5 + number % 3)
    changes = {"training": TRAINING, "dtype": dtype, "weighting": {"column": "importance"}}
    if method == "bapo":
        changes["anchor"] = AnchorConfig(base=BaseAnchorConfig(weight=0.3, form="absolute"))
    alone = train(make_config(table, "alone", engine="trainer", **changes))
    together = train(make_config(table, "together", engine="bank", bank={"slots": 3, "batch_tokens": 300}, **changes))
    assert list(together.adapters) == list(alone.adapters) == [user for user in PEOPLE if user]
    assert compare(together, alone) < bound
    for user in alone.adapters:
        lines = [metrics(run.output_dir, user) for run in (alone, together)]
        for one, other in zip(*lines, strict=True):
            assert list(one) == list(other)
            for name, value in one.items():
                # Whether a fresh adapter's margin counts as won is rounding.
                if isinstance(value, float) and not name.endswith("accuracies"):
                    assert other[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name


@given(order=st.permutations(["a", "b.c", "é", "d", "e"]), slots=st.integers(1, 6), tokens=st.integers(1, 2000))
@settings(max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_order_and_any_number_of_slots(
    order: list[str],
    slots: int,
    tokens: int,
    make_rows: Any,
    make_config: Any,
    compare: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    changes = {"training": TRAINING, "dtype": "float64", "parameters": {"dropout": 0.2}, "engine": "bank"}
    root = tmp_path_factory.mktemp("runs")
    table = [row for user in order for row in make_rows([user], PEOPLE[user])]
    bank = {"slots": slots, "batch_tokens": tokens}
    together = train(make_config(table, "all", **changes, bank=bank, output_dir=str(root / "all")))
    for user in order[:2]:
        own = make_config(make_rows([user], PEOPLE[user]), "one", **changes, output_dir=str(root / f"one {user}"))
        assert compare(together, train(own)) < 1e-10


def test_bfloat16_differs_as_rounding_does(make_rows: Any, make_config: Any, weights: Any) -> None:
    """Alone and together differ by no more than twice what another order of rows does, neither by more than bf16."""
    table = make_rows(["a", "b"], 16) + make_rows(["c"], 7)
    training = {"bf16": True, "learning_rate": 5e-3, "extra_arguments": {"train_sampling_strategy": "sequential"}}
    common = {"training": training, "data": {"validation": 0.0}}
    # Within each batch of 4 the other way round.
    turned = [table[start + 3 - number] for start in range(0, 32, 4) for number in range(4)] + table[32:]

    def apart(one: Any, other: Any) -> float:
        squares = [difference(weights(one.adapters[user]), weights(other.adapters[user])) ** 2 for user in one.adapters]
        return float(sum(squares) / len(squares)) ** 0.5

    one_by_one = train(make_config(table, "turns", engine="trainer", **common))
    noise = apart(one_by_one, train(make_config(turned, "turned", engine="trainer", **common)))
    together = train(make_config(table, "together", engine="bank", **common))
    alone = train(make_config(table[:16], "alone", engine="bank", **common))
    assert noise > 0
    assert apart(alone, together) <= 2 * noise
    exact = train(
        make_config(table, "exact", engine="trainer", data={"validation": 0.0}, training={**training, "bf16": False})
    )
    assert 0 < apart(together, exact) < 1.5 * apart(one_by_one, exact)


@pytest.mark.parametrize(
    "changes",
    [
        {"reference": {"compute": "forward"}},
        {"training": {"max_steps": 5}},
        {
            "training": {
                "num_train_epochs": 1.4,
                "per_device_train_batch_size": 3,
                "eval_strategy": "steps",
                "eval_steps": 2,
            }
        },
        {"training": {"extra_arguments": {"eval_on_start": True, "logging_first_step": True, "adam_beta2": 0.9}}},
        {"training": {"extra_arguments": {"train_sampling_strategy": "sequential", "optim": "sgd"}}},
        {"training": {"gradient_checkpointing": True}},
        {
            "training": {
                "num_train_epochs": 8,
                "load_best_model_at_end": True,
                "early_stopping_patience": 1,
                "learning_rate": 0.05,
            }
        },
        {
            "training": {
                "load_best_model_at_end": True,
                "metric_for_best_model": "rewards/margins",
                "num_train_epochs": 4,
            }
        },
        {"parameters": {"target_modules": ["q_proj", "down_proj"], "rank": 2}},
        {"parameters": {"per": "group"}},
    ],
    ids=str,
)
def test_whatever_is_configured(changes: Any, make_rows: Any, make_config: Any, compare: Any, metrics: Any) -> None:
    table = [{**row, "group": (row["user"] in "ab.c" and "x y") or "z"} for row in uneven(make_rows)]
    changes = {**changes, "dtype": "float64"}
    alone = train(make_config(table, "alone", engine="trainer", **changes))
    together = train(make_config(table, "together", engine="bank", bank={"slots": 2}, **changes))
    assert compare(together, alone) < 1e-10
    for user in alone.adapters:
        steps = [[line["step"] for line in metrics(run.output_dir, user)] for run in (alone, together)]
        assert steps[0] == steps[1]


def test_rows_of_separate_responses(
    make_rows: Any, make_config: Any, compare: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that cannot keep responses apart in a row has several rows an example, all of one person."""
    monkeypatch.setattr("pluralign.training.worker.choose_layout", lambda *_: "separate")
    changes = {"anchor": AnchorConfig(base=BaseAnchorConfig(weight=0.3)), "dtype": "float64"}
    alone = train(make_config(uneven(make_rows), "alone", engine="trainer", **changes))
    together = train(make_config(uneven(make_rows), "together", engine="bank", bank={"slots": 2}, **changes))
    assert compare(together, alone) < 1e-10
    changes["parameters"] = {"dropout": 0.3}
    dropped = train(make_config(uneven(make_rows), "dropped", engine="bank", **changes))
    one = train(make_config(make_rows(["é"], 30), "one", engine="bank", **changes))
    assert compare(dropped, one) < 1e-10


@pytest.mark.parametrize(
    "changes", [{}, {"reference": {"compute": "forward"}}, {"parameters": {"dropout": 0.3}}], ids=str
)
def test_rows_one_after_another(
    changes: Any, make_rows: Any, make_config: Any, compare: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they are packed for FlexAttention, here with dense masks: several people's blocks in one row."""
    kept = Forwards.__init__

    def packing(self: Any, *args: Any, **options: Any) -> None:
        kept(self, *args, **options)
        self.packs = True

    changes = {**changes, "dtype": "float64", "engine": "bank"}
    filled = train(make_config(uneven(make_rows), "filled", **changes))
    monkeypatch.setattr(Forwards, "__init__", packing)
    packed = train(make_config(uneven(make_rows), "packed", bank={"batch_tokens": 1024}, **changes))
    assert compare(packed, filled) < 1e-10


def test_step_0_is_exact_where_the_reference_is_in_the_forward(make_rows: Any, make_config: Any, metrics: Any) -> None:
    changes = {"reference": {"compute": "forward"}, "engine": "bank", "training": {"max_steps": 1}}
    result = train(make_config(uneven(make_rows), **changes))
    for user in result.adapters:
        first = metrics(result.output_dir, user)[0]
        assert first["rewards/margins"] == 0
        assert first["loss"] == pytest.approx(0.6931471805599453, abs=1e-7)


# ---- losses of one's own ----


def _coupled(margin: Tensor, *, beta: float, columns: Any, **_: Any) -> Tensor:
    """Compares each example with the batch's mean, and insists on seeing one person's rows only."""
    assert len(set(columns["user"])) == 1
    return sigmoid_loss(margin - 0.5 * margin.mean(), beta=beta)


def _broken(margin: Tensor, *, beta: float, columns: Any, **_: Any) -> Tensor:
    """Breaks one person's second step."""
    bad = torch.tensor(
        [user == "é" and number >= 6 for user, number in zip(columns["user"], columns["number"], strict=True)]
    )
    return sigmoid_loss(margin, beta=beta) / torch.where(bad, 0.0, 1.0)


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def test_a_loss_that_couples_examples_sees_one_person(
    losses: None, make_rows: Any, make_config: Any, compare: Any
) -> None:
    changes = {
        "loss": {"type": "test_bank_training:_coupled"},
        "training": {"gradient_accumulation_steps": 2},
        "dtype": "float64",
    }
    alone = train(make_config(uneven(make_rows), "alone", engine="trainer", **changes))
    bank = {"slots": 4, "batch_tokens": 100}
    together = train(make_config(uneven(make_rows), "together", engine="bank", bank=bank, **changes))
    assert compare(together, alone) < 1e-10


def test_a_broken_person_stops_alone(losses: None, make_rows: Any, make_config: Any, compare: Any) -> None:
    """The last good state is kept and reported; the others do not notice."""
    table = uneven(make_rows, number=lambda number: number)
    changes = {
        "loss": {"type": "test_bank_training:_broken"},
        "dtype": "float64",
        "engine": "bank",
        "training": {"extra_arguments": {"train_sampling_strategy": "sequential"}},
        "data": {"validation": 0.0},
    }
    result = train(make_config(table, **changes))
    assert list(result.skipped) == ["é"]
    assert result.skipped["é"] == ("the loss is not finite (NaN or infinite) at step 2; what is kept is from step 1")
    info = json.loads((result.adapters["é"] / "pluralign.json").read_text())
    assert info["note"] == result.skipped["é"]
    others = [row for row in table if row["user"] != "é"]
    without = train(make_config(others, "without", **changes))
    assert not without.skipped
    assert compare(result, without) < 1e-10
    only_good = [row for row in table if row["user"] == "é"][:4]
    changes["training"] = {**changes["training"], "max_steps": 1, "lr_scheduler_type": "constant"}
    first = train(make_config([{**row, "number": 0} for row in only_good], "first", **changes))
    assert first.adapters.keys() == {"é"}


@pytest.mark.parametrize("at_once", [True, False])
def test_validation_without_the_metric_that_decides(at_once: bool, make_rows: Any, make_config: Any) -> None:
    """Given up before the first step or after an epoch, by everybody in the slots at once."""
    training = {
        "metric_for_best_model": "rewards/victory",
        "load_best_model_at_end": True,
        "extra_arguments": {"eval_on_start": at_once},
    }
    table = uneven(make_rows) + make_rows(["f"], 1)
    result = train(make_config(table, engine="bank", bank={"slots": 2}, training=training))
    # Whoever has a single pair holds nothing out.
    assert list(result.adapters) == ["f"]
    assert list(result.skipped) == [user for user in PEOPLE if user]
    assert all("gives no 'rewards/victory'" in reason for reason in result.skipped.values())


def test_the_adapter_before_the_first_step_is_never_the_best(
    make_rows: Any, make_config: Any, compare: Any, tmp_path: Path
) -> None:
    """With held-out pairs that are the training's the other way round, every step makes validation worse."""
    table = make_rows(["a", "b"], 8)
    turned = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in table]
    held_out = tmp_path / "turned.jsonl"
    held_out.write_text("".join(json.dumps(row) + "\n" for row in turned))
    extra = {"eval_on_start": True}
    training = {"load_best_model_at_end": True, "learning_rate": 0.05, "extra_arguments": extra}
    changes = {"data": {"validation": str(held_out)}, "dtype": "float64", "training": training}
    alone = train(make_config(table, "alone", engine="trainer", **changes))
    together = train(make_config(table, "together", engine="bank", **changes))
    assert compare(together, alone) < 1e-10


@pytest.mark.parametrize("earlier", [False, True])
def test_a_resumed_run_anchors_the_same_waves(
    earlier: bool, make_rows: Any, make_config: Any, weights: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between two waves, with a cache of its own: references of the rest come from the batches they would.

    A snapshot of a version that kept nothing of groups is as good.
    """
    monkeypatch.setattr("pluralign.training.worker.WAVE_ROWS", 16)
    monkeypatch.setattr(Snapshots, "affordable", True)
    common = {"engine": "bank", "bank": {"slots": 2}, "training": {"save_strategy": "epoch"}}
    undisturbed = train(make_config(uneven(make_rows), "undisturbed", cache_dir=str(tmp_path / "one"), **common))
    kept, written = Snapshots.write, []

    def stop_at_the_third(self: Any, make: Any) -> None:
        kept(self, make)
        written.append(make)
        if len(written) == 3:
            raise KeyboardInterrupt

    config = make_config(uneven(make_rows), "stopped", cache_dir=str(tmp_path / "other"), **common)
    with monkeypatch.context() as patch:
        patch.setattr(Snapshots, "write", stop_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    if earlier:
        snapshot = next((Path(config.output_dir) / "state").glob("@bank-*.pt"))
        content = torch.load(snapshot, weights_only=True)
        for learner in content["learners"]:
            del learner["group_weights"], learner["means"]["groups"]
        torch.save(content, snapshot)
    done = train(config)
    assert list(done.adapters) == list(undisturbed.adapters)
    for user, place in done.adapters.items():
        torch.testing.assert_close(weights(place), weights(undisturbed.adapters[user]), rtol=0, atol=0)


# ---- the schedule ----


@given(
    rows=st.integers(1, 40),
    batch=st.integers(1, 9),
    accumulation=st.integers(1, 4),
    epochs=st.integers(1, 3),
)
def test_every_epoch_takes_every_row_once(rows: int, batch: int, accumulation: int, epochs: int) -> None:
    plan = Schedule(rows, batch, accumulation, 3, 0)
    for epoch in range(epochs):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        batches = [taken for step in steps for taken in plan.batches(step)]
        assert sorted(number for taken in batches for number in taken) == list(range(rows))
        assert all(len(taken) == batch for taken in batches[:-1])
        assert all(len(plan.batches(step)) == accumulation for step in steps[:-1])
        assert plan.epochs_done(steps[-1] + 1) == epoch + 1


# ---- refusals ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameters": {"kind": "full", "per": "none"}}, "parameters.kind is full"),
        ({"training": {"extra_arguments": {"optim": "adafactor"}}}, "optim adafactor"),
        ({"training": {"extra_arguments": {"dataloader_drop_last": True}}}, "dataloader_drop_last"),
        ({"training": {"lr_scheduler_type": "reduce_lr_on_plateau"}}, "reduce_lr_on_plateau"),
        ({"bank": {"slots": 0}}, "bank.slots is 0"),
        ({"bank": {"batch_tokens": -1}}, "bank.batch_tokens is -1"),
        ({"parameters": {"target_modules": ["q_proj", "lm_head"]}}, "the head"),
        ({"parameters": {"target_modules": ["query"]}}, "There are: .*q_proj"),
    ],
)
def test_what_the_bank_refuses(changes: Any, message: str, make_rows: Any, make_config: Any) -> None:
    config = make_config(make_rows(["a"]), engine="bank", **changes)
    with pytest.raises(InputError, match=message):
        train(config)
    # The corrected command finds nothing begun.
    assert not Path(config.output_dir).exists()


def test_slots_that_do_not_fit(make_rows: Any, make_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pluralign.training.bank.capacity.free_memory", lambda _: 300_000)
    config = make_config(make_rows(list("abcdefgh"), 4), engine="bank", bank={"slots": 8})
    with pytest.raises(InputError, match=r"bank.slots is 8: .* At most \d would fit"):
        train(config)
    assert not Path(config.output_dir).exists()
    few = train(make_config(make_rows(list("abcdefgh"), 4), "few", engine="bank"))
    assert len(few.adapters) == 8


def test_one_policy_for_all_may_use_the_bank(make_rows: Any, make_config: Any, compare: Any) -> None:
    changes = {"parameters": {"per": "none"}, "dtype": "float64"}
    alone = train(make_config(make_rows(["a", "b"]), "alone", **changes))
    bank = train(make_config(make_rows(["a", "b"]), "bank", engine="bank", **changes))
    assert compare(bank, alone) < 1e-10
