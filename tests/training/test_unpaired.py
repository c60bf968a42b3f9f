"""Good and bad completions without partners: what learns from them, and what stands beside them."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from pluralign.config import ContrastConfig, GroupWeightingConfig
from pluralign.errors import InputError
from pluralign.models.embeddings import BUCKETS, hashed_ngrams
from pluralign.preferences.schema import Preference
from pluralign.training import train
from pluralign.training.mismatched import mismatched


@pytest.fixture
def unpaired(make_rows: Any) -> list[dict[str, Any]]:
    """Twice as many good completions as bad ones."""
    rows = make_rows(["a"], 12)
    good = [{"user": "a", "prompt": row["prompt"], "completion": row["chosen"], "label": True} for row in rows]
    bad = [{"user": "a", "prompt": row["prompt"], "completion": row["rejected"], "label": False} for row in rows[::2]]
    return good + bad


@pytest.mark.parametrize("engine", ["bank", "trainer"])
@pytest.mark.parametrize("kind", ["kto", "contrast"])
def test_unpaired_rows_lower_the_loss(kind: str, engine: str, unpaired: Any, make_config: Any, metrics: Any) -> None:
    training = {"per_device_train_batch_size": 9, "num_train_epochs": 12, "learning_rate": 5e-3}
    config = make_config(unpaired, loss={"type": kind}, engine=engine, training=training, data={"validation": 0.0})
    lines = [line for line in metrics(train(config).output_dir) if "loss" in line]
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    assert lines[-1]["rewards/chosen"] > lines[-1]["rewards/rejected"]
    assert ("kl" in lines[0]) == (kind == "kto")


@pytest.mark.parametrize("kind", ["kto", "contrast"])
def test_bank_and_trainer_agree(kind: str, unpaired: Any, make_config: Any, weights: Any) -> None:
    adapters = []
    for engine in ("bank", "trainer"):
        config = make_config(unpaired, engine, loss={"type": kind}, engine=engine, data={"validation": 0.0})
        adapters.append(weights(train(config).adapters["a"]))
    torch.testing.assert_close(*adapters, rtol=1e-4, atol=1e-6)


def test_the_first_step_of_a_contrast(unpaired: Any, make_config: Any, metrics: Any) -> None:
    """Policy is reference: ln 2 for every chosen response, and rejected ones are nothing to divide by."""
    loss = {"type": "contrast"}
    config = make_config(unpaired, loss=loss, engine="trainer", training={"per_device_train_batch_size": 5})
    assert metrics(train(config).output_dir)[0]["loss"] == pytest.approx(0.693147, abs=1e-5)


def test_who_cannot_learn_from_them(unpaired: Any, make_config: Any) -> None:
    with pytest.raises(InputError, match=r"there is no rejected response, which loss\.type sigmoid needs"):
        train(make_config(unpaired, "dpo"))
    with pytest.warns(UserWarning, match=r"row 13: there is no chosen response, which loss\.type nll needs"):
        assert list(train(make_config(unpaired, "sft", loss={"type": "nll"})).adapters) == ["a"]


def test_a_person_without_bad_completions_learns_nothing_from_a_contrast(
    unpaired: Any, make_config: Any, metrics: Any, weights: Any
) -> None:
    config = make_config(unpaired[:12], loss={"type": "contrast"}, data={"validation": 0.0})
    result = train(config)
    assert all(line["loss"] == 0 for line in metrics(result.output_dir) if "loss" in line)
    assert not any(value.any() for name, value in weights(result.adapters["a"]).items() if "lora_B" in name)


# ---- responses to other prompts ----


def test_everybody_gets_a_response_to_another_prompt() -> None:
    rows = [Preference(f"p{n // 2}", f"c{n}", f"r{n}") for n in range(6)]
    found = mismatched(rows)
    for row in found:
        assert row.mismatched is not None
        lender = next(one for one in rows if row.mismatched in (one.chosen, one.rejected))
        assert lender.prompt != row.prompt
    assert {row.mismatched[0] for row in found if isinstance(row.mismatched, str)} == {"c", "r"}


def test_a_person_of_one_prompt_gets_none() -> None:
    assert [row.mismatched for row in mismatched([Preference("p", "c", None), Preference("p", None, "r")])] == [
        None
    ] * 2


def test_messages_do_not_follow_text() -> None:
    turn = [{"role": "assistant", "content": "m"}]
    rows = [
        Preference("p", "c", None),
        Preference([{"role": "user", "content": "q"}], turn, None),
        Preference("s", "d", None),
    ]
    assert [row.mismatched for row in mismatched(rows)] == ["d", None, "c"]


# ---- how alike prompts are ----


def test_hashed_ngrams_tell_likeness() -> None:
    texts = [
        "Where does the river rest?",
        "where does  the RIVER rest?",
        "Where does the river wait?",
        "Seven times six",
    ]
    first, same, near, far = map(hashed_ngrams, texts)
    assert first.shape == (BUCKETS,)
    torch.testing.assert_close(first, same)
    assert 1 > float(first @ near) > 0.4 > float(first @ far)


@pytest.mark.parametrize("kind", ["ngrams", "hidden", "column:vector"])
def test_every_kind_of_embedding_trains(kind: str, make_rows: Any, make_config: Any, metrics: Any) -> None:
    rows = make_rows(["a"], 8, vector=lambda number: [float(number), 1.0])
    loss = {"type": "contrast", "contrast": ContrastConfig(embeddings=kind)}
    losses = [line["loss"] for line in metrics(train(make_config(rows, loss=loss)).output_dir) if "loss" in line]
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)
    assert losses[-1] < losses[0]


def test_another_model_may_embed(make_rows: Any, make_config: Any, make_base: Any, tmp_path: Any, metrics: Any) -> None:
    base = make_base()
    base.model.save_pretrained(tmp_path / "encoder")
    base.tokenizer.save_pretrained(tmp_path / "encoder")
    loss = {"type": "contrast", "contrast": ContrastConfig(embeddings=str(tmp_path / "encoder"))}
    assert metrics(train(make_config(make_rows(["a"], 8), loss=loss)).output_dir)


@pytest.mark.parametrize(
    ("kind", "cell", "found"),
    [
        ("column:vector", "text", "column 'vector': it holds no vector"),
        ("column:vector", [], "column 'vector': it holds no vector"),
        ("column:vector", [float("nan")], "column 'vector': it holds no vector"),
        ("column:other", [1.0], "column 'other': it holds no vector"),
        ("nowhere/at-all", [1.0], "'nowhere/at-all': there is no such folder"),
    ],
)
def test_embeddings_that_cannot_be_had(kind: str, cell: Any, found: str, make_rows: Any, make_config: Any) -> None:
    rows = make_rows(["a"], 8, vector=lambda number: cell)
    loss = {"type": "contrast", "contrast": ContrastConfig(embeddings=kind)}
    with pytest.raises(InputError, match=found):
        train(make_config(rows, loss=loss))


def test_vectors_of_different_length_are_named(make_rows: Any, make_config: Any) -> None:
    rows = make_rows(["a"], 8, vector=lambda number: [1.0] * (1 + number % 2))
    loss = {"type": "contrast", "contrast": ContrastConfig(embeddings="column:vector")}
    with pytest.raises(InputError, match=r"it holds \d numbers, and others"):
        train(make_config(rows, loss=loss))


def test_an_anchored_table_of_unpaired_rows_is_read_back(unpaired: Any, make_config: Any, tmp_path: Any) -> None:
    from pluralign.config import AnchorTableConfig
    from pluralign.models.anchoring import anchor

    config = make_config(unpaired)
    table = AnchorTableConfig(
        model=config.model, data=config.data, output=str(tmp_path / "anchored.parquet"), cache_dir=config.cache_dir
    )
    path = anchor(table)
    config.data.path, config.loss.type = str(path), "kto"
    assert list(train(config).adapters) == ["a"]
    assert json.loads((tmp_path / "run" / "adapters" / "index.json").read_text())


@pytest.mark.parametrize("by", ["worst", "importance"])
def test_contrasts_by_group(by: Any, make_rows: Any, make_config: Any, metrics: Any) -> None:
    """A group's loss is that of its chosen responses, however many rejected ones stand beside them."""
    rows = make_rows(["a"], 12)
    table = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen", "group": f"g{number % 2}"}
        for number, row in enumerate(rows)
        for side in (("chosen", "rejected") if number % 2 else ("chosen", "rejected", "rejected"))
    ]
    seat = {"groups": GroupWeightingConfig(by=by)}
    common = {"parameters": {"per": "none"}, "data": {"validation": 0.0}, "loss": {"type": "contrast"}}
    training = {"per_device_train_batch_size": 64}
    config = make_config(table, weighting=seat, training=training, **common)
    first = metrics(train(config).output_dir)[0]
    assert [first[f"group/g{n}/loss"] for n in (0, 1)] == pytest.approx([0.6931, 0.6931], abs=1e-3)
    assert first["loss"] == pytest.approx(0.6931, abs=1e-3)
