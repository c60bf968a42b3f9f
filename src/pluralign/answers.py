"""Prompts answered by the base and by people, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pluralign.config import GenerateConfig, ModelConfig, TrainConfig
from pluralign.errors import InputError
from pluralign.preferences import Preference, Text, named_people, read_prompts, shown
from pluralign.preferences.conditioning import Conditioner, overflow_of
from pluralign.resolve import resolve
from pluralign.storage import check_place, write_jsonl

if TYPE_CHECKING:
    from rich.table import Table

    from pluralign.evaluation.policies import Policies
    from pluralign.fewshot.choosing import Annotator
    from pluralign.models import Base, Encoder

CONDITIONS = ("group", "user_info", "system_info")
"""Keys that give a value to a field of the templates that a run conditions prompts with."""


@dataclass
class Answers:
    """One prompt, the base's answer and each person's."""

    prompt: Text
    base: str
    people: dict[str, str]


def answer_prompts(config: GenerateConfig) -> list[Answers]:
    """Answer every prompt with the base and with each person's adapter; the base is loaded once.

    Where the run conditions prompts, they are conditioned here too, for base and people alike; what is returned are the
    prompts without it.

    Args:
        config: the run, the prompts, what they are conditioned with, who answers, and how it is sampled.

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
    annotator = _annotator(config)
    if config.output:
        check_place(config.output)
    run = Path(config.run)
    if not (run / "config.yaml").is_file():
        raise InputError("there is no config.yaml", where=str(run), fix="Give the output folder of `pluralign train`.")
    trained = resolve(TrainConfig, run / "config.yaml")
    people = _chosen_people(run, trained, config.users)
    given = read_prompts(config.prompts)
    _check_conditions(config, trained)
    base = load_base(_base_of(trained, config.device))
    encoder = encoder_of(base, trained.data)
    prompts = [_as_turn(row, base, plain=config.plain) for row in given]
    encoded = encoder.encode_many(_conditioned(prompts, config, trained, encoder), branches=())
    warn_of_losses([], [row.cut for row in encoded])
    with quick_matmul():
        ids, folders = [one.prompt_ids for one in encoded], list(people.values())
        if annotator is None:
            said, by_folder = _answered(base, ids, folders, config)
        else:
            best = partial(annotator.best, [row.prompt for row in given])
            said, by_folder = _best_answered(base, ids, folders, config, best)
    answered = [
        Answers(row.prompt, text, {user: by_folder[folder][number] for user, folder in people.items()})
        for number, (row, text) in enumerate(zip(prompts, said, strict=True))
    ]
    if config.output:
        write_jsonl(config.output, map(asdict, answered))
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


def _best_answered(
    base: Base,
    prompts: Sequence[list[int]],
    folders: Sequence[Path],
    config: GenerateConfig,
    best: Callable[[list[list[str]]], list[int]],
) -> tuple[list[str], dict[Path, list[str]]]:
    """`_answered`, several times with seeds of their own: of each answer the one that is taken first."""
    sampled = replace(config.generation, do_sample=True)
    made = [
        _answered(base, prompts, folders, replace(config, generation=sampled, seed=config.seed + number))
        for number in range(config.best_of)
    ]

    def chosen(tries: list[list[str]]) -> list[str]:
        candidates = [list(some) for some in zip(*tries, strict=True)]
        return [some[place] for some, place in zip(candidates, best(candidates), strict=True)]

    by_folder = {folder: chosen([people[folder] for _, people in made]) for folder in folders}
    return chosen([said for said, _ in made]), by_folder


def _annotator(config: GenerateConfig) -> Annotator | None:
    """Whose taste chooses; None where there is nothing to choose from."""
    if config.best_of < 1:
        raise InputError(f"best_of is {config.best_of}", fix="It is 1 (no choice) or more.")
    given = {"taste": bool(config.taste), "answers": bool(config.answers)}
    if config.best_of == 1:
        for name in (name for name, there in given.items() if there):
            raise InputError("there is nothing to choose from", where=f"--{name}", fix="Set best_of, or leave it out.")
        return None
    for name in (name for name, there in given.items() if not there):
        found = f"best_of is {config.best_of}, and nothing says which answer is best"
        raise InputError(found, where=f"--{name}", fix="Give what `pluralign fewshot fit` wrote, and some answers.")
    from pluralign.fewshot.choosing import Annotator

    return Annotator.of_files(str(config.taste), config.answers)


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


def _given(config: GenerateConfig) -> dict[str, str]:
    return {name: value for name in CONDITIONS if (value := getattr(config, name)) is not None}


def _check_conditions(config: GenerateConfig, trained: TrainConfig) -> None:
    """Raise now, and not when the base is there, where a run that does not condition prompts is given values."""
    active = Conditioner(trained.conditioning).active
    for name in _given(config) if not active else ():
        raise InputError("the run does not condition prompts", where=f"--{name}", fix="Leave it out.")


def _conditioned(
    prompts: Sequence[Preference], config: GenerateConfig, trained: TrainConfig, encoder: Encoder
) -> Sequence[Preference]:
    """Prompts as the run's policies know them, with the values that the command was given.

    Raises:
        InputError: a value has no place in these prompts, or one that they need is not given.
    """
    conditioner = Conditioner.of(trained.conditioning, encoder.tokenizer)
    if not conditioner.active:
        return prompts
    for row in prompts:
        if not conditioner.covers(row):
            kinds = ("text", "messages") if isinstance(row.prompt, str) else ("messages", "text")
            found = "the prompt is {}, and the run conditions prompts of {} only".format(*kinds)
            fix = "Text is taken as it is with --plain, and as a user's turn without."
            raise InputError(found, where=str(row.place), fix=fix)
    given, needed = _given(config), conditioner.needed(prompts)
    named = ", ".join(f"{{{name}}}" for name in needed) or "nothing of the person"
    for name in given:
        if name not in needed:
            raise InputError(f"what the run puts into such prompts is {named}", where=f"--{name}", fix="Leave it out.")
    for name in needed:
        if trained.conditioning.absent is None and not given.get(name, "").strip():
            lacking, fix = "is not given", f"Give --{name}."
            if name not in CONDITIONS:
                lacking, fix = "has no key here", "From Python, pluralign.preferences.conditioning takes any."
            raise InputError(f"the run puts {named} into such prompts, and {{{name}}} {lacking}", fix=fix)
    return conditioner.prompts(prompts, given, overflow=overflow_of(encoder))


def _as_turn(row: Preference, base: Base, *, plain: bool) -> Preference:
    if isinstance(row.prompt, str) and base.tokenizer.chat_template and not plain:
        return replace(row, prompt=[{"role": "user", "content": row.prompt}])
    return row
