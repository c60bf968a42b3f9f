"""Who answered what, as one kind of table: countries, personas, raters of known weights, annotators, the world."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pluralign.fewshot.answers import Answers, Question
from pluralign.world import World

KNOWN, NEW = "known questions", "new questions"
RATERS, PROMPTS, STATEMENTS, WORLD_PEOPLE, WORLD_PAIRS, COMPARISONS = 40, 160, 120, 60, 60, 400
MORE_PAIRS = 120
"""Of each person of the world, so that 50 answers can be read and others are left to predict."""
CRITERIA = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
YES_NO = ("Yes", "No")


@dataclass(frozen=True)
class Table:
    """A table of the benchmark.

    Attributes:
        read: from the folder of published data.
        sizes: of contexts.
        least: answers that a group needs to be tested.
        protocols: that it has answers for.
        steps: that the published module is trained for, about a minute of one core.
    """

    read: Callable[[Path], Answers]
    sizes: tuple[int, ...]
    least: int
    protocols: tuple[str, ...] = (KNOWN, NEW)
    steps: int = 480


def countries(data: Path) -> Answers:
    """GlobalOpinionQA: shares of a country's respondents; rows without any are left out."""
    found = Answers(name="global_opinions")
    for row in _rows(data / "global_opinions" / "eval.json.gz"):
        shares = np.array(row["distribution"], float)
        if shares.sum() > 0:
            question = Question(row["question"], tuple(map(str, row["options"])))
            found.add(row["country"], question, shares / shares.sum())
    return found


def personas(data: Path) -> Answers:
    """Personas: each says Yes or No to statements of its own, which no other persona was asked."""
    found = Answers(name="personas")
    for path in sorted((data / "personas").glob("*.jsonl.gz")):
        for row in list(_rows(path))[:STATEMENTS]:
            said = row["answer_matching_behavior"].strip() == YES_NO[0]
            found.add(path.name.split(".")[0], Question(row["question"], YES_NO), np.array([said, not said], float))
    return found


def raters(data: Path) -> Answers:
    """Raters who weigh five human ratings of a response, each in a way of their own (a draw), on the same prompts."""
    found, weights = Answers(name="helpsteer2"), np.random.default_rng(0).normal(size=(RATERS, len(CRITERIA)))
    for row in list(_rows(data / "helpsteer2" / "train.json.gz"))[:PROMPTS]:
        texts = row["responses"]
        if len(set(texts)) != 2:
            continue
        first, second = (np.array([label[name] for name in CRITERIA]) for label in row["labels"])
        for number, own in enumerate(weights):
            gap = float(own @ (first - second))
            if gap:
                found.add(f"rater {number}", Question(row["prompt"], tuple(texts)), np.array([gap > 0, gap < 0], float))
    return found


def annotators(data: Path) -> Answers:
    """Three real people who compared responses to the same instructions; ties say nothing here."""
    found = Answers(name="pandalm")
    rows = json.loads((data / "pandalm" / "testset-v1.json").read_text(encoding="utf-8"))
    for row in rows[:COMPARISONS]:
        # Some responses were published as what they look like: true, or a number.
        texts = (str(row["response1"]), str(row["response2"]))
        if len(set(texts)) != 2:
            continue
        question = Question(f"{row['instruction']}\n{row['input']}".strip(), texts)
        for number in (1, 2, 3):
            if said := row[f"annotator{number}"]:
                found.add(f"annotator {number}", question, np.array([said == 1, said == 2], float))
    return found


def world(people: int = WORLD_PEOPLE, pairs: int = WORLD_PAIRS) -> Answers:
    """People of the world, pairwise: ten styles, in all topics or in some, labels right or not."""
    made, found = World(0), Answers(name="world")
    for row in made.preferences(people, pairs):
        chosen, rejected = (row[side][-1]["content"] for side in ("chosen", "rejected"))
        sides = tuple(sorted((chosen, rejected)))
        found.add(
            row["user"], Question(row["prompt"][-1]["content"], sides), np.array([s == chosen for s in sides], float)
        )
    return found


TABLES = {
    "countries": Table(countries, (5, 10, 20), 60, steps=120),
    "personas": Table(personas, (5, 10, 20, 50), 60, (NEW,), steps=240),
    "raters": Table(raters, (5, 10, 20, 50), 60, steps=240),
    "annotators": Table(annotators, (5, 10, 20, 50), 60),
    "world": Table(lambda _: world(), (5, 10, 20), 30),
    "world120": Table(lambda _: world(pairs=MORE_PAIRS), (5, 10, 20, 50), 60),
}


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        if path.name.endswith(".jsonl.gz"):
            yield from map(json.loads, file)
        else:
            yield from json.load(file)
