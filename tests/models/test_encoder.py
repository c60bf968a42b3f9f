"""Vectors of sentence models: means over tokens, of texts of any length."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from pluralign.config import EmbeddingConfig
from pluralign.errors import InputError
from pluralign.fewshot.answers import Question
from pluralign.fewshot.embedding import embed
from pluralign.fewshot.running import ask_fewshot, fit_fewshot, predict_fewshot
from pluralign.models.encoder import Encoder

WORDS = [f"w{number}" for number in range(40)]
LONGEST = 16


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of random weights that reads 16 tokens."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS) + 2,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=LONGEST,
    )
    BertModel(config).save_pretrained(tmp_path)
    words = Tokenizer(models.WordLevel({word: n for n, word in enumerate(["[PAD]", "[UNK]", *WORDS])}, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(tmp_path)
    return tmp_path


def encoder(folder: Path) -> Encoder:
    return Encoder(str(folder), torch.device("cpu"), key="embeddings.model", fix="Name one.")


def test_a_text_is_the_mean_of_its_tokens_whatever_else_is_in_the_batch(folder: Path) -> None:
    read = encoder(folder)
    texts = [" ".join(WORDS[:5]), " ".join(WORDS[3:14])]
    ids = torch.tensor([[WORDS.index(word) + 2 for word in texts[0].split()]])
    with torch.no_grad():
        expected = read.model(ids).last_hidden_state[0].mean(0)
    torch.testing.assert_close(read.of(texts)[0], expected, atol=1e-5, rtol=1e-5)


def test_a_text_that_is_too_long_loses_its_beginning(folder: Path) -> None:
    read = encoder(folder)
    tail = WORDS[-LONGEST:]
    one, other, changed = read.of([" ".join([*WORDS[:9], *tail]), " ".join(tail), " ".join([*tail[:-1], WORDS[0]])])
    torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)
    assert (other - changed).abs().max() > 1e-3


@pytest.mark.parametrize("pooling", ["answer", "all"])
def test_long_answers_are_told_apart(pooling: str, folder: Path, tmp_path: Path) -> None:
    long = " ".join(WORDS[:30])
    question = Question("w1 w2", (f"{long} w31", f"{long} w32"))
    config = EmbeddingConfig(model=str(folder), pooling=pooling)
    points, _ = embed([question], config, cache_dir=tmp_path / "cache")
    assert abs(points.vectors[0] - points.vectors[1]).max() > 1e-3


def test_a_vector_that_is_no_number_names_row_and_group(folder: Path, tmp_path: Path) -> None:
    model = BertModel.from_pretrained(folder)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[WORDS.index("w7") + 2] = torch.nan
    model.save_pretrained(folder)
    path = tmp_path / "answers.jsonl"
    row = {"question": "w1", "options": ["w2", "w3"], "distribution": [1, 0]}
    lines = [{**row, "group": group, "question": text} for group in ("Chad", "Peru") for text in ("w1", "w4 w5")]
    lines.append({**row, "group": "Peru", "options": ["w6", "w7"]})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    keys = {"embeddings": {"model": str(folder)}, "output": str(tmp_path / "p.safetensors")}
    cache = {"cache_dir": str(tmp_path / "cache")}
    named = r"option 'w7' of 'w1', asked of group 'Peru' \(.*{}\.jsonl, row {}\) is not all numbers"
    with pytest.raises(InputError, match=named.format("answers", 5)):
        fit_fewshot({"data": str(path), **keys, **cache})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines[:-1]), encoding="utf-8")
    made = fit_fewshot({"data": str(path), **keys, **cache})
    mine, asked = tmp_path / "mine.jsonl", tmp_path / "asked.jsonl"
    mine.write_text(json.dumps(lines[-1]), encoding="utf-8")
    asked.write_text(json.dumps({**row, "question": "w4 w5"}), encoding="utf-8")
    reading = {"predictor": str(made.path), "answers": str(mine), "questions": str(asked), **cache}
    for run in (predict_fewshot, ask_fewshot):
        with pytest.raises(InputError, match=named.format("mine", 1)):
            run({**reading, "output": str(tmp_path / "out.jsonl")})
