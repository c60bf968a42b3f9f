"""Prompts answered by the base and by people, side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pluralign.config import GenerateConfig, ModelConfig, TrainConfig
from pluralign.errors import InputError
from pluralign.preferences import Preference, Text, named_people, read_prompts, shown
from pluralign.resolve import resolve
from pluralign.storage import check_place, write_text

if TYPE_CHECKING:
    from rich.table import Table

    from pluralign.evaluation.policies import Policies
    from pluralign.models import Base


@dataclass
class Answers:
    """One prompt, the base's answer and each person's."""

    prompt: Text
    base: str
    people: dict[str, str]


def answer_prompts(config: GenerateConfig) -> list[Answers]:
    """Answer every prompt with the base and with each person's adapter; the base is loaded once.

    Args:
        config: the run, the prompts, who answers, and how it is sampled.

    Returns:
        Answers in the order of the prompts; also written to `config.output` as JSONL where that is given.

    Raises:
        InputError: there is no such run or person, or a prompt or a setting cannot be used; names the place.
    """
    from pluralign.models import load_base
    from pluralign.models.anchoring import encoder_of, warn_of_losses
    from pluralign.models.generation import check_settings
    from pluralign.models.matmul import quick_matmul

    check_settings(config.generation)
    if config.output:
        check_place(config.output)
    run = Path(config.run)
    if not (run / "config.yaml").is_file():
        raise InputError("there is no config.yaml", where=str(run), fix="Give the output folder of `pluralign train`.")
    trained = resolve(TrainConfig, run / "config.yaml")
    people = _chosen_people(run, trained, config.users)
    given = read_prompts(config.prompts)
    base = load_base(_base_of(trained, config.device))
    prompts = [_as_turn(row, base, plain=config.plain) for row in given]
    encoded = encoder_of(base, trained.data).encode_many(prompts, branches=())
    warn_of_losses([], [row.cut for row in encoded])
    with quick_matmul():
        said, by_folder = _answered(base, [one.prompt_ids for one in encoded], list(people.values()), config)
    answered = [
        Answers(row.prompt, text, {user: by_folder[folder][number] for user, folder in people.items()})
        for number, (row, text) in enumerate(zip(prompts, said, strict=True))
    ]
    if config.output:
        write_text(config.output, "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in answered))
    return answered


def _answered(
    base: Base, prompts: Sequence[list[int]], folders: Sequence[Path], config: GenerateConfig
) -> tuple[list[str], dict[Path, list[str]]]:
    """What the base says to each prompt, and what each folder's policy does; people go through the same batches."""
    from pluralign.evaluation.policies import of_one_shape, opened_policies
    from pluralign.models import generate

    settings, seed = config.generation, config.seed
    said = generate(base.model, base.tokenizer, prompts, settings, seed=seed, description="base")
    found: dict[Path, list[str]] = {}
    for some in of_one_shape(base, folders):
        with opened_policies(base, some) as (policies, broken):
            if broken:
                raise InputError(next(iter(broken.values())))
            made = generate(
                policies.model,
                base.tokenizer,
                [prompt for _ in some for prompt in prompts],
                settings,
                seed=seed,
                description="people",
                around=partial(_rows_of, policies, len(prompts)),
            )
        for number, folder in enumerate(some):
            own = made[number * len(prompts) : (number + 1) * len(prompts)]
            found[folder] = [answer.text for answer in own]
    return [answer.text for answer in said], found


def _rows_of(policies: Policies, prompts: int, indices: list[int]) -> AbstractContextManager[None]:
    """The context in which these answers are given, of people who are asked so many prompts each."""
    return policies.rows_of([index // prompts for index in indices])


def answers_table(answers: Answers) -> Table:
    """One prompt's answers as a table for the terminal."""
    from rich.table import Table
    from rich.text import Text as Plain

    prompt = answers.prompt if isinstance(answers.prompt, str) else answers.prompt[-1]["content"]
    table = Table(title=Plain(str(prompt).strip()), title_justify="left", show_header=False, show_lines=True)
    table.add_row(Plain("base", style="dim"), Plain(answers.base))
    for user, text in answers.people.items():
        table.add_row(Plain(shown(user)), Plain(text))
    return table


def _base_of(trained: TrainConfig, device: str) -> ModelConfig:
    names = ModelConfig.__dataclass_fields__
    return ModelConfig(**{name: getattr(trained, name) for name in names} | {"device": device})


def _chosen_people(run: Path, trained: TrainConfig, users: str | list[str] | None) -> dict[str, Path]:
    from pluralign.evaluation.runs import adapters_of

    folders, _ = adapters_of(run, trained)
    return folders if users is None else {user: folders[user] for user in named_people(users, folders, where=str(run))}


def _as_turn(row: Preference, base: Base, *, plain: bool) -> Preference:
    if isinstance(row.prompt, str) and base.tokenizer.chat_template and not plain:
        return replace(row, prompt=[{"role": "user", "content": row.prompt}])
    return row
