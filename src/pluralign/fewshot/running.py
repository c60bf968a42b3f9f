"""The few-shot commands, as functions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pluralign.config import (
    FewshotAskConfig,
    FewshotConfig,
    FewshotEvaluateConfig,
    FewshotFitConfig,
    FewshotPredictConfig,
)
from pluralign.errors import InputError
from pluralign.fewshot.answers import Answers, Question
from pluralign.fewshot.comparison import Summary, compare, summarise, write_comparison
from pluralign.fewshot.plot import plot_comparison
from pluralign.fewshot.predictor import Answer, Predictor, fit_predictor
from pluralign.fewshot.predictor_file import load_predictor, save_predictor
from pluralign.fewshot.tables import load_answers, load_questions, write_answers, write_questions
from pluralign.resolve import resolve
from pluralign.storage import check_place

_NO_FIGURE = (
    "The baselines of other groups say nothing of new questions; options that all stand at one place tell nothing."
)


@dataclass(frozen=True)
class FitResult:
    """What `fit_fewshot` made.

    Attributes:
        predictor: ready to predict.
        path: its file.
    """

    predictor: Predictor
    path: Path


def fit_fewshot(config: FewshotFitConfig | dict[str, Any] | str | Path) -> FitResult:
    """Fit a predictor to the groups of some tables and write it to a file.

    Args:
        config: the keys of `pluralign fewshot fit` as a dictionary, a YAML file or a `FewshotFitConfig`.

    Raises:
        InputError: tables that cannot be used, or a file that is there.
    """
    config = resolve(FewshotFitConfig, config)
    _check(config)
    path = _output(config.output, config.data, overwrite=config.overwrite)
    answers = load_answers(config.data, group=config.group, groups=config.groups, several=True)
    predictor = fit_predictor(answers, config)
    save_predictor(predictor, path)
    return FitResult(predictor, path)


def predict_fewshot(config: FewshotPredictConfig | dict[str, Any] | str | Path) -> list[Answer]:
    """Predict the answers of groups, and write them to a file.

    Args:
        config: the keys of `pluralign fewshot predict` as a dictionary, a YAML file or a `FewshotPredictConfig`.

    Raises:
        InputError: a predictor or tables that cannot be used.
    """
    config = resolve(FewshotPredictConfig, config)
    path = _output(config.output, config.answers, config.questions, config.predictor)
    predictor = load_predictor(config.predictor)
    answers = load_answers(config.answers, group=config.group, key="answers")
    found = predictor.predict(answers, load_questions(config.questions), level=config.level, cache_dir=config.cache_dir)
    write_answers(found, path)
    return found


def ask_fewshot(config: FewshotAskConfig | dict[str, Any] | str | Path) -> list[tuple[Question, float]]:
    """Put questions in the order in which they are worth asking; see `Predictor.ask`.

    Args:
        config: the keys of `pluralign fewshot ask` as a dictionary, a YAML file or a `FewshotAskConfig`.

    Raises:
        InputError: a predictor or tables that cannot be used, or nothing left to ask.
    """
    config = resolve(FewshotAskConfig, config)
    if config.output:
        _output(config.output, config.answers, config.questions, config.targets, config.predictor)
    predictor = load_predictor(config.predictor)
    answers = load_answers(config.answers, group=config.group, key="answers") if config.answers else Answers()
    targets = load_questions(config.targets, key="targets") if config.targets else []
    pool = load_questions(config.questions)
    found = predictor.ask(answers, pool, targets=targets, cache_dir=config.cache_dir)
    if config.output:
        write_questions(found, config.output)
    return found


def evaluate_fewshot(config: FewshotEvaluateConfig | dict[str, Any] | str | Path) -> list[Summary]:
    """Compare predictors and baselines on groups that taught nothing; write figures and a plot.

    Args:
        config: the keys of `pluralign fewshot evaluate` as a dictionary, a YAML file or a `FewshotEvaluateConfig`.

    Returns:
        Means over splits, a row a protocol, number of answers and method.

    Raises:
        InputError: tables that cannot be used, too few groups or answers, or a file that is there.
    """
    config = resolve(FewshotEvaluateConfig, config)
    _check(config)
    if Path(config.output).suffix == ".svg":
        raise InputError(f"output is {config.output}", fix="Name a .json file: the plot stands beside it, as .svg.")
    files = (Path(config.output), Path(config.output).with_suffix(".svg"))
    path, plot = (_output(one, config.data, overwrite=config.overwrite) for one in files)
    answers = load_answers(config.data, group=config.group, groups=config.groups, several=True)
    cells = list(compare(answers, config))
    if not cells:
        found = f"there is no figure: none of {', '.join(config.methods)} says anything that can be measured"
        raise InputError(found, where=answers.name, fix=_NO_FIGURE)
    write_comparison(path, cells, config, answers.notes())
    summaries = summarise(cells)
    plot_comparison(summaries, plot)
    return summaries


def _check(config: FewshotConfig) -> None:
    """Raise where a number cannot be used, before anything is read."""
    numbers = [("seed", config.seed, 0), ("module.steps", config.module.steps, 1)]
    numbers += [("module.groups", config.module.groups, 1)]
    if isinstance(config, FewshotEvaluateConfig):
        for name in ("methods", "sizes"):
            if not getattr(config, name):
                raise InputError(f"{name} has nothing in it", fix="Leave it out for the default.")
        numbers += [("splits", config.splits, 1), ("least", config.least, 1), ("sizes", min(config.sizes), 1)]
    for name, value, lowest in numbers:
        if value < lowest:
            raise InputError(f"{name} is {value}", fix=f"The least is {lowest}.")
    if not config.module.learning_rate > 0:
        raise InputError(f"module.learning_rate is {config.module.learning_rate:g}", fix="It is above 0.")


def _output(output: str | Path, *inputs: str | list[str], overwrite: bool = True) -> Path:
    """The file to write; raise where it cannot be written, is one that is read, or is there and has to stay."""
    path = Path(output)
    check_place(path)
    read = (Path(one) for some in inputs for one in ([some] if isinstance(some, str) else some))
    if path.exists() and any(one.exists() and one.samefile(path) for one in read):
        raise InputError("the file is read, and would be replaced", where=str(path), fix="Name another output.")
    if path.exists() and not overwrite:
        raise InputError("the file is there", where=str(path), fix="Set overwrite, or name another one.")
    return path
