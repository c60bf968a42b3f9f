"""The few-shot commands, as functions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pluralign.config import FewshotAskConfig, FewshotEvaluateConfig, FewshotFitConfig, FewshotPredictConfig
from pluralign.errors import InputError
from pluralign.fewshot.answers import Answers, Question
from pluralign.fewshot.comparison import Summary, compare, summarise, write_comparison
from pluralign.fewshot.plot import plot_comparison
from pluralign.fewshot.predictor import Answer, Predictor, fit_predictor
from pluralign.fewshot.predictor_file import load_predictor, save_predictor
from pluralign.fewshot.tables import load_answers, load_questions, write_answers, write_questions
from pluralign.resolve import resolve
from pluralign.storage import check_place


@dataclass(frozen=True)
class FitResult:
    """What `fit_fewshot` made.

    Attributes:
        predictor: ready to predict.
        path: its file.
        rescaled: distributions of the tables whose sum was near 1, and was made 1.
    """

    predictor: Predictor
    path: Path
    rescaled: int


def fit_fewshot(config: FewshotFitConfig | dict[str, Any] | str | Path) -> FitResult:
    """Fit a predictor to the groups of some tables and write it to a file.

    Args:
        config: the keys of `pluralign fewshot fit` as a dictionary, a YAML file or a `FewshotFitConfig`.

    Raises:
        InputError: tables that cannot be used, or a file that is there.
    """
    config = resolve(FewshotFitConfig, config)
    path = _free(config.output, config.overwrite)
    answers = load_answers(config.data, group=config.group, groups=config.groups)
    predictor = fit_predictor(answers, config)
    save_predictor(predictor, path)
    return FitResult(predictor, path, answers.rescaled)


def predict_fewshot(config: FewshotPredictConfig | dict[str, Any] | str | Path) -> list[Answer]:
    """Predict the answers of groups, and write them to a file.

    Args:
        config: the keys of `pluralign fewshot predict` as a dictionary, a YAML file or a `FewshotPredictConfig`.

    Raises:
        InputError: a predictor or tables that cannot be used.
    """
    config = resolve(FewshotPredictConfig, config)
    check_place(config.output)
    predictor = load_predictor(config.predictor)
    answers = load_answers(config.answers, group=config.group, key="answers")
    found = predictor.predict(answers, load_questions(config.questions), level=config.level, cache_dir=config.cache_dir)
    write_answers(found, config.output)
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
        check_place(config.output)
    predictor = load_predictor(config.predictor)
    answers = load_answers(config.answers, group=config.group, key="answers") if config.answers else Answers()
    found = predictor.ask(answers, load_questions(config.questions), cache_dir=config.cache_dir)
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
    path = _free(config.output, config.overwrite)
    cells = list(compare(load_answers(config.data, group=config.group, groups=config.groups), config))
    write_comparison(path, cells, config)
    summaries = summarise(cells)
    plot_comparison(summaries, path.with_suffix(".svg"))
    return summaries


def _free(output: str, overwrite: bool) -> Path:
    path = Path(output)
    check_place(path)
    if path.exists() and not overwrite:
        raise InputError("the file is there", where=str(path), fix="Set overwrite, or name another one.")
    return path
