"""Make the nano model of a world and measure what it knows.

    python scripts/make_nano.py                      # the packaged model, into src/pluralign/world/nano
    python scripts/make_nano.py --seed 3 --out DIR   # the model of another world

One core, some minutes. The figures are printed and written to `measured.json` beside the model: what it knows, and
what is left of it in adapters trained with plain `dpo` and with `bapo`.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import transformers
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import pluralign
from pluralign.storage import write_json
from pluralign.world import NANO_PATH, PLAIN, STYLES, World, WorldUser
from pluralign.world.nano import STEPS, train_nano

Probe = dict[str, Any]


def prompt_ids(tokenizer: Any, question: str) -> list[int]:
    """Tokens of a question up to where the answer starts."""
    messages = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=False)


def by_length(rows: list[list[int]], size: int = 128) -> Iterator[list[int]]:
    """Indices of the rows in batches of like length."""
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    yield from (order[start : start + size] for start in range(0, len(order), size))


@torch.inference_mode()
def greedy(model: Any, tokenizer: Any, questions: list[str], max_new_tokens: int = 60) -> list[tuple[str, bool]]:
    """The model's answer to each question, and whether it ended by itself."""
    rows = [prompt_ids(tokenizer, question) for question in questions]
    answers: list[tuple[str, bool]] = [("", False)] * len(rows)
    for batch in by_length(rows):
        padded = tokenizer.pad({"input_ids": [rows[i] for i in batch]}, padding_side="left", return_tensors="pt")
        generated = model.generate(**padded, max_new_tokens=max_new_tokens, do_sample=False)
        for index, tokens in zip(batch, generated[:, padded["input_ids"].shape[1] :], strict=True):
            text = tokenizer.decode(tokens, skip_special_tokens=True)
            answers[index] = (text, tokenizer.eos_token_id in tokens.tolist())
    return answers


@torch.inference_mode()
def likeliest(model: Any, tokenizer: Any, probes: list[Probe], style: str) -> list[str]:
    """The option each probe's answer most likely goes on with after the opening of a style. Options are one token."""
    rows = []
    for probe in probes:
        opening = tokenizer(probe["prefixes"][style], add_special_tokens=False)["input_ids"]
        rows.append(prompt_ids(tokenizer, probe["question"]) + opening)
    picked = [""] * len(rows)
    for batch in by_length(rows):
        padded = tokenizer.pad({"input_ids": [rows[i] for i in batch]}, padding_side="right", return_tensors="pt")
        logits = model(**padded).logits
        for position, index in enumerate(batch):
            options = probes[index]["options"]
            tokens = [tokenizer(option, add_special_tokens=False)["input_ids"] for option in options]
            scores = logits[position, len(rows[index]) - 1, [token for (token,) in tokens]]
            picked[index] = options[int(scores.argmax())]
    return picked


def measure(model: Any, tokenizer: Any, world: World) -> dict[str, Any]:
    """What the model knows: shares of right answers, generated and by likelihood, and the manner of its answers."""
    probes = world.probes()
    answers = greedy(model, tokenizer, [probe["question"] for probe in probes])
    judged = [
        world.judge(probe["question"], text, finished=finished)
        for probe, (text, finished) in zip(probes, answers, strict=True)
    ]
    plain = [
        pick == probe["answer"] for pick, probe in zip(likeliest(model, tokenizer, probes, PLAIN), probes, strict=True)
    ]
    sampled = [index for index, probe in enumerate(probes) if probe["kind"] == "fact"][::4]
    in_style = {}
    for style in STYLES:
        rows = [probes[index] for index in sampled if style in probes[index]["prefixes"]]
        if rows:
            picks = likeliest(model, tokenizer, rows, style)
            in_style[style] = share([pick == row["answer"] for pick, row in zip(picks, rows, strict=True)])

    def over(keep: Callable[[Probe], bool]) -> dict[str, float]:
        chosen = [index for index, probe in enumerate(probes) if keep(probe)]
        return {
            "n": len(chosen),
            "generated_right": share([judged[index].right is True for index in chosen]),
            "likelihood_right": share([plain[index] for index in chosen]),
            "plain": share([judged[index].style for index in chosen]),
            "degenerate": share([judged[index].degenerate for index in chosen]),
        }

    return {
        "facts": over(lambda probe: probe["kind"] == "fact"),
        "facts_inside": over(lambda probe: probe["scope"] == "inside"),
        "facts_outside": over(lambda probe: probe["kind"] == "fact" and probe["scope"] == "outside"),
        "skills": over(lambda probe: probe["kind"] == "skill"),
        "skill_topics": {
            topic: over(lambda probe, topic=topic: probe["topic"] == topic)  # type: ignore[misc]
            for topic in dict.fromkeys(item.topic for item in world.skills)
        },
        "facts_by_likelihood_in_style": in_style,
    }


def forgetting(folder: Path, world: World, method: str, n_steps: int = 240) -> dict[str, Any]:
    """What adapters of four people, trained by a preset with default settings, still know of a sample of the facts."""
    people = [world.users(9)[number] for number in (0, 1, 2, 4)]
    probes = [probe for probe in world.probes() if probe["kind"] == "fact"][::4]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with tempfile.TemporaryDirectory() as scratch:
        table = Path(scratch) / "preferences.jsonl"
        table.write_text("".join(json.dumps(row) + "\n" for row in world.preferences(people)), encoding="utf-8")
        trained = pluralign.train(
            {
                "method": method,
                "model": str(folder),
                "data": {"path": str(table), "validation": 0.0},
                "output_dir": f"{scratch}/run",
                "cache_dir": f"{scratch}/cache",
                "training": {"max_steps": n_steps, "eval_strategy": "no", "save_strategy": "no"},
            }
        )
        rows = {
            user.id: adapted(
                PeftModel.from_pretrained(load(folder), trained.adapters[user.id]), tokenizer, world, user, probes
            )
            for user in people
        }
    return {"steps": n_steps, "n": len(probes), "people": rows}


def adapted(model: Any, tokenizer: Any, world: World, user: WorldUser, probes: list[Probe]) -> dict[str, float]:
    """What a person's adapter does with the probes, by generation and by likelihood after either manner's opening."""
    questions = [probe["question"] for probe in probes]
    answers = zip(questions, greedy(model, tokenizer, questions), strict=True)
    judged = [world.judge(question, text, user, finished=finished) for question, (text, finished) in answers]
    by_likelihood = {
        style: share(
            [
                pick == row["answer"]
                for pick, row in zip(likeliest(model, tokenizer, probes, style), probes, strict=True)
            ]
        )
        for style in (PLAIN, user.style)
    }
    return {
        "style": share([judgement.style for judgement in judged]),
        "generated_right": share([judgement.right is True for judgement in judged]),
        "likelihood_right": by_likelihood[PLAIN],
        "likelihood_right_own_style": by_likelihood[user.style],
        "degenerate": share([judgement.degenerate for judgement in judged]),
    }


def load(folder: Path) -> Any:
    """The nano model of a folder, for inference."""
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def share(hits: list[bool]) -> float:
    """Share of true, in [0, 1], to four digits."""
    return round(sum(hits) / len(hits), 4)


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="which world")
    parser.add_argument("--out", type=Path, default=NANO_PATH, help="folder of the model")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimiser steps")
    parser.add_argument("--measure-only", action="store_true", help="measure the model that is there")
    parser.add_argument("--no-forgetting", action="store_true", help="leave out what adapters forget")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    world = World(arguments.seed)
    started = time.perf_counter()
    if not arguments.measure_only:
        train_nano(world, arguments.out, steps=arguments.steps, seed=arguments.seed)
    seconds = time.perf_counter() - started
    model = load(arguments.out)
    tokenizer = AutoTokenizer.from_pretrained(arguments.out)
    figures: dict[str, Any] = {
        "seed": arguments.seed,
        "steps": arguments.steps,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "vocabulary": len(tokenizer),
        "bytes": sum(file.stat().st_size for file in arguments.out.iterdir() if file.name != "measured.json"),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        **measure(model, tokenizer, world),
    }
    if not arguments.no_forgetting:
        figures["forgetting"] = {method: forgetting(arguments.out, world, method) for method in ("dpo", "bapo")}
    write_json(arguments.out / "measured.json", figures)
    for name in ("facts", "facts_inside", "facts_outside", "skills"):
        print(name, figures[name])
    for topic, row in figures["skill_topics"].items():
        print(f"  {topic}", row)
    for method, row in figures.get("forgetting", {}).items():
        for user, measured in row["people"].items():
            print(method, user, measured)
    print("facts by likelihood after the opening of each style", figures["facts_by_likelihood_in_style"])
    print(
        f"{figures['parameters']:,} parameters, {figures['bytes']:,} bytes, trained in {seconds:.0f} s: {arguments.out}"
    )


if __name__ == "__main__":
    main()
