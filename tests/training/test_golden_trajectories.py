"""Eight steps of TRL's DPOTrainer, as measured by others' code, repeated by ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from pluralign.config import LossConfig
from pluralign.models.anchoring import Anchored
from pluralign.models.encoding import Encoded, Encoder
from pluralign.models.logprobs import branch_logps
from pluralign.models.rows import collate
from pluralign.objectives import Objective
from pluralign.preferences.schema import Preference
from pluralign.training import PreferenceTrainer
from pluralign.training.batches import AnchoredDataset, PreferenceCollator

GOLDEN = Path(__file__).parents[1] / "golden"
TRAJECTORY = json.loads((GOLDEN / "dpo_trajectory.json").read_text())
CASES = {case["name"]: case for case in TRAJECTORY["cases"] if not case["name"].startswith("lora_ref_copy")}
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


@pytest.mark.parametrize("name", CASES)
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
    trainer = PreferenceTrainer(
        model,
        _arguments(tmp_path),
        Objective(LossConfig(type=loss_type, beta=0.1, length_average=loss_type == "ipo")),
        train_dataset=AnchoredDataset(rows),
        data_collator=PreferenceCollator(pad_id=0, branches=BRANCHES, layout=layout),
        # The golden runs of an adapter compare with the base: the forward without it must give what the cache gives.
        reference="forward" if name.startswith("lora") and layout == "shared" else "cached",
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    for metric in LOGGED:
        torch.testing.assert_close(
            torch.tensor([line[metric] for line in lines]), torch.tensor(expected[metric]), rtol=1e-4, atol=1e-4
        )
    after = _logps(trainer.model, encoded, layout)
    for branch in BRANCHES:
        recorded = torch.tensor(expected["after_8_steps_policy_logps"][branch])
        torch.testing.assert_close(torch.tensor(after[branch]), recorded, rtol=0, atol=1e-3)
