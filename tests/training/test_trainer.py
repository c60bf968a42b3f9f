"""The Trainer's arithmetic: step 0, weights, accumulation, metrics, early stopping, precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from pluralign.config import AnchorConfig, BaseAnchorConfig, GroupWeightingConfig, LossConfig, WeightingConfig
from pluralign.models import logprobs
from pluralign.models.anchoring import Anchored
from pluralign.models.encoding import Encoder
from pluralign.models.logprobs import branch_logps
from pluralign.models.rows import collate
from pluralign.objectives import Objective
from pluralign.preferences.schema import Preference
from pluralign.training import PreferenceTrainer, train
from pluralign.training.batches import AnchoredDataset, EpochSampler, PreferenceCollator
from pluralign.training.callbacks import EarlyStopping
from pluralign.training.metrics import MetricMeans
from pluralign.training.weighting import Weighting

MODEL = Path(__file__).parents[1] / "golden" / "dpo_trajectory"
BRANCHES = ("chosen", "rejected")
Make = Callable[..., PreferenceTrainer]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    return Encoder(tokenizer, max_prompt_length=64, max_response_length=64, context_length=None)


def _policy(model: Any = None, dtype: torch.dtype = torch.float32) -> PeftModel:
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=dtype) if model is None else model
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.0))


@torch.no_grad()
def _anchored(
    policy: PeftModel, encoder: Encoder, rows: list[dict[str, Any]], branches: Any = BRANCHES
) -> list[Anchored]:
    preferences = [
        Preference(
            row["prompt"],
            row.get("chosen"),
            row.get("rejected"),
            base=row.get("base"),
            group=row.get("group"),
            columns=row.get("columns", {}),
        )
        for row in rows
    ]
    encoded = [encoder.encode(preference, branches) for preference in preferences]
    with policy.disable_adapter():
        logps = branch_logps(policy.eval(), collate(encoded, pad_id=0, branches=branches))
    references = [{name: logps[name][n].item() for name in one.response_ids} for n, one in enumerate(encoded)]
    return [Anchored(*parts) for parts in zip(preferences, encoded, references, strict=True)]


def _dataset(
    rows: list[Anchored], weighting: WeightingConfig, train: list[Anchored], objective: Objective
) -> AnchoredDataset:
    return AnchoredDataset(rows, Weighting(weighting, [row.preference for row in train], counts=objective.counts))


@pytest.fixture
def make(tmp_path: Path, encoder: Encoder, make_rows: Any) -> Make:
    """A trainer on made-up pairs, in their order; keywords as in `TrainingArguments`, but for those named here."""

    def build(
        *,
        policy: PeftModel | None = None,
        objective: Objective | None = None,
        rows: list[dict[str, Any]] | None = None,
        held_out: list[dict[str, Any]] | None = None,
        column: str | None = None,
        groups: GroupWeightingConfig | None = None,
        reference: Any = "cached",
        callbacks: Any = (),
        **arguments: Any,
    ) -> PreferenceTrainer:
        policy = _policy() if policy is None else policy
        objective = objective or Objective(LossConfig())
        anchored = _anchored(policy, encoder, make_rows(["a"], 12) if rows is None else rows, objective.branches)
        held = _anchored(policy, encoder, held_out, objective.branches) if held_out else None
        weighting = WeightingConfig(column, groups or GroupWeightingConfig())
        settings: dict[str, Any] = {
            "num_train_epochs": 1,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "save_strategy": "no",
            "train_sampling_strategy": "sequential",
            "report_to": "none",
            "use_cpu": True,
            "remove_unused_columns": False,
            "disable_tqdm": True,
            "logging_nan_inf_filter": False,
        }
        trainer = PreferenceTrainer(
            policy,
            TrainingArguments(str(tmp_path / "out"), **{**settings, **arguments}),
            objective,
            train_dataset=_dataset(anchored, weighting, anchored, objective),
            eval_dataset=_dataset(held, weighting, anchored, objective) if held else None,
            data_collator=PreferenceCollator(pad_id=0, branches=objective.branches),
            reference=reference,
            callbacks=callbacks,
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    return build


def _lines(trainer: PreferenceTrainer, key: str = "loss") -> list[dict[str, float]]:
    return [line for line in trainer.state.log_history if key in line]


def test_every_hook_is_one_the_trainer_calls() -> None:
    """An override of a name that a later version drops would be ignored without a word."""
    own = {name for name, value in vars(PreferenceTrainer).items() if callable(value) and not name.startswith("__")}
    ours = {"_losses", "_run_reference", "_sum_over_processes", "_filled_to", "_fill_checkpoint"}
    ours |= {"_ascend", "_gather_rows"}
    assert own - ours <= vars(Trainer).keys()


@pytest.mark.parametrize("reference", ["forward", "cached"])
def test_step_0(reference: str, make: Make) -> None:
    trainer = make(reference=reference, per_device_train_batch_size=12)
    trainer.train()
    first = _lines(trainer)[0]
    bound = 0.0 if reference == "forward" else 1e-5
    assert abs(first["rewards/margins"]) <= 0.1 * bound
    assert first["loss"] == pytest.approx(math.log(2), rel=0, abs=max(bound, 1e-7))


def test_step_0_has_no_dropout_of_the_base(make_rows: Any, make_config: Any, tmp_path: Path, metrics: Any) -> None:
    """GPT-2 drops a tenth of everything by default: the policy's first forward must still be the reference's."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=256, n_embd=16, n_layer=2, n_head=2, n_positions=128))
    model.save_pretrained(tmp_path / "gpt2")
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(tmp_path / "gpt2")
    config = make_config(make_rows(["a"]), model=str(tmp_path / "gpt2"), training={"max_steps": 1})
    result = train(config)
    assert abs(metrics(result.output_dir)[0]["rewards/margins"]) <= 1e-5


@pytest.mark.parametrize("column", [None, "weight"])
@pytest.mark.parametrize("split", [(4, 2), (3, 3)])
def test_a_step_does_not_depend_on_how_it_is_split(
    split: tuple[int, int], column: str | None, make: Make, make_rows: Any
) -> None:
    """Batches of 8 (of 9) with uneven weights: loss, gradient norm and final weights, to float tolerance."""
    rows = make_rows(["a"], 20)
    for number, row in enumerate(rows):
        row["columns"] = {"weight": float(number % 4)}
    batch, accumulation = split
    whole = make(rows=rows, column=column, per_device_train_batch_size=batch * accumulation)
    parts = make(rows=rows, column=column, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation)
    # As of models whose forward takes no further keywords; for them the Trainer would divide by the forwards.
    parts.model_accepts_loss_kwargs = False
    whole.train()
    parts.train()
    for name in ("loss", "grad_norm", "rewards/margins", "logps/chosen"):
        values = [torch.tensor([line[name] for line in _lines(trainer)]) for trainer in (whole, parts)]
        torch.testing.assert_close(*values, rtol=1e-4, atol=1e-5, msg=name)
    for (name, value), (_, other) in zip(whole.model.named_parameters(), parts.model.named_parameters(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-5, msg=name)


def test_the_loss_is_the_weighted_mean(make: Make, make_rows: Any) -> None:
    rows = make_rows(["a"], 4)
    for row, weight in zip(rows, (0.0, 1.0, 2.0, 5.0), strict=True):
        row["columns"] = {"weight": weight}
    trainer = make(
        rows=rows, column="weight", held_out=rows, eval_strategy="epoch", max_grad_norm=0.0, learning_rate=1e-9
    )
    batch = trainer.data_collator([trainer.train_dataset[number] for number in range(4)])
    losses = trainer._losses(trainer.model, batch).per_example.detach()
    trainer.train()
    expected = (losses * torch.tensor([0.0, 1.0, 2.0, 5.0])).sum() / 8
    assert _lines(trainer)[0]["loss"] == pytest.approx(expected.item(), rel=1e-6)
    assert _lines(trainer, "eval_loss")[0]["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_a_step_without_weight_changes_nothing(make: Make, make_rows: Any) -> None:
    rows = make_rows(["a"], 4)
    for row in rows:
        row["columns"] = {"weight": 0.0}
    trainer = make(rows=rows, column="weight")
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    assert _lines(trainer)[0]["loss"] == 0.0
    for name, value in trainer.model.named_parameters():
        assert torch.equal(value, before[name])


def test_held_out_rows_count_once_each(make: Make, make_rows: Any) -> None:
    """Five rows in batches of three: the mean over rows, not over batches."""
    held_out = make_rows(["b"], 5)
    small = make(held_out=held_out, eval_strategy="epoch", per_device_eval_batch_size=3)
    large = make(held_out=held_out, eval_strategy="epoch", per_device_eval_batch_size=5)
    small.train()
    large.train()
    assert _lines(small, "eval_loss")[0]["eval_loss"] == pytest.approx(
        _lines(large, "eval_loss")[0]["eval_loss"], rel=1e-5
    )
    assert {"eval_rewards/margins", "eval_logps/chosen"} <= _lines(small, "eval_loss")[0].keys()


def test_metrics_are_means_over_the_rows_they_concern(make: Make, make_rows: Any) -> None:
    pairs = make_rows(["a"], 3)
    anchors = [{"prompt": row["prompt"], "base": " the river"} for row in pairs]
    objective = Objective(LossConfig(), AnchorConfig(base=BaseAnchorConfig(weight=0.3, form="squared")))
    alone = make(rows=pairs, objective=objective, per_device_train_batch_size=3)
    mixed = make(rows=pairs + anchors, objective=objective, per_device_train_batch_size=6)
    alone.train()
    mixed.train()
    first = _lines(mixed)[0]
    assert first["logps/chosen"] == pytest.approx(_lines(alone)[0]["logps/chosen"], rel=1e-5)
    assert "logps/base" in first and "logps/base" not in _lines(alone)[0]
    assert first["loss"] == pytest.approx(_lines(alone)[0]["loss"] / 2, rel=1e-4)


def test_means_leave_absent_rows_out() -> None:
    means = MetricMeans()
    nan = float("nan")
    means.add({"x": torch.tensor([1.0, nan]), "y": torch.tensor([nan, nan])}, torch.tensor([True, True]))
    means.add({"x": torch.tensor([3.0, 9.0]), "y": torch.tensor([nan, nan])}, torch.tensor([True, False]))
    assert means.take() == {"x": 2.0}
    assert means.take() == {}


def test_columns_reach_a_loss_of_ones_own(make: Make, make_rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def loss(margin: torch.Tensor, *, columns: Any, **_: Any) -> torch.Tensor:
        seen.append(columns)
        return margin**2

    rows = make_rows(["a"], 4)
    for number, row in enumerate(rows):
        row["columns"] = {"mood": f"m{number}"}
    objective = Objective(LossConfig())
    objective._custom, objective.loss.type = loss, "tests:loss"
    make(rows=rows, objective=objective).train()
    assert seen[0]["mood"] == ["m0", "m1", "m2", "m3"]
    assert {"user", "group"} <= seen[0].keys()


def test_order_belongs_to_seed_and_epoch() -> None:
    epoch = 0
    sampler = EpochSampler(50, seed=3, epoch=lambda: epoch)
    first = list(sampler)
    assert first == list(sampler) and sorted(first) == list(range(50)) and first != list(range(50))
    epoch = 1
    assert list(sampler) != first
    assert list(EpochSampler(50, seed=4)) != first
    assert list(EpochSampler(5)) == [0, 1, 2, 3, 4]
    assert list(EpochSampler(5, multiple=4)) == [0, 1, 2, 3, 4, 5, 6, 7]


def test_the_trainer_takes_that_order(make: Make, make_rows: Any) -> None:
    rows = make_rows(["a"], 6)
    for number, row in enumerate(rows):
        row["columns"] = {"number": number}
    trainer = make(
        rows=rows, train_sampling_strategy="random", seed=3, num_train_epochs=2, per_device_train_batch_size=6
    )
    seen: list[int] = []
    collator = trainer.data_collator

    def watched(examples: Any) -> Any:
        seen.extend(example.row.preference.columns["number"] for example in examples)
        return collator(examples)

    trainer.data_collator = watched
    trainer.train()
    assert seen == [number for epoch in (0, 1) for number in EpochSampler(6, seed=3, epoch=lambda e=epoch: e)]


@given(length=st.integers(1, 40), batch=st.integers(1, 5), processes=st.integers(2, 4), seed=st.integers(0, 2**31))
def test_processes_have_as_many_batches_each_and_every_row_once(
    length: int, batch: int, processes: int, seed: int
) -> None:
    sampler = EpochSampler(length, multiple=batch * processes, seed=seed)
    order = list(sampler)
    assert len(order) == len(sampler) and len(order) % (batch * processes) == 0
    assert sorted(number for number in order if number < length) == list(range(length))
    # Fillers come last, so that the steps before them are those of one process.
    assert order[:length] == list(EpochSampler(length, seed=seed))


@pytest.mark.parametrize(("values", "stops"), [([3, 2, 1, 0], False), ([3, 2, 2, 2], True), ([1, 2, 0.5, 2], False)])
def test_early_stopping(values: list[float], stops: bool, make: Make) -> None:
    trainer = make(metric_for_best_model="loss", greater_is_better=False)
    stopping = EarlyStopping(patience=2)
    for value in values:
        trainer.state.log_history.append({"eval_loss": value})
        control = stopping.on_evaluate(trainer.args, trainer.state, trainer.control)
    assert control.should_training_stop is stops


@pytest.mark.parametrize("best", [True, False])
def test_the_best_checkpoint_is_what_is_kept(
    best: bool, make_rows: Any, make_config: Any, metrics: Any, weights: Any
) -> None:
    """With a learning rate that destroys, validation soon gets worse: training stops, and the best weights are kept."""
    settings = {"learning_rate": 0.3, "num_train_epochs": 20, "lr_scheduler_type": "constant"}
    stopping = {**settings, "early_stopping_patience": 2, "load_best_model_at_end": best}
    result = train(make_config(make_rows(["a"]), training=stopping))
    losses = [line["eval_loss"] for line in metrics(result.output_dir, "a") if "eval_loss" in line]
    best_epoch = losses.index(min(losses)) + 1
    assert len(losses) == best_epoch + 2 < 20
    kept = best_epoch if best else best_epoch + 2
    # The same schedule, ended where what was kept was reached.
    until = train(make_config(make_rows(["a"]), "until", training={**settings, "max_steps": 3 * kept}))
    torch.testing.assert_close(weights(result.adapters["a"]), weights(until.adapters["a"]), rtol=0, atol=0)


def test_bf16(make_rows: Any, make_config: Any, metrics: Any, weights: Any) -> None:
    result = train(make_config(make_rows(["a"]), training={"bf16": True, "learning_rate": 1e-3}))
    lines = [line for line in metrics(result.output_dir) if "loss" in line]
    # References are computed in the precision of training: what remains is the order of sums in other batches.
    assert abs(lines[0]["rewards/margins"]) < 0.02
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert all(tensor.dtype == torch.float32 for tensor in weights(result.adapters["a"]).values())


def test_bf16_runs_the_head_in_bf16(make: Make, make_rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast is on in training and in validation; log-probs are float32, and logits are nowhere held in it."""
    seen = set()
    head_logps = logprobs.head_logps

    def watched(head: Any, hidden: Any, labels: Any, logit_map: Any, dtype: torch.dtype) -> torch.Tensor:
        logps = head_logps(head, hidden, labels, logit_map, dtype)
        seen.add((logps.requires_grad, dtype, logps.dtype))
        return logps

    trainer = make(bf16=True, held_out=make_rows(["b"], 4), eval_strategy="epoch")
    monkeypatch.setattr(logprobs, "head_logps", watched)
    trainer.train()
    assert seen == {(trained, torch.bfloat16, torch.float32) for trained in (True, False)}


def test_gradient_checkpointing_changes_nothing(make_rows: Any, make_config: Any, weights: Any) -> None:
    plain = train(make_config(make_rows(["a"]), "plain"))
    saving = train(make_config(make_rows(["a"]), "saving", training={"gradient_checkpointing": True}))
    torch.testing.assert_close(weights(plain.adapters["a"]), weights(saving.adapters["a"]), rtol=1e-6, atol=1e-7)


def test_checkpoints_hold_nothing_that_runs_code(
    make_rows: Any, make_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, Any] = {}
    kept = PreferenceTrainer._save_checkpoint

    def watched(self: Any, *args: Any) -> None:
        kept(self, *args)
        for path in Path(self.args.output_dir).glob("checkpoint-*/*"):
            found[path.name] = None
            if path.suffix in (".pt", ".pth"):
                with torch.serialization.safe_globals(_numpy_arrays()):
                    torch.load(path, weights_only=True)

    monkeypatch.setattr(PreferenceTrainer, "_save_checkpoint", watched)
    train(make_config(make_rows(["a"]), engine="trainer"))
    assert found.keys() == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "optimizer.pt",
        "rng_state.pth",
        "scheduler.pt",
        "trainer_state.json",
    }


def _numpy_arrays() -> list[Any]:
    """What the state of numpy's generator is made of."""
    import numpy as np

    return [np._core.multiarray._reconstruct, np.ndarray, np.dtype, type(np.dtype(np.uint32))]


def test_no_network(make_rows: Any, make_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    train(make_config(make_rows(["a"])))
