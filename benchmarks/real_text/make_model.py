"""Train a small chat model on real text within a budget of CPU time, and measure what it learned.

    python benchmarks/real_text/make_model.py --data DIR --minutes 32 --out MODEL

MODEL gets a plain `AutoModelForCausalLM`/`AutoTokenizer` folder, `model.json` (what it is and what it knows),
`learned.jsonl` (probes of the trivia it was taught) and `unseen.jsonl` (trivia of the same kind it never saw).
`--minutes` counts CPU time of the one thread that is used, so that a busy machine makes the same model, only later;
the steps taken depend on the machine, so two runs give like models and not the same one.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import measure
import muon
import sources
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pluralign.models.matmul import quick_matmul

SPECIAL = ("<pad>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>")
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CONTEXT = 384
ROWS = ("text", "text", "text", "text", "dialogue", "dialogue", "instruction", "trivia")
"""What the rows of a step hold: half of them textbook, a quarter dialogues. Trivia fills the gaps in chat rows."""
TRIVIA_A_STEP = 24
"""Questions that fit into a step, measured; decides how many facts can be repeated often enough."""
REPEATS = 60
"""How often a question is seen: a model of this size knows it by heart after about 40 times."""
MOST_FACTS = 1000
HELD_OUT = 50
"""Every 50th section and dialogue is kept for the perplexity."""
IGNORED = -100
SLOW_BFLOAT16 = torch.backends.cpu.get_cpu_capability() == "AVX2"
"""Without AVX-512 products in bfloat16 are emulated: float32 is far quicker there."""


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE that starts a text with BOS and has a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = TEMPLATE
    return fast


def new_model(tokenizer: PreTrainedTokenizerFast, hidden: int, layers: int) -> LlamaForCausalLM:
    """A Llama with grouped-query attention and tied embeddings, float32."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3 // 64 * 64,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=1,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


class Mix:
    """Rows of `CONTEXT` tokens, endlessly: textbook, dialogues, instructions, trivia, in fixed shares.

    Conversations are packed whole; textbook sections run on from row to row. The loss covers all tokens, but of a
    trivia question only the answer.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        texts: Sequence[str],
        dialogues: Sequence[list[sources.Message]],
        instructions: Sequence[list[sources.Message]],
        facts: Sequence[sources.Trivia],
        seed: int,
    ) -> None:
        self.tokenizer, self.random = tokenizer, random.Random(seed)
        self.texts = self._cycle([self._section(text) for text in texts])
        self.tail = _document([])
        chats = {"dialogue": dialogues, "instruction": instructions}
        self.chats = {name: self._cycle(self._conversations(chat)) for name, chat in chats.items()}
        self.chats["trivia"] = self._cycle([self._fact(fact) for fact in facts])
        self.waiting: dict[str, Tensor] = {}
        self.asked = 0

    def batch(self) -> tuple[Tensor, Tensor]:
        """`input_ids` and `labels`, both int64 `[len(ROWS), CONTEXT]`; labels are not shifted."""
        rows = [self._text_row() if kind == "text" else self._chat_row(kind) for kind in ROWS]
        table = torch.stack(rows).long()
        return table[..., 0].contiguous(), table[..., 1].contiguous()

    def _cycle(self, items: Sequence[Tensor]) -> Iterator[Tensor]:
        while True:
            order = list(range(len(items)))
            self.random.shuffle(order)
            yield from (items[index] for index in order)

    def _section(self, text: str) -> Tensor:
        return _document([*self.tokenizer(text, verbose=False).input_ids, self.tokenizer.eos_token_id])

    def _conversations(self, chats: Sequence[list[sources.Message]]) -> list[Tensor]:
        rendered = [self.tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
        encoded = self.tokenizer(rendered, add_special_tokens=False, verbose=False).input_ids
        return [_document(ids) for ids in encoded if len(ids) <= CONTEXT]

    def _fact(self, fact: sources.Trivia) -> Tensor:
        prompt = measure.question_ids(self.tokenizer, fact.question)
        return _document(prompt + measure.answer_ids(self.tokenizer, fact.answer), unlearned=len(prompt))

    def _text_row(self) -> Tensor:
        while len(self.tail) < CONTEXT:
            self.tail = torch.cat([self.tail, next(self.texts)])
        row, self.tail = self.tail[:CONTEXT], self.tail[CONTEXT:]
        return row

    def _chat_row(self, kind: str) -> Tensor:
        row: list[Tensor] = []
        room = CONTEXT
        for source in (kind, "trivia"):
            while True:
                chat = self.waiting.pop(source, None)
                chat = next(self.chats[source]) if chat is None else chat
                if len(chat) > room:
                    self.waiting[source] = chat
                    break
                row.append(chat)
                room -= len(chat)
                self.asked += source == "trivia"
        return torch.cat([*row, _document([self.tokenizer.pad_token_id] * room, unlearned=room)])


def _document(ids: Sequence[int], *, unlearned: int = 0) -> Tensor:
    """int32 `[len(ids), 2]`: tokens, and labels that leave out the first `unlearned`."""
    labels = [IGNORED] * unlearned + list(ids[unlearned:])
    return torch.tensor([list(ids), labels], dtype=torch.int32).T


def _muon(matrices: Sequence[Tensor], rate: float) -> torch.optim.Optimizer:
    if SLOW_BFLOAT16:
        return muon.Muon(matrices, lr=rate, weight_decay=0.1)
    return torch.optim.Muon(matrices, lr=rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")


class Trainer:
    """AdamW for the embedding and norms, Muon for the matrices; a rate that follows the share of the budget spent."""

    def __init__(self, model: LlamaForCausalLM, matrix_rate: float, rate: float) -> None:
        matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
        rest = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
        self.model = model
        self.optimizers: list[torch.optim.Optimizer] = [
            _muon(matrices, matrix_rate),
            torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self.peaks = [matrix_rate, rate]

    def step(self, ids: Tensor, labels: Tensor, spent: float) -> float:
        """One optimiser step at `spent` in [0, 1] of the budget; the loss in nats a token."""
        shape = min(1.0, spent / 0.02) if spent < 0.02 else 0.5 * (1 + math.cos(math.pi * min(1.0, spent)))
        for optimizer, peak in zip(self.optimizers, self.peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * max(shape, 0.01)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not SLOW_BFLOAT16):
            hidden = self.model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
            # All positions, learned or not: kernels are prepared anew for every shape that comes by.
            logits = self.model.lm_head(hidden).flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits.float(), labels[:, 1:].flatten(), ignore_index=IGNORED)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())


def seconds_a_step(tokenizer: PreTrainedTokenizerFast, hidden: int, layers: int) -> float:
    """CPU seconds of a step, measured on a model that is thrown away."""
    trainer = Trainer(new_model(tokenizer, hidden, layers), 1e-3, 1e-3)
    ids = torch.randint(len(tokenizer), (len(ROWS), CONTEXT))
    trainer.step(ids, ids, 0.5)
    begun = time.process_time()
    for _ in range(4):
        trainer.step(ids, ids, 0.5)
    return (time.process_time() - begun) / 4


def split(items: Sequence[object]) -> tuple[list, list]:
    """(to learn from, held out)."""
    return [x for i, x in enumerate(items) if i % HELD_OUT], [x for i, x in enumerate(items) if i % HELD_OUT == 0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the data folder")
    parser.add_argument("--out", type=Path, required=True, help="folder of the model")
    parser.add_argument("--minutes", type=float, default=32.0, help="budget in minutes of one core, all included")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=192)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--matrix-rate", type=float, default=5e-3, help="peak learning rate of the matrices (Muon)")
    parser.add_argument("--rate", type=float, default=4e-3, help="peak learning rate of the rest (AdamW)")
    arguments = parser.parse_args()
    with quick_matmul():
        build(arguments)


def build(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    wall = time.time()
    sections, held_sections = split(sources.textbook_sections(arguments.data))
    chats, held_chats = split(sources.dialogues(arguments.data))
    taught, trivia = sources.instructions(arguments.data), sources.trivia(arguments.data)
    rng = random.Random(arguments.seed)
    sample = rng.sample(sections, 150) + [" ".join(m["content"] for m in chat) for chat in rng.sample(chats, 1500)]
    tokenizer = train_tokenizer(sample + [f"{item.question} {item.answer}" for item in trivia], arguments.vocabulary)
    pace = seconds_a_step(tokenizer, arguments.hidden, arguments.layers)
    # The measurements at the end take about a tenth of a short budget and less of a long one.
    budget = 60 * arguments.minutes * 0.97 - 15
    expected = (budget - time.process_time()) / pace
    number = max(40, min(MOST_FACTS, int(expected * TRIVIA_A_STEP / REPEATS)))
    facts, unseen = trivia[:number], trivia[-500:]
    # A short budget does not tokenize text that it will never reach.
    sections = sections[: max(100, int(len(sections) * expected * len(ROWS) * CONTEXT / 9e6))]
    chats = chats[: max(500, int(len(chats) * expected * len(ROWS) * CONTEXT / 9e6))]
    mix = Mix(tokenizer, sections, chats, taught, facts, arguments.seed)
    model = new_model(tokenizer, arguments.hidden, arguments.layers)
    trainer = Trainer(model, arguments.matrix_rate, arguments.rate)
    print(f"{model.num_parameters():,} parameters, {number} facts, about {expected:.0f} steps", flush=True)
    steps, begun, smooth = 0, time.process_time(), None
    while (spent := (time.process_time() - begun) / (budget - begun)) < 1.0:
        loss = trainer.step(*mix.batch(), spent)
        smooth = loss if smooth is None else 0.98 * smooth + 0.02 * loss
        steps += 1
        if steps % 100 == 0:
            print(f"step {steps}  {spent:6.1%}  loss {smooth:.3f}  wall {time.time() - wall:.0f} s", flush=True)
    model.eval()
    arguments.out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    for name, items in (("learned", facts), ("unseen", unseen)):
        lines = "".join(json.dumps(item.probe()) + "\n" for item in items)
        (arguments.out / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    card = {
        "parameters": model.num_parameters(),
        "vocabulary": len(tokenizer),
        "context": CONTEXT,
        "seed": arguments.seed,
        "minutes_of_one_core": arguments.minutes,
        "steps": steps,
        "tokens": steps * len(ROWS) * CONTEXT,
        "facts": number,
        "repeats_of_a_fact": round(mix.asked / number, 1),
        **measure.measure(model, tokenizer, held_sections, held_chats, facts, unseen),
        "wall_seconds": round(time.time() - wall),
        "cpu_seconds": round(time.process_time()),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    (arguments.out / "model.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(card, indent=2))


if __name__ == "__main__":
    main()
