"""What a small chat model knows: perplexity on held-out text, trivia by greedy answers and by likelihood."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import sources
import torch

LONGEST = 48
"""Tokens of a reply to a trivia question; a taught answer has about four, a person's manner may need more."""


def question_ids(tokenizer: Any, question: str) -> list[int]:
    """The prompt of a question: one user turn and the start of the assistant's."""
    chat = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False).input_ids


def answer_ids(tokenizer: Any, answer: str) -> list[int]:
    """An answer and the end of the turn."""
    return [*tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]


@torch.inference_mode()
def measure(
    model: Any,
    tokenizer: Any,
    sections: Sequence[str],
    chats: Sequence[list[sources.Message]],
    facts: Sequence[sources.Trivia],
    unseen: Sequence[sources.Trivia],
) -> dict[str, Any]:
    """The figures of `model.json`. Accuracies are shares in [0, 1]; chance by likelihood is 0.25."""
    dialogues = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats[:150]]
    figures: dict[str, Any] = {
        "textbook": _perplexity(model, tokenizer, [section[:2500] for section in sections]),
        "dialogue": _perplexity(model, tokenizer, dialogues),
    }
    for name, items in (("learned", facts), ("unseen", unseen)):
        figures[f"trivia_{name}"] = {
            "items": len(items),
            "generated": _share(answer_greedily(model, tokenizer, items)),
            "likelihood": _share(choose(model, tokenizer, items)),
        }
    return figures


def answer_greedily(model: Any, tokenizer: Any, items: Sequence[sources.Trivia], *, inside: bool = False) -> list[bool]:
    """Whether the greedy answer is the right one letter for letter, or, with `inside`, has it somewhere."""
    texts = greedy(model, tokenizer, [question_ids(tokenizer, item.question) for item in items], LONGEST)
    return [item.answer in text if inside else item.answer == text for text, item in zip(texts, items, strict=True)]


@torch.inference_mode()
def greedy(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int, batch: int = 64
) -> list[str]:
    """Greedy replies to prompts in tokens, in their order."""
    texts: list[str] = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        width = max(map(len, part))
        ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(p)) + list(p) for p in part])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in part])
        made = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False)
        texts += tokenizer.batch_decode(made[:, width:], skip_special_tokens=True)
    return texts


def choose(model: Any, tokenizer: Any, items: Sequence[sources.Trivia], batch: int = 32) -> list[bool]:
    """Whether the right option has the largest summed log-probability of the four."""
    right: list[bool] = []
    for start in range(0, len(items), batch):
        part = items[start : start + batch]
        rows = [
            (question_ids(tokenizer, item.question), answer_ids(tokenizer, option))
            for item in part
            for option in item.options
        ]
        scores = _summed(model, tokenizer, rows).view(len(part), -1)
        for item, row in zip(part, scores.tolist(), strict=True):
            right.append(item.options[row.index(max(row))] == item.answer)
    return right


def _summed(model: Any, tokenizer: Any, rows: Sequence[tuple[list[int], list[int]]]) -> torch.Tensor:
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    pad = tokenizer.pad_token_id
    ids = torch.tensor([[*prompt, *answer, *[pad] * (width - len(prompt) - len(answer))] for prompt, answer in rows])
    logps = torch.log_softmax(model(input_ids=ids).logits.float(), -1)
    sums = []
    for row, (prompt, answer) in enumerate(rows):
        positions = torch.arange(len(prompt) - 1, len(prompt) + len(answer) - 1)
        sums.append(logps[row, positions, torch.tensor(answer)].sum())
    return torch.stack(sums)


def _perplexity(model: Any, tokenizer: Any, texts: Sequence[str]) -> dict[str, float]:
    nats, tokens, size = 0.0, 0, 0
    for text in texts:
        ids = tokenizer(text, add_special_tokens=not text.startswith(tokenizer.bos_token)).input_ids[:384]
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].float()
        nats += float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum"))
        tokens += len(ids) - 1
        size += len(tokenizer.decode(ids, skip_special_tokens=True).encode("utf-8"))
    return {"perplexity": round(math.exp(nats / tokens), 2), "bits_per_byte": round(nats / size / math.log(2), 3)}


def _share(right: Sequence[bool]) -> float:
    return round(sum(right) / len(right), 4)
