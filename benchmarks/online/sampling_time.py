"""How long sampling takes: 1,000 prompts, two responses each, of up to 48 tokens, by eight people's policies at once.

    python benchmarks/online/sampling_time.py

On the packaged nano model, in this process, with what `pluralign online` samples with: an adapter a person in the bank,
and log-probs noted. Two workloads: responses that end where the model ends them, and the worst case, in which none ends
before its 48th token. `seconds` is what a clock says, `core_seconds` what this process had of its cores: on a machine
that others use, the first says little.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parents[1]
sys.path[:0] = [str(BENCHMARKS)]

PROMPTS, RESPONSES, TOKENS, PEOPLE = 1000, 2, 48, 8
RESULTS = Path(__file__).parent / "results" / "sampling.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch_size", type=int, nargs="+", default=[32, 256])
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    import grid

    cells = [measured(arguments.threads, size, ends=ends) for size in arguments.batch_size for ends in (True, False)]
    sizes = " ".join(map(str, arguments.batch_size))
    options = f"--threads {arguments.threads} --batch_size {sizes}"
    grid.write(RESULTS, cells, command=f"python benchmarks/online/sampling_time.py {options}", **_workload())


def _workload() -> dict[str, Any]:
    return {"prompts": PROMPTS, "responses": RESPONSES, "max_new_tokens": TOKENS, "people": PEOPLE}


def measured(threads: int, batch_size: int, *, ends: bool) -> dict[str, Any]:
    """One workload: seconds, and tokens that were made."""
    import torch

    from pluralign.config import GenerationConfig, ModelConfig, ParametersConfig
    from pluralign.models.bank import LoraBank
    from pluralign.models.base import load_base
    from pluralign.models.generation import generate
    from pluralign.world import World

    torch.set_num_threads(threads)
    base = load_base(ModelConfig(model="nano"))
    if not ends:
        base.tokenizer.eos_token = base.model.generation_config.eos_token_id = None
    bank = LoraBank(base, ParametersConfig(), PEOPLE)
    for slot in range(PEOPLE):
        bank.admit(slot, seed=slot)
    asked = [question for item in World(0).facts for question in item.all_questions][:PROMPTS]
    turns = [[{"role": "user", "content": question}] for question in asked for _ in range(RESPONSES)]
    prompts = [
        base.tokenizer.apply_chat_template(turn, tokenize=True, add_generation_prompt=True, return_dict=False)
        for turn in turns
    ]
    settings = GenerationConfig(do_sample=True, max_new_tokens=TOKENS, batch_size=batch_size)
    began, spent = time.perf_counter(), time.process_time()
    with torch.no_grad():
        said = generate(
            base.model,
            base.tokenizer,
            prompts,
            settings,
            seed=list(range(len(prompts))),
            logps=True,
            around=lambda rows: bank.rows(torch.tensor([row // RESPONSES % PEOPLE for row in rows])),
        )
    found = {"seconds": time.perf_counter() - began, "core_seconds": time.process_time() - spent}
    bank.detach()
    made = sum(len(one.token_ids) + (one.end is not None) for one in said)
    cell = {"threads": threads, "batch_size": batch_size, "ends": ends, "tokens": made}
    print(cell := {**cell, **{name: round(value, 1) for name, value in found.items()}}, flush=True)
    return cell


if __name__ == "__main__":
    main()
