"""What a person's adapter says when asked: generated answers beside the base's, judged where the truth is known."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pluralign.errors import InputError
from pluralign.evaluation.drift import Drift
from pluralign.evaluation.pairs import drift_results
from pluralign.evaluation.statistics import mean, share
from pluralign.evaluation.text_quality import text_quality
from pluralign.models.anchoring import Anchored
from pluralign.models.generation import Generated
from pluralign.models.scoring import Ids
from pluralign.preferences.schema import Preference, Text
from pluralign.world import World
from pluralign.world.judging import words_of

SAMPLES = 4
_LONGEST_PHRASE = 16
_TIMES = 4


@dataclass(frozen=True, slots=True)
class Question:
    """A held-out prompt that base and person answer: its tokens, and the first row that has it."""

    prompt: Ids
    row: Preference


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is true of one answer; None where no program can tell."""

    style: bool | None
    right: bool | None
    degenerate: bool


def questions_of(rows: Sequence[Anchored], *, limit: int, seed: int) -> list[Question]:
    """Distinct prompts of a person's held-out rows, at most `limit`, a sample fixed by the seed, in order."""
    distinct: dict[Ids, Preference] = {}
    for row in rows:
        distinct.setdefault(tuple(row.encoded.prompt_ids), row.preference)
    questions = [Question(prompt, row) for prompt, row in distinct.items()]
    if len(questions) <= limit:
        return questions
    chosen = sorted(random.Random(f"held-out prompts {seed}").sample(range(len(questions)), max(limit, 0)))
    return [questions[index] for index in chosen]


def verdict(answer: Generated, row: Preference, world: World | None) -> Verdict:
    """Judge one answer to a row's prompt: by the world where the prompt is of it, by its form alone otherwise."""
    if world is not None and world.find(row.prompt) is not None:
        try:
            judged = world.judge(row.prompt, answer.text, row.user, finished=answer.finished)
            return Verdict(judged.style, judged.right, judged.degenerate)
        except InputError:
            # The world has no such person: its truth about facts holds for them all the same.
            judged = world.judge(row.prompt, answer.text, finished=answer.finished)
            return Verdict(None, judged.right, judged.degenerate)
    return Verdict(None, None, is_degenerate(answer.text))


def is_degenerate(text: str) -> bool:
    """Whether a text has no word, or says one phrase of 1 to 16 words four times in a row."""
    words = words_of(text)
    return not words or any(_repeats(words, length) for length in range(1, _LONGEST_PHRASE + 1))


def behaviour(
    questions: Sequence[Question],
    base: Sequence[Generated],
    person: Sequence[Generated],
    world: World | None,
    *,
    base_logps: Sequence[float],
    drifts: Sequence[Drift],
) -> dict[str, Any]:
    """The `behaviour` of one person, as in `evaluation.json`.

    Args:
        questions: held-out prompts.
        base: the base's answers, in their order.
        person: the person's.
        world: where the prompts are of a world, the one that judges.
        base_logps: of the base's answers under itself, summed, nats.
        drifts: of the person's answers.
    """
    moved = drift_results(drifts)
    by_base = [verdict(answer, question.row, world) for answer, question in zip(base, questions, strict=True)]
    by_person = [verdict(answer, question.row, world) for answer, question in zip(person, questions, strict=True)]
    return {
        "prompts": len(questions),
        "person": {
            **_shares(person, by_person),
            **text_quality(person, [one.base_logp for one in drifts]),
            "kl_per_token": moved["kl_per_token"],
            "log_ratio_per_token": moved["log_ratio_per_token"],
        },
        "base": {**_shares(base, by_base), **text_quality(base, base_logps)},
        "samples": [
            {
                "prompt": _last_words(question.row.prompt),
                "chosen": _last_words(question.row.chosen),
                "base": said.text,
                "person": answer.text,
                "style": judged.style,
                "right": judged.right,
                "degenerate": judged.degenerate,
            }
            for question, said, answer, judged in list(zip(questions, base, person, by_person, strict=True))[:SAMPLES]
        ],
    }


def _shares(answers: Sequence[Generated], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    return {
        "style": share(item.style for item in verdicts if item.style is not None),
        "right": share(item.right for item in verdicts if item.right is not None),
        "right_of": sum(item.right is not None for item in verdicts),
        "degenerate": share(item.degenerate for item in verdicts),
        "finished": share(answer.finished for answer in answers),
        "tokens": mean(len(answer.token_ids) for answer in answers),
    }


def _repeats(words: Sequence[str], length: int) -> bool:
    run = 0
    for index in range(length, len(words)):
        run = run + 1 if words[index] == words[index - length] else 0
        if run == length * (_TIMES - 1):
            return True
    return False


def _last_words(text: Text | None) -> str | None:
    """A text as it is; of messages the last one's content."""
    if text is None or isinstance(text, str):
        return text
    return str(text[-1].get("content", ""))
