"""Questions to a judge: templates, profiles, what arrives; and what answers say."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluralign.annotators.judging_prompts import DEFAULT_TEMPLATE, JudgingPrompts, parse_answer
from pluralign.annotators.protocol import Request
from pluralign.errors import InputError


def requests(count: int, user: str | None = "ann") -> list[Request]:
    return [Request(f"question {number}?", ("good", "bad"), user, f"row {number}") for number in range(count)]


def parts(question: str) -> tuple[str, str]:
    """The two responses that the default template shows."""
    first, second = question.partition("[Response A]\n")[2].partition("\n\n[End]")[0].split("\n\n[Response B]\n")
    return first, second


def test_nobody_in_particular_is_asked_for_too(judge_server: Any, make_judge: Any) -> None:
    make_judge().annotate(requests(1, user=None))
    assert "people in general" in judge_server.questions[0] and "None" not in judge_server.questions[0]


def test_messages_are_shown_as_text_with_who_said_them(judge_server: Any, make_judge: Any) -> None:
    one = [{"role": "user", "content": [{"type": "text", "text": "Just this"}]}]
    several = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "And?"},
    ]
    asked = [Request(prompt, ("good", "bad"), "ann", str(number)) for number, prompt in enumerate((one, several))]
    make_judge().annotate(asked)
    assert "[The prompt]\nJust this\n\n[Response A]" in judge_server.questions[0]
    assert "[The prompt]\nuser: Hello\n\nassistant: Hi\n\nuser: And?\n\n[Response A]" in judge_server.questions[2]


def test_whatever_the_texts_hold_they_arrive_unchanged_and_in_their_place(
    judge_server: Any, make_judge: Any, tmp_path: Path
) -> None:
    template = tmp_path / "template.txt"
    template.write_text('{second}|{ user }|{user}|{"answer": "A"}|{prompt}|{first}|{prompt}', encoding="utf-8")
    annotator = make_judge(template=str(template), requests_at_once=2)
    text = st.text() | st.sampled_from(["{prompt}{user}", "%s\\1\\g<0>", "a\r\n\x00\x1b{{}}"])
    numbers = itertools.count()

    @given(prompt=text, first=text, second=text, user=text)
    def arrives(prompt: str, first: str, second: str, user: str) -> None:
        judge_server.calls.clear()
        # Nothing of this has been asked before, and the responses differ.
        first, second = f"{first}{next(numbers)}", f"{second}{next(numbers)}"
        annotator.annotate([Request(prompt, (first, second), user, "r")])
        wanted = {
            f'{b}|{{ user }}|{user}|{{"answer": "A"}}|{prompt}|{a}|{prompt}'
            for a, b in ((first, second), (second, first))
        }
        assert set(judge_server.questions) == wanted

    arrives()


def test_half_a_surrogate_pair_is_shown_as_a_replacement_character(judge_server: Any, make_judge: Any) -> None:
    whole = {
        "\ud800": "\ufffd",
        "a\udc00b\udc00": "a\ufffdb\ufffd",
        "\ud83d\ude00": "😀",
        "\udc00\ud800x": "\ufffd\ufffdx",
    }
    annotator = make_judge()
    for broken, shown in whole.items():
        judge_server.calls.clear()
        annotator.annotate([Request("Hm?", (broken, "short"), broken, "r")])
        assert list(map(parts, judge_server.questions)) == [(shown, "short"), ("short", shown)]
        assert all(f"[The person]\n{shown}\n\n" in question for question in judge_server.questions)


@pytest.mark.parametrize(
    ("answer", "choice"),
    [
        *((text, "first") for text in ("A", "a", " A.\n", "**A**", "[[A]]", "'A'", "Answer: A", '{"answer": "A"}')),
        *((text, "first") for text in ("Response A", "Response A is better than B.", "A, it is shorter")),
        *((text, "second") for text in ("B", "(B)", "The answer is B.", "My choice: Response B!", "B - friendlier")),
        *((text, "second") for text in ("B. A is too long.", "B\nA says too little.", "First, A lies.\nVerdict: B")),
        *((text, "second") for text in ("<think>A? No.\nA</think>\n\nB", "Final judgment: **B**")),
        *(
            (text, "tie")
            for text in ("TIE", "tie.", "Tie", "It's a tie.", "A tie", "Answer: TIE", "Tie: both are fine")
        ),
        *((text, None) for text in ("", "   ", "C", "A or B", "A, B", "A/B", "AB", "A better one is B", "A: 7, B: 8")),
        *(
            (text, None)
            for text in ("A\nB", "<think>\nA", "A-level", "Response A is worse than B", "I cannot say", "TIES")
        ),
    ],
)
def test_what_answers_say(answer: str, choice: str | None) -> None:
    assert parse_answer(answer) == choice


def test_profiles_stand_for_the_person(judge_server: Any, make_judge: Any, tmp_path: Path) -> None:
    path = tmp_path / "profiles.json"
    path.write_text(json.dumps({"ann": "likes {first} names", "bob": "hates cheese"}))
    annotator = make_judge(profiles=str(path))
    annotator.annotate(requests(1))
    assert "[The person]\nlikes {first} names\n" in judge_server.questions[0]
    asked = [*requests(1, user="bob"), Request("?", ("good", "bad"), "eve", "row 9")]
    for call in (annotator.check, annotator.annotate):
        with pytest.raises(InputError, match=r"profiles.json.*'eve'.*'row 9'"):
            call(asked)
    with pytest.raises(InputError, match="'eve'"):
        annotator.check([Request("?", ("same", "same"), "eve", "row 9")])
    assert len(judge_server.calls) == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{prompt} {first} {second} {person}", "nothing stands for {person}"),
        (b"{prompt} {first} {second} {0}", "nothing stands for {0}"),
        (b"{prompt} {first}", "{second} cannot be found"),
        (b"", "{prompt} and {first} and {second} cannot be found"),
        (b"\xff{prompt} {first} {second}", "not UTF-8"),
        (None, "cannot be read (No such file or directory)"),
    ],
)
def test_templates_that_cannot_be_used(content: bytes | None, said: str, make_judge: Any, tmp_path: Path) -> None:
    path = tmp_path / "template.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as error:
        make_judge(template=str(path))
    assert said in str(error.value) and f"annotator.endpoint.template {path}" in str(error.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('["ann"]', "holds no object"),
        ('{"ann": 3}', "user 'ann' is no text"),
        ('{"ann": " "}', "user 'ann' is empty"),
        ("{", "not JSON"),
        (None, "there is no such file"),
    ],
)
def test_profiles_that_cannot_be_used(content: str | None, said: str, make_judge: Any, tmp_path: Path) -> None:
    path = tmp_path / "profiles.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError) as error:
        make_judge(profiles=str(path))
    assert said in str(error.value) and f"annotator.endpoint.profiles {path}" in str(error.value)


def test_profiles_that_no_question_would_show_are_refused(make_judge: Any, tmp_path: Path) -> None:
    (tmp_path / "profiles.json").write_text('{"ann": "likes cheese"}')
    (tmp_path / "template.txt").write_text("{prompt} {first} {second}")
    with pytest.raises(InputError, match=r"no \{user\}, and annotator.endpoint.profiles is given"):
        make_judge(template=str(tmp_path / "template.txt"), profiles=str(tmp_path / "profiles.json"))


def test_the_template_of_the_library_is_one_that_a_user_could_give(tmp_path: Path) -> None:
    (tmp_path / "template.txt").write_text(DEFAULT_TEMPLATE)
    assert JudgingPrompts.of_files(str(tmp_path / "template.txt"), "") == JudgingPrompts.of_files("", "")
    orders = list(itertools.permutations(range(2)))
    questions = {JudgingPrompts().question(requests(1)[0], *order) for order in orders}
    assert len(questions) == 2 and not any("{" in question for question in questions)
