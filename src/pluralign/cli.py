"""The command line: one function a command. Help and errors come before torch is imported."""

from __future__ import annotations

import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pluralign import __version__
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
from pluralign.errors import PluralignError

if TYPE_CHECKING:
    from pluralign.training import TrainResult

DONE, PARTLY, USAGE, INTERRUPTED = 0, 1, 2, 130
_KEY = re.compile(r"^--[a-z][\w.-]*(?==|$)")
"""A key as it may be typed, `--user-info` for `--user_info`; what stands behind `=` is a value."""
_SHOWN = 3
"""Questions to ask next."""
LEGEND = """\
acc., margin: held-out pairs judged as the person did, and by how much   others: other people's pairs
kept: of what the base knows, what the adapter still knows (own: asked in the person's own manner)
KL: how far the adapter moved from the base   style, right, degen.: of the answers it writes
docs/evaluation.md explains every figure."""


def demo(config: DemoConfig) -> int:
    """The main job on the embedded default, offline, in a few minutes."""
    # More threads than one gain nothing on so small a model, and lose much where another program uses a core.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from pluralign.demo import run_demo

    result, evaluation = run_demo(config)
    _show(evaluation.table())
    _say(LEGEND)
    return _close(result)


def data_check(config: CheckConfig) -> int:
    """Validate a table of preferences and say what one wants to know before training on it."""
    from pluralign.preferences import check_preferences, load_preferences
    from pluralign.storage import check_place, write_json

    if config.output:
        check_place(config.output)
    tokenizer = None
    if config.model is not None:
        from pluralign.models import load_tokenizer

        tokenizer = load_tokenizer(config.model)
    report = check_preferences(load_preferences(config.data), tokenizer)
    _show(report.table())
    if config.output:
        write_json(config.output, report.as_dict())
    return PARTLY if report.problems else DONE


def data_meta_pairs(config: MetaPairsConfig) -> int:
    """Make pairs whose label follows the priorities in the prompt, from responses with scores by several criteria."""
    from pluralign.preferences.meta_pairs import make_meta_pairs

    made = make_meta_pairs(config)
    _show(made.table())
    _say(f"pairs: {made.path}")
    return PARTLY if made.problems else DONE


def world_make(config: WorldConfig) -> int:
    """Write a small world with known truth as files: corpus, preferences, probes, facts."""
    from pluralign.world import make_world

    folder = make_world(
        config.seed,
        config.out,
        users=config.users,
        pairs_per_user=config.pairs_per_user,
        nano=config.model,
        overwrite=config.overwrite,
    )
    _say(f"world: {folder}")
    return DONE


def anchor(config: AnchorTableConfig) -> int:
    """Add the base's own responses and the reference log-probs to a table, once per distinct text."""
    from pluralign.models.anchoring import anchor as run

    _say(f"anchored table: {run(config)}")
    return DONE


def train(config: TrainConfig) -> int:
    """Train one adapter a person from a table of preferences, and measure what each cost."""
    if config.plan:
        return _plan(config)
    from pluralign.evaluation import read_evaluation
    from pluralign.training import train as run

    result = run(config)
    if os.environ.get("RANK", "0") != "0":
        # Of several processes the first one writes, and speaks.
        return PARTLY if result.skipped else DONE
    if (result.output_dir / "evaluation.json").is_file():
        _show(read_evaluation(result.output_dir / "evaluation.json").table())
    return _close(result)


def evaluate(config: EvaluateConfig) -> int:
    """Measure what each person of a finished run won, and what it cost."""
    from pluralign.evaluation import evaluate as run

    evaluation = run(config)
    _show(evaluation.table())
    _say(f"evaluation: {evaluation.path}")
    return PARTLY if evaluation.skipped else DONE


def generate(config: GenerateConfig) -> int:
    """Let the base and people answer the same prompts, side by side."""
    from pluralign.answers import answer_prompts, answers_table

    for answered in answer_prompts(config):
        _show(answers_table(answered))
    return DONE


def fewshot_fit(config: FewshotFitConfig) -> int:
    """Learn from groups what a few answers of a new one say of all its others."""
    from pluralign.fewshot.running import fit_fewshot

    made = fit_fewshot(config)
    if made.rescaled:
        _say(f"distributions whose sum was near 1 and was made 1: {made.rescaled}")
    _say(f"{made.predictor.summary()}\npredictor: {made.path}")
    return DONE


def fewshot_predict(config: FewshotPredictConfig) -> int:
    """Predict what groups will answer from a few of their answers."""
    from pluralign.fewshot.running import predict_fewshot

    found = predict_fewshot(config)
    _say(f"predictions: {config.output} ({len(found)})")
    return DONE


def fewshot_ask(config: FewshotAskConfig) -> int:
    """Say which question to ask a group or person next."""
    from pluralign.fewshot.running import ask_fewshot

    for question, _ in ask_fewshot(config)[:_SHOWN]:
        options = "".join(f"\n  {option}" for option in question.options)
        _say(f"{question.text}{options}")
    return DONE


def fewshot_evaluate(config: FewshotEvaluateConfig) -> int:
    """Compare few-shot predictors and baselines on groups that taught nothing."""
    from pluralign.fewshot.comparison import tables
    from pluralign.fewshot.running import evaluate_fewshot

    for shown in tables(evaluate_fewshot(config)):
        _show(shown)
    _say(f"results: {config.output}")
    return DONE


def people_list(config: PeopleListConfig) -> int:
    """List everybody of a run: adapter or reason why none, steps, accuracy, size."""
    from pluralign.people.listing import as_json, list_people, people_table
    from pluralign.storage import check_place, write_json

    if config.output:
        check_place(config.output)
    entries = list_people(config.run)
    _show(people_table(entries))
    if config.output:
        write_json(config.output, as_json(entries))
    return DONE


def people_show(config: PeopleShowConfig) -> int:
    """Show everything about one person of a run: adapter, files, metrics, evaluation."""
    from pluralign.people.listing import person_table, show_person
    from pluralign.storage import check_place, write_json

    if config.output:
        check_place(config.output)
    person = show_person(config.run, config.user)
    _show(person_table(person))
    if config.output:
        write_json(config.output, {"schema_version": 1, **asdict(person)})
    return DONE


def people_remove(config: PeopleRemoveConfig) -> int:
    """Remove people from a run and from the cache, and prove that nothing is left."""
    from pluralign.people.removal import remove_people

    removal = remove_people(config)
    parts = {"removed": removal.removed, "read again": removal.checked, "note": removal.remarks}
    parts |= {"A TRACE REMAINS": removal.traces, "NOT PROVEN": removal.unproven}
    for name, lines in parts.items():
        for line in lines:
            _say(f"{name}: {line}")
    if removal.proven:
        _say("nothing is left of them")
    return DONE if removal.proven else PARTLY


@dataclass(frozen=True)
class Command:
    """A command's configuration and the function that runs it.

    Attributes:
        config: its keys.
        run: takes the configuration, returns the exit code.
        first: the key that a first argument without a name is the value of.
    """

    config: type[Any]
    run: Callable[[Any], int]
    first: str | None = None


COMMANDS: dict[str, Command] = {
    "demo": Command(DemoConfig, demo),
    "data check": Command(CheckConfig, data_check, first="--data"),
    "data meta-pairs": Command(MetaPairsConfig, data_meta_pairs, first="--data"),
    "world make": Command(WorldConfig, world_make),
    "anchor": Command(AnchorTableConfig, anchor),
    "train": Command(TrainConfig, train),
    "evaluate": Command(EvaluateConfig, evaluate),
    "generate": Command(GenerateConfig, generate),
    "fewshot fit": Command(FewshotFitConfig, fewshot_fit, first="--data"),
    "fewshot predict": Command(FewshotPredictConfig, fewshot_predict),
    "fewshot ask": Command(FewshotAskConfig, fewshot_ask),
    "fewshot evaluate": Command(FewshotEvaluateConfig, fewshot_evaluate, first="--data"),
    "people list": Command(PeopleListConfig, people_list, first="--run"),
    "people show": Command(PeopleShowConfig, people_show, first="--run"),
    "people remove": Command(PeopleRemoveConfig, people_remove, first="--run"),
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
    if name is None:
        return _fail(f"no command {' '.join(arguments[:2])!r}. `pluralign --help` lists them")
    return _run(name, rest)


def _run(name: str, arguments: list[str]) -> int:
    from pluralign.resolve import parse

    command = COMMANDS[name]
    arguments = named_arguments(name, arguments)
    try:
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
    """A command's arguments: keys with underscores, and the first one named where it may stand without a name."""
    arguments = [_KEY.sub(lambda key: key[0][:2] + key[0][2:].replace("-", "_"), one) for one in arguments]
    first = COMMANDS[name].first
    if first and arguments and not arguments[0].startswith("-"):
        return [first, *arguments]
    return arguments


def _command(arguments: list[str]) -> tuple[str | None, list[str]]:
    for words in (2, 1):
        name = " ".join(arguments[:words])
        if name in COMMANDS:
            return name, arguments[words:]
    return None, arguments


def _help() -> str:
    lines = [
        "usage: pluralign COMMAND [--config FILE] [--KEY VALUE ...]",
        "",
        "One base model, a whole population.",
        "",
    ]
    width = max(map(len, COMMANDS))
    lines += [f"  {name:<{width}}  {(command.run.__doc__ or '').strip()}" for name, command in COMMANDS.items()]
    lines += ["", "`pluralign COMMAND --help` explains every key; `--print_config` prints them all as YAML."]
    return "\n".join(lines)


def _plan(config: TrainConfig) -> int:
    """Say what a run will take."""
    if os.environ.get("RANK", "0") != "0":
        return DONE
    import psutil  # type: ignore[import-untyped]

    from pluralign.training.planning import plan

    # What this process has done so far, the run's does too.
    made = plan(config, before=time.time() - psutil.Process().create_time())
    _show(made.table())
    return DONE


def _close(result: TrainResult) -> int:
    from pluralign.preferences import shown

    for user, reason in result.skipped.items():
        _say(f"skipped {shown(user)!r}: {reason}")
    if result.changed:
        _say(f"rows have changed since of {_named(result.changed)}; --update trains whom it names again")
    if result.absent:
        _say(f"no row is in the table any more of {_named(result.absent)}; what is there stays")
    _say(f"results: {result.output_dir}")
    return PARTLY if result.skipped else DONE


def _named(users: Sequence[str], most: int = 10) -> str:
    from pluralign.preferences import shown

    more = f" and {len(users) - most} more" if len(users) > most else ""
    return f"{len(users)} people ({', '.join(map(shown, users[:most]))}{more})"


def _show(renderable: Any) -> None:
    from rich.console import Console

    Console().print(renderable)


def _say(text: str) -> None:
    print(text, flush=True)


def _fail(message: str, code: int = USAGE) -> int:
    print(f"pluralign: {message}", file=sys.stderr, flush=True)
    return code


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    # Where in the code a warning was raised says nothing to the user of a command.
    if issubclass(category, UserWarning):
        print(f"warning: {message}", file=sys.stderr, flush=True)
