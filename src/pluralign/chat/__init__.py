"""`pluralign chat`: the base and a person side by side, in the terminal."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pluralign.chat_config import ChatConfig
from pluralign.config import ModelConfig, TrainConfig
from pluralign.errors import InputError
from pluralign.resolve import resolve

if TYPE_CHECKING:
    from pluralign.models import Base

__all__ = ["chat"]

RUNS = ("runs/train", "runs/demo")
"""Where `pluralign train` and `pluralign demo` leave a run that is not named otherwise."""


def chat(config: ChatConfig) -> None:
    """Talk, until the input ends, on the process's standard streams.

    On a terminal answers grow in columns, lines are edited, names are completed, and Ctrl-C stops an answer; a pipe is
    read line by line. The base is loaded once, and one person's adapter at a time.

    Args:
        config: the run, who talks at first, how answers are made.

    Raises:
        InputError: there is no such run or person, or a setting cannot be used; names the place.
    """
    from pluralign.chat.asking import Asking
    from pluralign.chat.lines import lines_of
    from pluralign.chat.speakers import Speakers
    from pluralign.chat.talk import Talk, person_of
    from pluralign.evaluation.runs import adapters_of
    from pluralign.models import load_base
    from pluralign.models.generation import check_settings
    from pluralign.models.matmul import quick_matmul

    check_settings(config.generation)
    run = _run(config)
    trained = resolve(TrainConfig, run / "config.yaml" if run else {})
    people, skipped = adapters_of(run, trained) if run else ({}, {})
    where = str(run or f"no run in {' or '.join(RUNS)} (`pluralign demo` makes one)")
    first = person_of(config.user, people, where=where) if config.user else next(iter(people), None)
    base = load_base(_model(trained, config.device))
    asking = Asking(base, trained, config)
    with (
        quick_matmul(),
        _forgiving_streams(),
        Speakers(base, config.generation, seed=config.seed) as speakers,
        lines_of(sys.stdin, sys.stdout) as lines,
    ):
        talk = Talk(people, speakers, asking, lines, run=where, skipped=skipped)
        talk.greet(_named(base), first)
        talk.run()


def _run(config: ChatConfig) -> Path | None:
    """The run's folder; None where none is named and there is none in the usual places."""
    for run in map(Path, [config.run] if config.run else RUNS):
        if (run / "config.yaml").is_file():
            return run
        if config.run:
            fix = "Give the output folder of `pluralign train`; `pluralign demo` makes one in a few minutes."
            raise InputError("there is no config.yaml", where=str(run), fix=fix)
    return None


def _model(trained: TrainConfig, device: str) -> ModelConfig:
    names = ModelConfig.__dataclass_fields__
    return ModelConfig(**{name: getattr(trained, name) for name in names} | {"device": device})


def _named(base: Base) -> str:
    return Path(base.name).name or base.name


@contextlib.contextmanager
def _forgiving_streams() -> Iterator[None]:
    """What is no text in the terminal's encoding does not end the talk: it can be read, and it can be written."""
    changed: list[tuple[Any, str]] = []
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace"), (sys.stderr, "backslashreplace")):
        if hasattr(stream, "reconfigure"):
            changed.append((stream, stream.errors or "strict"))
            stream.reconfigure(errors=errors)
    try:
        yield
    except BrokenPipeError:
        # Whoever reads has seen enough. Python would complain once more when it flushes at its end.
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
    finally:
        for stream, errors in changed:
            stream.reconfigure(errors=errors)
