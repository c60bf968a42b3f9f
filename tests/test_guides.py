"""The guides run as they are written, and print the figures that stand in them."""

import importlib.util
import re
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from pluralign.config import TrainConfig

ROOT = Path(__file__).parents[1]
_SPEC = importlib.util.spec_from_file_location("guides", ROOT / "scripts" / "guides.py")
guides = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(guides)
PAGES = sorted(guides.GUIDES.glob("*.md"))
OF_DPO_CONFIG = {
    "learning_rate",
    "model_init_kwargs",
    "trust_remote_code",
    "router_aux_loss_coef",
    "disable_dropout",
    "dataset_num_proc",
    "max_length",
    "truncation_mode",
    "padding_free",
    "pad_to_multiple_of",
    "precompute_ref_log_probs",
    "precompute_ref_batch_size",
    "loss_type",
    "loss_weights",
    "ld_alpha",
    "f_divergence_type",
    "f_alpha_divergence_coef",
    "label_smoothing",
    "beta",
    "use_weighting",
    "discopop_tau",
    "activation_offloading",
    "sync_ref_model",
    "ref_model_mixup_alpha",
    "ref_model_sync_steps",
    "pad_token",
}
"""All fields that TRL 1.16.0 adds to `TrainingArguments` for DPO."""


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_a_guide_runs_as_written_and_makes_the_figures_it_shows(page, tmp_path):
    with guides.alone(tmp_path):
        found = list(guides.run(page))
    assert found, "a guide shows what it makes"
    assert [line for block, printed in found for line in guides.differences(block[2], printed)] == []


def test_figures_that_are_not_those_of_a_page_are_told():
    page = "user   kept\nann    0.90 [0.80, 0.95]\n"
    assert guides.differences(page, page.replace("0.90", "0.85")) == []
    assert guides.differences(page, page.replace("0.90", "0.70")) == ["0.90 is 0.70"]
    assert guides.differences(page, page.replace("ann", "ben")) == ["ann is ben"]
    assert len(guides.differences(page, page + "more\n")) == 1
    assert guides.differences("steps 1000 ━━━", "steps  1200 ━━━━") == []


def keys_of(config, before=""):
    for field in fields(config):
        value = getattr(config, field.name)
        yield f"{before}{field.name}"
        if is_dataclass(value):
            yield from keys_of(value, f"{before}{field.name}.")


def test_keys_that_stand_for_trls_are_there_and_none_of_trls_is_left_out():
    text = (guides.GUIDES / "from-trl.md").read_text(encoding="utf-8")
    rows = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    known = set(keys_of(TrainConfig()))
    named = {key for row in rows for key in re.findall(r"`([^`]+)`", row[1])}
    assert len(rows) > 20 and named <= known, named - known
    theirs = {
        word for row in rows for quoted in re.findall(r"`([^`]+)`", row[0]) for word in re.findall(r"\w+", quoted)
    }
    assert theirs >= OF_DPO_CONFIG, OF_DPO_CONFIG - theirs
    # Where a key of `TrainingArguments` has one here, it has the same name.
    for row in rows:
        for key in re.findall(r"`training\.([^`]+)`", row[1]):
            assert key == "extra_arguments" or f"`{key}`" in row[0], key
