"""Probes in tokens, which option wins, and what counts as kept."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pluralign.evaluation.probes import Probe, ProbeSet
from pluralign.evaluation.retention import ProbeBook, ProbeQuestion, answered, retention
from pluralign.models import Encoder


def book_of(tokenizer: Any, *probes: Probe, messages: bool = False, context: int = 512) -> ProbeBook:
    encoder = Encoder(tokenizer, max_prompt_length=512, max_response_length=64, context_length=512)
    return ProbeBook([ProbeSet("file", list(probes))], tokenizer, encoder.prompts_ids, messages, context)


def text_of(tokenizer: Any, question: ProbeQuestion, option: int) -> str:
    return str(tokenizer.decode([*question.prompt, *question.options[option]]))


def question_of(
    *sums: float, answer: int = 0, lengths: tuple[int, ...] = (1, 1, 1)
) -> tuple[ProbeQuestion, dict[Any, float]]:
    options = tuple((number,) for number in range(len(sums)))
    probe = Probe("id", "?", tuple("abc"[: len(sums)]), answer)
    question = ProbeQuestion(probe, "file", (9,), options, lengths[: len(sums)])
    return question, dict(zip(question.requests, sums, strict=True))


def test_plain_questions_are_laid_out_as_question_and_answer(byte_tokenizer: Any) -> None:
    (question,) = book_of(byte_tokenizer, Probe("1", "Is it wet?", ("yes", "no"), 0)).behind_base()
    assert text_of(byte_tokenizer, question, 1) == "Question: Is it wet?\nAnswer: no"
    assert byte_tokenizer.decode(question.prompt) == "Question: Is it wet?\nAnswer:"
    assert question.characters == (3, 2)


def test_questions_become_turns_where_the_preferences_are_messages(byte_tokenizer: Any) -> None:
    probe = Probe("1", "Is it wet?", ("yes", "no"), 0)
    (question,) = book_of(byte_tokenizer, probe, messages=True).behind_base()
    assert text_of(byte_tokenizer, question, 0) == "<|user|>Is it wet?<eos><|assistant|>yes"
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Wet?"}]
    (question,) = book_of(byte_tokenizer, Probe("1", turns, ("yes", "no"), 0)).behind_base()
    assert text_of(byte_tokenizer, question, 0) == "<|system|>Be brief.<eos><|user|>Wet?<eos><|assistant|>yes"


@pytest.mark.parametrize("prefix", ["The sea is", "The sea is "])
def test_options_share_the_prefix_and_no_more(byte_tokenizer: Any, prefix: str) -> None:
    probe = Probe("1", "Sea?", ("wet", "well", "w"), 0, prefix=prefix)
    (question,) = book_of(byte_tokenizer, probe).behind_base()
    assert byte_tokenizer.decode(question.prompt) == f"Sea?{prefix}"
    assert [text_of(byte_tokenizer, question, number) for number in range(3)] == [
        f"Sea?The sea is {option}" for option in probe.options
    ]


def test_own_manner_is_found_by_id_style_or_group(byte_tokenizer: Any) -> None:
    known = Probe("1", "Sea?", ("wet", "dry"), 0, prefix="It is", prefixes={"anna": "I say", "formal": "Indeed"})
    book = book_of(byte_tokenizer, known, Probe("2", "Sun?", ("hot", "cold"), 0))
    (own,) = book.behind_own(["anna", "formal"])
    assert text_of(byte_tokenizer, own, 0) == "Sea?I say wet"
    (own,) = book.behind_own(["ben", "formal"])
    assert text_of(byte_tokenizer, own, 0) == "Sea?Indeed wet"
    assert book.behind_own(["ben", "terse"]) == []
    assert len(book.behind_base()) == 2
    assert book.behind_base() is book.behind_base()


def test_a_probe_longer_than_the_context_is_counted(byte_tokenizer: Any) -> None:
    book = book_of(byte_tokenizer, Probe("1", "x" * 40, ("a", "b"), 0), Probe("2", "?", ("a", "b"), 0), context=40)
    assert [question.probe.id for question in book.behind_base()] == ["2"]
    assert book.too_long == {"file: 1"}


@pytest.mark.parametrize(
    ("sums", "by_sum", "per_character"),
    [
        ((-1.0, -2.0, -3.0), True, True),
        ((-6.0, -1.0, -3.0), False, False),
        ((-6.0, -4.0, -9.0), False, True),
        ((-1.0, -1.0, -3.0), False, True),
        ((math.nan, -1.0, -3.0), False, False),
        ((-1.0, math.nan, -3.0), True, True),
        ((-math.inf, -math.inf, -math.inf), False, False),
    ],
)
def test_the_right_option_must_be_the_likeliest(sums: tuple[float, ...], by_sum: bool, per_character: bool) -> None:
    question, scores = question_of(*sums, lengths=(3, 1, 1))
    assert question.right(scores) == {"sum": by_sum, "per_character": per_character}


def test_kept_is_the_share_of_what_the_base_had_right() -> None:
    probes = [
        (True, True, "inside", "sea"),
        (True, False, "inside", "sea"),
        (True, True, "outside", "sun"),
        (False, True, "outside", "sun"),
        (False, False, "outside", "sun"),
    ]
    questions, base, person = [], {}, {}
    for number, (base_right, person_right, scope, topic) in enumerate(probes):
        probe = Probe(str(number), "?", ("a", "b"), 0, topic=topic, scope=scope)  # type: ignore[arg-type]
        question = ProbeQuestion(probe, "file", (number,), ((1,), (2,)), (1, 1))
        questions.append(question)
        base |= dict(zip(question.requests, (0.0, -1.0) if base_right else (-1.0, 0.0), strict=True))
        person |= dict(zip(question.requests, (0.0, -1.0) if person_right else (-1.0, 0.0), strict=True))
    found = retention(answered(questions, base, person, "base"))
    overall = found["measures"]["base_sum"]["all"]
    assert (overall["n"], overall["base_right"]) == (5, 3)
    assert (overall["kept"], found["kept"]) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert (found["accuracy"], found["base_accuracy"]) == (0.6, 0.6)
    assert found["measures"]["base_sum"]["inside"]["kept"] == 0.5
    assert found["measures"]["base_sum"]["outside"]["kept"] == 1.0
    assert {topic: part["kept"] for topic, part in found["topics"].items()} == {"sea": 0.5, "sun": 1.0}
    assert found["sources"]["file"] == overall
    assert (found["kept_own"], found["measures"]["own_sum"]["all"]["n"]) == (None, 0)
