"""Eight steps of TRL's DPOTrainer, as measured by others' code, repeated by ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from pluralign.config import LossConfig, ModelConfig, ParametersConfig, ReferenceConfig
from pluralign.models.adapters import new_adapter
from pluralign.models.anchoring import Anchored
from pluralign.models.base import load_base
from pluralign.models.cache import Cache
from pluralign.models.combined_references import check_reference, compare_rows
from pluralign.models.encoding import Encoded, Encoder
from pluralign.models.given_models import ModelScores
from pluralign.models.given_references import find_references
from pluralign.models.logprobs import branch_logps
from pluralign.models.rows import collate
from pluralign.objectives import Objective
from pluralign.preferences.schema import Preference
from pluralign.training import PreferenceTrainer
from pluralign.training.batches import AnchoredDataset, PreferenceCollator

GOLDEN = Path(__file__).parents[1] / "golden"
TRAJECTORY = json.loads((GOLDEN / "dpo_trajectory.json").read_text())
CASES = {case["name"]: case for case in TRAJECTORY["cases"]}
COPIES = {name: case for name, case in CASES.items() if name.startswith("lora_ref_copy")}
LOGGED = ("loss", "grad_norm", *(f"rewards/{n}" for n in ("chosen", "rejected", "margins", "accuracies")))
LOGGED = (*LOGGED, "logps/chosen", "logps/rejected")
BRANCHES = ("chosen", "rejected")


@pytest.fixture(scope="module")
def encoded() -> list[Encoded]:
    tokenizer = AutoTokenizer.from_pretrained(GOLDEN / "dpo_trajectory")
    encoder = Encoder(tokenizer, max_prompt_length=512, max_response_length=512, context_length=None)
    rows = [Preference(pair["prompt"], pair["chosen"], pair["rejected"]) for pair in TRAJECTORY["pairs"]]
    return [encoder.encode(row) for row in rows]


def _model() -> Any:
    return AutoModelForCausalLM.from_pretrained(GOLDEN / "dpo_trajectory", dtype=torch.float32)


@torch.no_grad()
def _logps(model: Any, encoded: list[Encoded], layout: Any) -> dict[str, list[float]]:
    """In the batches of training, so that the first margin is 0 to the last bit, as in the recorded runs."""
    model.eval()
    batches = [collate(encoded[n : n + 4], pad_id=0, branches=BRANCHES, layout=layout) for n in range(0, 24, 4)]
    parts = [branch_logps(model, batch) for batch in batches]
    return {name: torch.cat([part[name] for part in parts]).tolist() for name in BRANCHES}


def _arguments(folder: Path, **changes: Any) -> TrainingArguments:
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "max_steps": 8,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "train_sampling_strategy": "sequential",
    }
    settings |= {"report_to": "none", "use_cpu": True, "remove_unused_columns": False, "disable_tqdm": True}
    return TrainingArguments(str(folder), **{**settings, **changes})


def test_tokens_are_the_recorded_ones(encoded: list[Encoded]) -> None:
    for row, ids in zip(encoded, TRAJECTORY["token_ids"], strict=True):
        assert row.prompt_ids == ids["prompt_ids"]
        assert row.response_ids == {"chosen": ids["chosen_ids"], "rejected": ids["rejected_ids"]}


@pytest.mark.parametrize("name", [name for name in CASES if name not in COPIES])
@pytest.mark.parametrize("layout", ["shared", "separate"])
def test_trajectory(name: str, layout: Any, encoded: list[Encoded], tmp_path: Path) -> None:
    case = CASES[name]
    expected, loss_type = case["expected"], case["inputs"]["loss_type"]
    model = _model()
    base = _logps(model, encoded, layout)
    if name.startswith("lora"):
        model = PeftModel.from_pretrained(model, str(GOLDEN / "dpo_trajectory" / "adapter"), is_trainable=True)
    rows = [
        Anchored(Preference("", "", ""), row, {branch: base[branch][number] for branch in BRANCHES})
        for number, row in enumerate(encoded)
    ]
    # The golden runs of an adapter compare with the base: the forward without it must give what the cache gives.
    reference = "forward" if name.startswith("lora") and layout == "shared" else "cached"
    trainer = _trained(model, rows, loss_type, layout, tmp_path, reference=reference)
    _assert_logged(trainer, expected)
    _assert_left(trainer, expected, encoded, layout)


@pytest.mark.parametrize("name", COPIES)
@pytest.mark.parametrize("layout", ["shared", "separate"])
@pytest.mark.parametrize("combine", ["", "harmonic", "geometric"])
@pytest.mark.filterwarnings("ignore:.*has no pluralign.json")
def test_trajectory_against_the_adapter_it_began_with(
    name: str, layout: Any, combine: Any, encoded: list[Encoded], tmp_path: Path
) -> None:
    """The policy begins with the adapter, and the adapter is the reference; given twice, and clipped, it is one."""
    case = COPIES[name]
    expected, loss_type = case["expected"], case["inputs"]["loss_type"]
    folder = GOLDEN / "dpo_trajectory" / "adapter"
    base = load_base(ModelConfig(model=str(GOLDEN / "dpo_trajectory"), dtype="float32", device="cpu"))
    config = ReferenceConfig(models=[str(folder)])
    if combine:
        config = ReferenceConfig(models=[str(folder)] * 2, combine=combine, weights="confidence", clip=0.1)
    check_reference(config)
    rows = [Anchored(Preference("", "", ""), row, {}) for row in encoded]
    references = find_references(config, ModelConfig())
    cache = Cache(tmp_path / "cache")
    found = compare_rows(base, rows, config, references, ModelScores(BRANCHES), cache, layout=layout)
    rows = [replace(row, reference=one.logps[0]) for row, one in zip(rows, found, strict=True)]
    for branch in BRANCHES:
        recorded = expected["step0_reference_logps"][branch]
        assert [row.reference[branch] for row in rows] == pytest.approx(recorded, abs=1e-4)
    policy = new_adapter(base, ParametersConfig(), seed=0, start=folder)
    trainer = _trained(policy, rows, loss_type, layout, tmp_path)
    # The first margins are 0, and here rounding: what is above it is a matter of the last digit.
    _assert_logged(trainer, expected, {"rewards/accuracies": 1})
    assert trainer.state.log_history[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    _assert_left(trainer, expected, encoded, layout)


def _trained(
    model: Any, rows: list[Anchored], loss_type: str, layout: Any, folder: Path, *, reference: Any = "cached"
) -> PreferenceTrainer:
    trainer = PreferenceTrainer(
        model,
        _arguments(folder),
        Objective(LossConfig(type=loss_type, beta=0.1, length_average=loss_type == "ipo")),
        train_dataset=AnchoredDataset(rows),
        data_collator=PreferenceCollator(pad_id=0, branches=BRANCHES, layout=layout),
        reference=reference,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer


def _assert_logged(
    trainer: PreferenceTrainer, expected: dict[str, Any], first: Mapping[str, int] = MappingProxyType({})
) -> None:
    """Every metric as recorded, from the step given on."""
    lines = [line for line in trainer.state.log_history if "loss" in line]
    for metric in LOGGED:
        start = first.get(metric, 0)
        found = torch.tensor([line[metric] for line in lines[start:]])
        wanted = torch.tensor(expected[metric][start:])
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4, msg=f"{metric}: {found} and {wanted}")


def _assert_left(trainer: PreferenceTrainer, expected: dict[str, Any], encoded: list[Encoded], layout: Any) -> None:
    after = _logps(trainer.model, encoded, layout)
    for branch in BRANCHES:
        recorded = torch.tensor(expected["after_8_steps_policy_logps"][branch])
        torch.testing.assert_close(torch.tensor(after[branch]), recorded, rtol=0, atol=1e-3)
