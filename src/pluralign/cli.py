"""The command line: the table of commands, and the way from arguments to one of them. Help comes before torch."""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from pluralign import __version__, commands
from pluralign.chat_config import ChatConfig
from pluralign.commands import DONE
from pluralign.compare_config import CompareConfig
from pluralign.config import (
    AnchorTableConfig,
    CheckConfig,
    DemoConfig,
    EvaluateConfig,
    FewshotAskConfig,
    FewshotEvaluateConfig,
    FewshotFitConfig,
    FewshotPredictConfig,
    GenerateConfig,
    MetaPairsConfig,
    PeopleListConfig,
    PeopleRemoveConfig,
    PeopleShowConfig,
    TrainConfig,
    WorldConfig,
)
from pluralign.errors import InputError, PluralignError
from pluralign.online_config import OnlineConfig, RelabelConfig
from pluralign.report_config import ReportConfig
from pluralign.reward_config import RewardTrainConfig
from pluralign.winrate_config import WinRateConfig

USAGE, INTERRUPTED = 2, 130
_KEY = re.compile(r"^--[a-z][\w.-]*(?==|$)")
"""A key as it may be typed, `--user-info` for `--user_info`; what stands behind `=` is a value."""


@dataclass(frozen=True)
class Command:
    """A command's configuration and the function that runs it.

    Attributes:
        config: its keys.
        run: takes the configuration, returns the exit code.
        first: the key that a first argument without a name is the value of.
        several: whether all arguments before the first key belong to it, as a list.
        again: the key that may be given more than once, each time with one more value.
    """

    config: type[Any]
    run: Callable[[Any], int]
    first: str | None = None
    several: bool = False
    again: str | None = None


COMMANDS: dict[str, Command] = {
    "demo": Command(DemoConfig, commands.demo),
    "data check": Command(CheckConfig, commands.data_check, first="--data"),
    "data meta-pairs": Command(MetaPairsConfig, commands.data_meta_pairs, first="--data"),
    "world make": Command(WorldConfig, commands.world_make),
    "anchor": Command(AnchorTableConfig, commands.anchor),
    "train": Command(TrainConfig, commands.train),
    "online": Command(OnlineConfig, commands.online),
    "relabel": Command(RelabelConfig, commands.relabel, first="--run"),
    "reward train": Command(RewardTrainConfig, commands.reward_train, first="--data"),
    "evaluate": Command(EvaluateConfig, commands.evaluate),
    "compare": Command(CompareConfig, commands.compare, first="--runs", several=True, again="--fail_if"),
    "winrate": Command(WinRateConfig, commands.winrate, first="--runs", several=True),
    "report": Command(ReportConfig, commands.report, first="--runs", several=True),
    "generate": Command(GenerateConfig, commands.generate),
    "chat": Command(ChatConfig, commands.chat, first="--run"),
    "fewshot fit": Command(FewshotFitConfig, commands.fewshot_fit, first="--data", several=True),
    "fewshot predict": Command(FewshotPredictConfig, commands.fewshot_predict),
    "fewshot ask": Command(FewshotAskConfig, commands.fewshot_ask),
    "fewshot evaluate": Command(FewshotEvaluateConfig, commands.fewshot_evaluate, first="--data", several=True),
    "people list": Command(PeopleListConfig, commands.people_list, first="--run"),
    "people show": Command(PeopleShowConfig, commands.people_show, first="--run"),
    "people remove": Command(PeopleRemoveConfig, commands.people_remove, first="--run"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: without the program's name; by default those of the process.

    Returns:
        0 done; 1 partly done, or a condition failed; 2 usage or input; 130 interrupted.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return DONE if arguments else USAGE
    if arguments[0] == "--version":
        print(f"pluralign {__version__}")
        return DONE
    name, rest = _command(arguments)
    if name is None and rest[1:] in ([], ["-h"], ["--help"]) and any(_under(one, rest[0]) for one in COMMANDS):
        print(_help(rest[0]))
        return DONE if rest[1:] else USAGE
    if name is None:
        return _fail(f"no command {' '.join(arguments[:2])!r}. `pluralign --help` lists them")
    return _run(name, rest)


def _run(name: str, arguments: list[str]) -> int:
    from pluralign.resolve import parse

    command = COMMANDS[name]
    try:
        arguments = named_arguments(name, arguments)
        config = parse(command.config, arguments, prog=f"pluralign {name}")
    except PluralignError as error:
        return _fail(f"{error}\n`pluralign {name} --help` lists the keys", error.exit_code)
    except SystemExit as stop:
        return int(stop.code or 0)
    warnings.showwarning = _show_warning
    try:
        return command.run(config)
    except PluralignError as error:
        return _fail(str(error), error.exit_code)
    except OSError as error:
        # What the system refuses (a folder that cannot be written, a full disk) is no fault of the program.
        if error.filename is None:
            raise
        return _fail(f"{error.filename}: {error.strerror}. What was finished before is whole")
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept", file=sys.stderr, flush=True)
        return INTERRUPTED


def named_arguments(name: str, arguments: list[str]) -> list[str]:
    """A command's arguments: keys with underscores, and the first ones named where they may stand without a name."""
    arguments = [_KEY.sub(lambda key: key[0][:2] + key[0][2:].replace("-", "_"), one) for one in arguments]
    command = COMMANDS[name]
    if command.again:
        arguments = _gathered(arguments, command.again)
    leading = list(takewhile(lambda one: not one.startswith("-"), arguments))
    if not command.first or not leading:
        return arguments
    if any(one.partition("=")[0] == command.first for one in arguments):
        raise InputError(f"{command.first} is given twice, by its name and without", fix="Give all of it once.")
    if command.several:
        # As JSON, so that a path with a comma or a bracket in it stays one path.
        return [command.first, json.dumps(leading), *arguments[len(leading) :]]
    return [command.first, *arguments]


def _gathered(arguments: list[str], key: str) -> list[str]:
    """Arguments with all values of a key that is given more than once as one list: none of them is lost."""
    places = [place for place, one in enumerate(arguments) if one.partition("=")[0] == key]
    if len(places) < 2:
        return arguments
    values, rest = [], list[str]()
    place = 0
    while place < len(arguments):
        name, equals, value = arguments[place].partition("=")
        if name != key:
            rest.append(arguments[place])
        elif equals or place + 1 < len(arguments):
            place += not equals
            values.append(value if equals else arguments[place])
        else:
            return arguments
        place += 1
    return [*rest, f"{key}={json.dumps(values)}"]


def _command(arguments: list[str]) -> tuple[str | None, list[str]]:
    for words in (2, 1):
        name = " ".join(arguments[:words])
        if name in COMMANDS:
            return name, arguments[words:]
    return None, arguments


def _under(name: str, word: str) -> bool:
    return name.startswith(f"{word} ")


def _help(word: str | None = None) -> str:
    """All commands, or those under a first word."""
    lines = [
        "usage: pluralign COMMAND [--config FILE] [--KEY VALUE ...]",
        "",
        "One base model, a whole population.",
        "",
    ]
    shown = {name: command for name, command in COMMANDS.items() if word is None or _under(name, word)}
    width = max(map(len, shown))
    lines += [f"  {name:<{width}}  {(command.run.__doc__ or '').strip()}" for name, command in shown.items()]
    lines += ["", "`pluralign COMMAND --help` explains every key; `--print_config` prints them all as YAML."]
    return "\n".join(lines)


def _fail(message: str, code: int = USAGE) -> int:
    print(f"pluralign: {message}", file=sys.stderr, flush=True)
    return code


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    # Where in the code a warning was raised says nothing to the user of a command.
    if issubclass(category, UserWarning):
        print(f"warning: {message}", file=sys.stderr, flush=True)
