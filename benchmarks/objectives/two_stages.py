"""One policy in two stages: supervised fine-tuning, the same for all methods, then the method."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from methods import METHODS, Method

from pluralign.config import TrainConfig
from pluralign.resolve import resolve
from pluralign.storage import write_text
from pluralign.training import train


@dataclass(frozen=True)
class Budget:
    """What every method may spend.

    Attributes:
        first_steps, first_rate: of the supervised fine-tuning on the chosen responses.
        steps: of the method.
        batch: pairs a step.
    """

    first_steps: int
    first_rate: float
    steps: int
    batch: int

    @property
    def digest(self) -> list[Any]:
        """What decides a result."""
        return list(asdict(self).values())


@dataclass(frozen=True)
class Setting:
    """What a policy is trained on.

    Attributes:
        model: the base.
        tables: the pairs of all groups, and the same as completions with verdicts.
        folder: where first stages are kept.
        cache: of log-probs and base responses.
        seed: of draws and adapter.
        budget: for every method.
        data: keys of the configuration's `data` beside its path.
    """

    model: Path
    tables: tuple[Path, Path]
    folder: Path
    cache: Path
    seed: int
    budget: Budget
    data: Mapping[str, Any] = field(default_factory=dict)

    def prepare(self) -> None:
        """The first stages of all methods."""
        for method in METHODS.values():
            self.first_stage(method)

    def first_stage(self, method: Method) -> Path:
        """The adapter after supervised fine-tuning: one for all methods with the same prompts."""
        what = [method.conditioning, self.tables[0].name, self.seed, self.budget.first_steps, self.budget.first_rate]
        digest = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:8]
        return self._trained(
            {
                "method": "sft",
                "data": {**self.data, "path": str(self.tables[0])},
                "output_dir": str(self.folder / f"first-{digest}"),
                "conditioning": method.conditioning,
                "parameters": {"per": "none"},
                "training": self._training(self.budget.first_steps, self.budget.first_rate, self.budget.batch),
            }
        )

    def second_stage(self, method: Method, rate: float, out: Path) -> Path:
        """The adapter after the method, which begins with the first stage's; at rate 0, that one."""
        first = self.first_stage(method)
        if rate == 0:
            return first
        models = [str(first) if name == "first" else name for name in method.references]
        # As many responses a step, whether they come in pairs or one by one.
        batch = (2 if method.unpaired else 1) * self.budget.batch
        return self._trained(
            {
                **method.changes,
                "method": method.preset,
                "data": {**self.data, "path": str(self.tables[method.unpaired])},
                "output_dir": str(out),
                "conditioning": method.conditioning,
                "parameters": {"per": "none", "start": str(first)},
                "reference": {"models": models},
                "training": self._training(self.budget.steps, rate, batch),
            }
        )

    def _trained(self, values: dict[str, Any]) -> Path:
        common = {
            "model": str(self.model),
            "device": "cpu",
            "cache_dir": str(self.cache),
            "seed": self.seed,
            "evaluation": {"generate": False},
        }
        values["data"]["validation"] = 0.0
        return train(resolve(TrainConfig, {**common, **values})).adapters["_all"]

    @staticmethod
    def _training(steps: int, rate: float, batch: int) -> dict[str, Any]:
        return {
            "max_steps": steps,
            "per_device_train_batch_size": batch,
            "learning_rate": rate,
            "lr_scheduler_type": "constant_with_warmup",
            "warmup_steps": 10,
            "eval_strategy": "no",
            "save_strategy": "no",
            "logging_steps": steps,
        }


def tables(folder: Path, name: str, rows: Callable[[], Sequence[dict[str, Any]]]) -> tuple[Path, Path]:
    """Pairs as a file, and the same as completions with verdicts; the system prompts of MetaAlign are added."""
    paths = folder / f"{name}.jsonl", folder / f"{name}-unpaired.jsonl"
    if not all(path.exists() for path in paths):
        told = {"system_info": "You are an assistant."}
        pairs = [{**row, **told, "user_info": f"I like answers that are {row['group']}."} for row in rows()]
        singles = [
            {
                **{key: value for key, value in row.items() if key not in ("chosen", "rejected")},
                "completion": row[side],
                "label": side == "chosen",
            }
            for row in pairs
            for side in ("chosen", "rejected")
        ]
        folder.mkdir(parents=True, exist_ok=True)
        for path, table in zip(paths, (pairs, singles), strict=True):
            write_text(path, "".join(json.dumps(row) + "\n" for row in table))
    return paths


def system_prompt(method: str, group: str) -> str:
    """What a method puts before the question of a group's member; empty for nothing."""
    wording = str(METHODS[method].conditioning["system"])
    told = {"system_info": "You are an assistant.", "user_info": f"I like answers that are {group}."}
    return wording.format(group=group, **told)


def turns(system: str, prompt: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """A prompt behind its system prompt."""
    return [*([{"role": "system", "content": system}] if system else []), *(dict(turn) for turn in prompt)]
