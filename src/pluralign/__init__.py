"""pluralign: one base model, a whole population of people.

`train`, `evaluate`, `compare`, `winrate` and `report` take the same keys as the commands of the same name. Importing
the package does not import torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pluralign.compare_config import CompareConfig
    from pluralign.config import EvaluateConfig, TrainConfig
    from pluralign.evaluation import Evaluation
    from pluralign.evaluation.comparing import Comparison
    from pluralign.report_config import ReportConfig
    from pluralign.training import TrainResult
    from pluralign.training.planning import Plan
    from pluralign.winrate_config import WinRateConfig

__version__ = "0.1.0"
__all__ = ["__version__", "compare", "evaluate", "plan", "report", "train", "winrate"]


def train(config: TrainConfig | dict[str, Any] | str | Path) -> TrainResult:
    """Fit the base model to every person of a table of preferences.

    Args:
        config: the keys of `pluralign train` as a dictionary, a YAML file or a `TrainConfig`.

    Returns:
        The output folder, the adapter's folder of each person, and who was skipped with the reason.

    Raises:
        InputError: the configuration or the data cannot be used; the message names the place.
    """
    from pluralign.config import TrainConfig
    from pluralign.resolve import resolve
    from pluralign.training import train as run

    return run(resolve(TrainConfig, config))


def plan(config: TrainConfig | dict[str, Any] | str | Path) -> Plan:
    """Find out what `train` would take, on this machine from here on: time, memory, disk.

    Args:
        config: as for `train`. A small part of the run is made in a temporary folder.

    Raises:
        InputError: as in `train`.
    """
    from pluralign.config import TrainConfig
    from pluralign.resolve import resolve
    from pluralign.training.planning import plan as run

    return run(resolve(TrainConfig, config))


def evaluate(config: EvaluateConfig | dict[str, Any] | str | Path) -> Evaluation:
    """Measure what each person of a finished run won, and what it cost.

    Args:
        config: the keys of `pluralign evaluate` as a dictionary, a YAML file or an `EvaluateConfig`.

    Raises:
        InputError: the run, the data or the probes cannot be used; the message names the place.
    """
    from pluralign.config import EvaluateConfig
    from pluralign.evaluation import evaluate as run
    from pluralign.resolve import resolve

    return run(resolve(EvaluateConfig, config))


def report(config: ReportConfig | dict[str, Any] | str | Path) -> Path:
    """Write evaluated runs as one HTML page that needs no network.

    Args:
        config: the keys of `pluralign report` as a dictionary, a YAML file or a `ReportConfig`.

    Returns:
        The file.

    Raises:
        InputError: a run cannot be read or has no evaluation, or runs on different data or bases are given without
            `different`; the message names the place.
    """
    from pluralign.report_config import ReportConfig
    from pluralign.reporting import write_report
    from pluralign.resolve import resolve

    return write_report(resolve(ReportConfig, config))


def compare(config: CompareConfig | dict[str, Any] | str | Path) -> Comparison:
    """Say what changed for people between two runs, whether it was chance, and whether a run holds a line.

    Args:
        config: the keys of `pluralign compare` as a dictionary, a YAML file or a `CompareConfig`.

    Returns:
        Figures, differences with intervals, and the conditions of `fail_if`: `failed` is true where one holds.

    Raises:
        InputError: a run has no evaluation, two runs cannot be compared, or a condition cannot be answered.
    """
    from pluralign.compare_config import CompareConfig
    from pluralign.evaluation.comparing import compare as run
    from pluralign.resolve import resolve

    return run(resolve(CompareConfig, config))


def winrate(config: WinRateConfig | dict[str, Any] | str | Path) -> Evaluation:
    """Let an annotator say how often each person's answers are better than the base's, or another run's.

    Args:
        config: the keys of `pluralign winrate` as a dictionary, a YAML file or a `WinRateConfig`.

    Raises:
        InputError: a run, its data or the annotator cannot be used, or two runs cannot be compared.
        AnnotatorError: the annotator gave up; the same call goes on where it stopped.
    """
    from pluralign.evaluation.winning import winrate as run
    from pluralign.resolve import resolve
    from pluralign.winrate_config import WinRateConfig

    return run(resolve(WinRateConfig, config))
