"""Tasks of lm-eval put to the base and to people's policies in turn; imported only where that package is wanted."""

from __future__ import annotations

import difflib
import logging
import math
import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import lru_cache
from pathlib import Path
from typing import Any

import evaluate as metrics_library
import lm_eval
import numpy as np
import torch
from jinja2.exceptions import TemplateError
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from pluralign.errors import InputError
from pluralign.evaluation.knowledge import Figure, Told
from pluralign.evaluation.policies import Policies
from pluralign.models.base import Base
from pluralign.seats import KnowledgeConfig

VERSION = lm_eval.__version__
PYTHON_SEED, OTHER_SEED = 0, 1234
"""What lm-eval seeds Python, and numpy, torch and its choice of examples with."""
RESAMPLES = 1000
"""Of the bootstrap behind errors that have no closed form; lm-eval's own 100,000 would be drawn for everybody."""
_UNUSABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError, TemplateError)
"""What a task raises that is written wrongly, or whose data cannot be had."""


class Harness:
    """Tasks, loaded once, for as many models as there are.

    Args:
        base: whose tokenizer all policies have.
        settings: which tasks, and how they are put.

    Attributes:
        tasks: task -> version, number of examples before the question, documents.

    Raises:
        InputError: there is no such task, it cannot be loaded, or the tokenizer has no chat template.
    """

    def __init__(self, base: Base, settings: KnowledgeConfig) -> None:
        if settings.apply_chat_template and not base.tokenizer.chat_template:
            raise InputError("evaluation.knowledge.apply_chat_template is set, and the tokenizer has no chat template")
        self.base, self.settings = base, settings
        self.tasks: dict[str, dict[str, Any]] = {}
        with _quietly(), _seeded():
            self._loaded = _load(settings)
            for name, task in self._loaded["tasks"].items():
                self._prepare(name, task)

    def ask(self, policies: Policies, person: int = 0) -> Told:
        """Put all tasks to one policy.

        Args:
            policies: some that share the base; their `rows_of` is not entered.
            person: number of the one that answers.

        Raises:
            InputError: a task cannot be put to the model.
        """
        with _quietly(), _seeded():
            model = _Policy(self.base, policies, person, self.settings.batch_size)
            try:
                found = evaluate(
                    lm=model,
                    task_dict=self._loaded,
                    limit=self.settings.limit,
                    bootstrap_iters=RESAMPLES,
                    log_samples=False,
                    apply_chat_template=self.settings.apply_chat_template,
                    fewshot_as_multiturn=self.settings.apply_chat_template,
                )
            except torch.OutOfMemoryError:
                raise
            except (*_UNUSABLE, AssertionError) as error:
                tasks = ", ".join(self._loaded["tasks"])
                raise InputError(
                    f"cannot be put to the model ({_first_line(error)})", where=f"lm-eval: {tasks}"
                ) from error
        for name, facts in self.tasks.items():
            facts["documents"] = found["n-samples"][name]["effective"]
        return Told(
            # A group that sums nothing up has a name and no figure.
            figures={name: own for name, one in found["results"].items() if (own := _figures(one))},
            documents={name: int(one.get("sample_len", 0)) for name, one in found["results"].items()},
            higher={name: dict(found["higher_is_better"].get(name, {})) for name in found["results"]},
            inside=self._inside(found.get("groups", {})),
            undefined=model.undefined,
        )

    def _prepare(self, name: str, task: Any) -> None:
        """What `lm_eval.simple_evaluate` does with a task before it is put."""
        functions = getattr(task, "_metric_fn_list", {})
        unknown = [metric for metric, function in functions.items() if function is None]
        if unknown and task.config.process_results is None:
            fix = "Take one that lm-eval has, or a function of yours (`!function`): no code is fetched from a hub."
            raise InputError(f"lm-eval has no metric {unknown[0]!r}", where=f"task {name}", fix=fix)
        wanted, own = self.settings.num_fewshot, task.get_config("num_fewshot")
        # Where a task says that it takes none, none it is.
        if own is None or (wanted is not None and own != 0):
            task.set_config(key="num_fewshot", value=wanted or 0)
        task.set_fewshot_seed(seed=OTHER_SEED)
        self.tasks[name] = {"version": task.VERSION, "num_fewshot": task.get_config("num_fewshot"), "documents": 0}

    def _inside(self, aggregated: Any) -> frozenset[str]:
        """Tasks and groups whose figures are in those of a group that was asked for."""
        groups = self._loaded.get("groups", {})
        inside = {child for name in aggregated for child in _members(groups[name])}
        return frozenset(inside)


class _Policy(HFLM):
    """lm-eval's own model class around a policy in memory: every forward runs in the rows of its person.

    Attributes:
        undefined: log-probs that were no numbers.
    """

    def __init__(self, base: Base, policies: Policies, person: int, batch_size: int) -> None:
        super().__init__(pretrained=policies.model, backend="causal", tokenizer=base.tokenizer, batch_size=batch_size)
        self._rows_of, self._person = policies.rows_of, person
        self.undefined = 0

    @property
    def max_gen_toks(self) -> int:
        """Tokens of an answer whose task does not say: lm-eval's 256, or half of a shorter context."""
        return min(256, self.max_length // 2)

    def _model_call(self, inps: torch.Tensor, *others: Any, **named: Any) -> torch.Tensor:
        with self._rows_of([self._person] * len(inps)):
            return super()._model_call(inps, *others, **named)

    def _model_generate(self, context: torch.Tensor, *others: Any, **named: Any) -> torch.Tensor:
        with self._rows_of([self._person] * len(context)):
            return super()._model_generate(context, *others, **named)

    def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = False, **named: Any) -> Any:
        found = super()._loglikelihood_tokens(requests, disable_tqdm=True, **named)
        self.undefined += sum(math.isnan(value) for value, _ in found)
        return found

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
        return super().generate_until(requests, disable_tqdm=True)


def check_tasks(settings: KnowledgeConfig) -> None:
    """Raise an `InputError` where there is no such task; nothing is loaded."""
    with _quietly():
        _manager(settings.names, settings.folders)


def _load(settings: KnowledgeConfig) -> dict[str, Any]:
    """Tasks and groups as lm-eval has them."""
    tasks: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    for name in settings.names:
        try:
            found = _found(name, settings)
        except _UNUSABLE as error:
            fix = "Its data must be at hand or on the hub, and its YAML as lm-eval has it."
            raise InputError(f"cannot be loaded ({_first_line(error)})", where=f"task {name}", fix=fix) from error
        for task in found["tasks"].keys() & tasks.keys():
            raise InputError(f"the task {task!r} is asked for twice", where="evaluation.knowledge.tasks")
        tasks |= found["tasks"]
        groups |= found.get("groups", {})
    return {"tasks": tasks, "groups": groups}


def _found(name: str, settings: KnowledgeConfig) -> Any:
    try:
        return _manager(settings.names, settings.folders).load([name])
    except KeyError:
        # A group of one's own may be of lm-eval's tasks.
        return _manager(settings.names, settings.folders, all_of_them=True).load([name])


@lru_cache(maxsize=2)
def _manager(names: tuple[str, ...], folders: tuple[str, ...], *, all_of_them: bool = False) -> TaskManager:
    """One that knows the tasks that are asked for; lm-eval's own are indexed, for seconds, only where they are."""
    for folder in folders:
        if not Path(folder).is_dir():
            raise InputError("there is no such folder", where=f"evaluation.knowledge.include_path: {folder}")
    manager = TaskManager(include_path=[*folders], include_defaults=False)
    if not all_of_them and all(name in manager.task_index or Path(name).is_file() for name in names):
        return manager
    manager = TaskManager(include_path=[*folders])
    for name in names:
        if name not in manager.task_index and not Path(name).is_file():
            near = difflib.get_close_matches(name, manager.all_tasks, n=3)
            hint = f"Did you mean {' or '.join(near)}? " if near else ""
            fix = f"{hint}Tasks of your own are found in evaluation.knowledge.include_path."
            raise InputError(f"lm-eval has no task {name!r}", where="evaluation.knowledge.tasks", fix=fix)
    return manager


def _members(group: Any) -> Iterator[str]:
    """Names of all tasks and groups below a group."""
    yield from (task.task_name for task in group.get_all_tasks())
    yield from (inner.name for inner in group.get_all_groups())


def _figures(found: Mapping[str, Any]) -> dict[str, Figure]:
    """Metric -> figure, of one task's results; lm-eval's `acc,none` is `acc`, with another filter it stays."""
    figures = {}
    for key, value in found.items():
        metric, comma, kind = key.partition(",")
        if not comma or metric.endswith("_stderr") or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        error = found.get(f"{metric}_stderr,{kind}")
        figures[metric if kind == "none" else key] = Figure(
            float(value), float(error) if isinstance(error, int | float) else None
        )
    return figures


@contextmanager
def _quietly() -> Iterator[None]:
    """No word of lm-eval's but errors, no process pool of its own, and no metric that would be code of a hub's."""
    logger, offline = logging.getLogger("lm_eval"), metrics_library.config.HF_EVALUATE_OFFLINE
    level, pool = logger.level, os.environ.get("DISABLE_MULTIPROC")
    logger.setLevel(logging.CRITICAL)
    metrics_library.config.HF_EVALUATE_OFFLINE = True
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            yield
    finally:
        logger.setLevel(level)
        metrics_library.config.HF_EVALUATE_OFFLINE = offline
        if pool is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = pool


@contextmanager
def _seeded() -> Iterator[None]:
    """The random numbers of `lm_eval.simple_evaluate`: the same questions for all; nobody else's are touched."""
    python, others = random.getstate(), np.random.get_state()
    random.seed(PYTHON_SEED)
    np.random.seed(OTHER_SEED)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(OTHER_SEED)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(others)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
