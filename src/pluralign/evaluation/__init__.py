"""Evaluation: what each person won and what it cost, against the base, as a table and as `evaluation.json`."""

from pluralign.evaluation.evaluation import evaluate_people
from pluralign.evaluation.probes import Probe, ProbeSet, load_probes
from pluralign.evaluation.results import Evaluation, read_evaluation
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
