"""What both sides are given: a model of random weights as a folder, and pairs of random words of known lengths."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

EOS, PAD = "</s>", "<pad>"
SEED = 0


@dataclass(frozen=True)
class Shape:
    """A Llama, or a model of its kin. With a vocabulary of 4,096 these are 5.8M parameters.

    Attributes:
        vocabulary: tokens, each a word of its own.
        tied: whether the head shares the embedding's weights.
        family: its model type in transformers.
        kv_heads: of keys and values; by default as many as of queries.
    """

    vocabulary: int = 4096
    hidden: int = 256
    intermediate: int = 688
    layers: int = 6
    heads: int = 4
    context: int = 4096
    tied: bool = True
    family: Literal["llama", "qwen2"] = "llama"
    kv_heads: int | None = None


@dataclass(frozen=True)
class Pairs:
    """A table of pairs, whose lengths are exact in tokens, or ragged.

    Attributes:
        number: pairs of a person.
        prompt: tokens.
        response: tokens of each response, with the end-of-sequence token.
        people: users in the table; each has `number` pairs of their own.
        base: also a response of the base, of the same length (the third branch).
        ragged: every text has a length of its own, drawn evenly from an eighth of that to all of it.
    """

    number: int
    prompt: int
    response: int
    people: int = 1
    base: bool = False
    ragged: bool = False


def model_folder(shape: Shape, work: Path) -> Path:
    """A model folder with its tokenizer, made where it is not there yet."""
    if shape.family == "qwen2":
        _allow_own_tokenizer(shape.family)
    folder = work / "models" / f"{shape.family}-{shape.vocabulary}-{shape.hidden}-{shape.layers}"
    if (folder / "model.safetensors").exists():
        return folder
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = _tokenizer(shape.vocabulary)
    torch.manual_seed(SEED)
    config = AutoConfig.for_model(
        shape.family,
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads or shape.heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=shape.tied,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def table(pairs: Pairs, shape: Shape, work: Path) -> Path:
    """A JSONL file of the pairs, made where it is not there yet; a word is a token."""
    kind = "-base" * pairs.base + "-ragged" * pairs.ragged
    name = f"{pairs.people}x{pairs.number}-{pairs.prompt}+{pairs.response}-{shape.vocabulary}{kind}"
    path = work / "tables" / f"{name}.jsonl"
    if path.exists():
        return path
    draw = random.Random(SEED)

    def words(number: int) -> str:
        return " ".join(f"w{draw.randrange(shape.vocabulary - 2)}" for _ in range(number))

    def length(most: int) -> int:
        return draw.randint(max(2, most // 8), most) if pairs.ragged else most

    lines = []
    for number in range(pairs.people * pairs.number):
        row: dict[str, Any] = {"user": f"person-{number // pairs.number}", "prompt": words(length(pairs.prompt))}
        for branch in ("chosen", "rejected", *(["base"] * pairs.base)):
            # The space parts the prompt's last word from the response's first where they are joined as text.
            row[branch] = " " + words(length(pairs.response) - 1)
        lines.append(json.dumps(row) + "\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines), encoding="utf-8")
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a table."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _allow_own_tokenizer(family: str) -> None:
    """Let this process load the tokenizer that the folder has; transformers puts a family's own in its place."""
    from transformers.models.auto import tokenization_auto

    tokenization_auto.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS.discard(family)


def _tokenizer(vocabulary: int) -> Any:
    """A word a token, split at spaces; nothing is added to a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{number}": number for number in range(vocabulary - 2)}
    backend = Tokenizer(models.WordLevel({**words, EOS: vocabulary - 2, PAD: vocabulary - 1}, unk_token=PAD))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS, pad_token=PAD)
