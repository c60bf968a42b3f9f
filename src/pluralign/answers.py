"""Prompts answered by the base and by people, side by side."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pluralign.config import GenerateConfig, ModelConfig, TrainConfig
from pluralign.errors import InputError
from pluralign.preferences import Text
from pluralign.resolve import resolve
from pluralign.storage import write_text

if TYPE_CHECKING:
    from rich.table import Table

    from pluralign.models import Base


@dataclass
class Answers:
    """One prompt and what everybody answers; `None` is the base."""

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
        InputError: there is no such run or person, or a prompt leaves no room for an answer.
    """
    from pluralign.models import Encoder, context_length, generate, load_base
    from pluralign.models.adapters import detach_adapter, load_adapter

    run = Path(config.run)
    trained = resolve(TrainConfig, run / "config.yaml")
    people = _chosen_people(run, config.users)
    base = load_base(_base_of(trained, config.device))
    encoder = Encoder(
        base.tokenizer,
        max_prompt_length=trained.data.max_prompt_length,
        max_response_length=config.generation.max_new_tokens,
        context_length=context_length(base.model),
        chat_template=trained.data.chat_template,
    )
    prompts = [_as_prompt(text, base, plain=config.plain) for text in _read_prompts(config.prompts)]
    token_ids = [encoder.prompt_ids(prompt) for prompt in prompts]

    def answers_of(model: Any, name: str) -> list[str]:
        made = generate(model, base.tokenizer, token_ids, config.generation, seed=config.seed, description=name)
        return [answer.text for answer in made]

    answered = [Answers(prompt, text, {}) for prompt, text in zip(prompts, answers_of(base.model, "base"), strict=True)]
    for user, folder in people.items():
        policy = load_adapter(base, folder)
        for row, text in zip(answered, answers_of(policy, user), strict=True):
            row.people[user] = text
        detach_adapter(policy)
    if config.output:
        write_text(config.output, "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in answered))
    return answered


def answers_table(answers: Answers) -> Table:
    """One prompt's answers as a table for the terminal."""
    from rich.table import Table
    from rich.text import Text as Plain

    prompt = answers.prompt if isinstance(answers.prompt, str) else answers.prompt[-1].get("content", "")
    table = Table(title=Plain(str(prompt).strip()), title_justify="left", show_header=False, show_lines=True)
    table.add_row(Plain("base", style="dim"), Plain(answers.base))
    for user, text in answers.people.items():
        table.add_row(Plain(user), Plain(text))
    return table


def _base_of(trained: TrainConfig, device: str) -> ModelConfig:
    names = ModelConfig.__dataclass_fields__
    return ModelConfig(**{name: getattr(trained, name) for name in names} | {"device": device})


def _chosen_people(run: Path, users: list[str] | None) -> dict[str, Path]:
    from pluralign.models.adapters import read_index

    folders = {user: run / "adapters" / name for user, name in read_index(run).people.items()}
    unknown = [user for user in users or () if user not in folders]
    if unknown:
        known = ", ".join(repr(user) for user in list(folders)[:10])
        raise InputError(f"no adapter of {unknown[0]!r}", where=str(run), fix=f"There are {known}.")
    return folders if users is None else {user: folders[user] for user in users}


def _read_prompts(prompts: str | list[str]) -> Iterator[Text]:
    given = [prompts] if isinstance(prompts, str) else prompts
    if not given:
        raise InputError("no prompt is given", fix="Name one, or a file of them, with --prompts.")
    for item in given:
        path = Path(item)
        if len(item) < 250 and path.suffix in (".jsonl", ".txt") and path.is_file():
            yield from _prompts_of_file(path)
        else:
            yield item


def _prompts_of_file(path: Path) -> Iterator[Text]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        if path.suffix == ".txt":
            yield line
            continue
        try:
            prompt = json.loads(line)["prompt"]
        except (json.JSONDecodeError, KeyError, TypeError):
            raise InputError("not a JSON object with a `prompt`", where=f"{path}, row {number}") from None
        if not isinstance(prompt, str | list) or not prompt:
            raise InputError("the prompt is neither text nor messages", where=f"{path}, row {number}")
        yield prompt


def _as_prompt(text: Text, base: Base, *, plain: bool) -> Text:
    if isinstance(text, str) and base.tokenizer.chat_template and not plain:
        return [{"role": "user", "content": text}]
    return text
