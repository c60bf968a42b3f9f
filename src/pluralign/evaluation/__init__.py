"""Evaluation: what each person won and what it cost, against the base, as a table and as `evaluation.json`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pluralign.evaluation.results import Evaluation, read_evaluation

if TYPE_CHECKING:
    from pluralign.evaluation.evaluation import evaluate_people
    from pluralign.evaluation.probes import Probe, ProbeSet, load_probes
    from pluralign.evaluation.runs import evaluate

__all__ = [
    "Evaluation",
    "Probe",
    "ProbeSet",
    "evaluate",
    "evaluate_people",
    "load_probes",
    "read_evaluation",
]
_MODULES = {
    "Probe": "probes",
    "ProbeSet": "probes",
    "evaluate": "runs",
    "evaluate_people": "evaluation",
    "load_probes": "probes",
}


def __getattr__(name: str) -> Any:
    # Only when one of them is asked for: results are read without torch.
    if name not in _MODULES:
        raise AttributeError(name)
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
