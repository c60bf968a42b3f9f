"""A judge behind HTTP: what it is asked, what its answers come to, what is kept and never paid for twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from pluralign.annotators.endpoint import KIND
from pluralign.annotators.protocol import AnnotatorError, Request, Verdict, checked
from pluralign.errors import InputError

Judge = Callable[[Any], "str | None"]


def requests(count: int, *responses: str, user: str | None = "ann") -> list[Request]:
    responses = responses or ("good", "bad")
    return [Request(f"question {number}?", responses, user, f"row {number}") for number in range(count)]


def parts(question: str) -> tuple[str, str]:
    """The two responses that the default template shows."""
    first, second = question.partition("[Response A]\n")[2].partition("\n\n[End]")[0].split("\n\n[Response B]\n")
    return first, second


def ranked(*best_first: str) -> Judge:
    """A judge with a fixed taste."""

    def judge(call: Any) -> str:
        first, second = map(best_first.index, parts(call.question))
        return "A" if first < second else "B"

    return judge


def test_each_pair_is_asked_in_both_orders_and_the_better_response_wins(judge_server: Any, make_judge: Any) -> None:
    judge_server.judge = ranked("good", "bad")
    annotator = make_judge()
    asked = [*requests(1, "good", "bad"), Request("Why?", ("bad", "good"), "bob", "b")]
    assert checked(annotator, asked) == [Verdict((1.0, 0.0)), Verdict((0.0, 1.0))]
    assert list(map(parts, judge_server.questions)) == [
        ("good", "bad"),
        ("bad", "good"),
        ("bad", "good"),
        ("good", "bad"),
    ]
    assert "\nann\n" in judge_server.questions[0] and "question 0?" in judge_server.questions[0]
    assert "\nbob\n" in judge_server.questions[2] and "Why?" in judge_server.questions[2]
    (call, *_) = judge_server.calls
    settings = {name: value for name, value in call.body.items() if name != "messages"}
    assert settings == {"model": "judge", "temperature": 0, "max_tokens": 16}
    assert call.path == "/v1/chat/completions"


def test_verdicts_come_in_the_order_of_the_requests_whatever_comes_first(judge_server: Any, make_judge: Any) -> None:
    others = threading.Event()

    def judge(call: Any) -> str:
        if "question 0?" in call.question:
            others.wait(30)
        if "question 5?" in call.question:
            others.set()
        return ranked("good", "bad")(call)

    judge_server.judge = judge
    asked = [
        Request(f"question {number}?", ("good", "bad") if number % 2 else ("bad", "good"), None, str(number))
        for number in range(6)
    ]
    found = make_judge(requests_at_once=4).annotate(asked)
    assert [verdict.scores for verdict in found] == [(0.0, 1.0), (1.0, 0.0)] * 3


def test_as_many_requests_are_in_flight_as_are_allowed(judge_server: Any, make_judge: Any) -> None:
    together = threading.Barrier(3, timeout=30)

    def judge(call: Any) -> str:
        together.wait()
        return "tie"

    judge_server.judge = judge
    assert all(verdict.tie for verdict in make_judge(requests_at_once=3).annotate(requests(6)))


@pytest.mark.parametrize("answer", ["A", "B"])
def test_a_judge_that_prefers_a_place_decides_nothing(answer: str, judge_server: Any, make_judge: Any) -> None:
    judge_server.judge = lambda call: answer
    annotator = make_judge()
    (verdict,) = annotator.annotate(requests(1))
    assert verdict.tie and verdict.scores == (0.5, 0.5) and "order" in verdict.reason
    assert annotator.counts.disagreements == 1


def test_who_swaps_by_themselves_has_each_order_asked_once(judge_server: Any, make_judge: Any) -> None:
    judge_server.judge = lambda call: "A"
    once = make_judge(both_orders=False)
    asked = [*requests(1), Request("question 0?", ("bad", "good"), "ann", "swapped")]
    assert once.annotate(asked) == [Verdict((1.0, 0.0)), Verdict((1.0, 0.0))]
    assert (once.counts.requests, once.counts.disagreements) == (2, 0)
    # They are the very questions of one that swaps: nothing is paid for twice.
    (verdict,) = make_judge().annotate(requests(1))
    assert verdict.tie and len(judge_server.questions) == 2
    judge_server.judge = lambda call: "TIE"
    (verdict,) = once.annotate(requests(1, "one", "other"))
    assert verdict.tie and once.counts.disagreements == 0


@pytest.mark.parametrize(("answers", "disagreements"), [(("TIE", "TIE"), 0), (("TIE", "A"), 1)])
def test_ties_are_ties(answers: Sequence[str], disagreements: int, judge_server: Any, make_judge: Any) -> None:
    judge_server.judge = lambda call: answers[call.number]
    annotator = make_judge()
    (verdict,) = annotator.annotate(requests(1))
    assert verdict.tie and verdict.scores == (0.5, 0.5)
    assert annotator.counts.disagreements == disagreements


def test_of_more_responses_all_pairs_are_asked_and_the_wins_counted(judge_server: Any, make_judge: Any) -> None:
    def judge(call: Any) -> str:
        # Of the two below the best, whichever stands first.
        return "A" if "good" not in parts(call.question) else ranked("good", "fair", "bad")(call)

    judge_server.judge = judge
    annotator = make_judge()
    (verdict,) = annotator.annotate(requests(1, "bad", "good", "fair"))
    assert verdict == Verdict((0.5, 2.0, 0.5), reason="the answer changes with the order of responses 1 and 3")
    assert (annotator.counts.requests, annotator.counts.disagreements) == (6, 1)


def test_equal_responses_are_a_tie_and_cost_nothing(judge_server: Any, make_judge: Any) -> None:
    assert make_judge().annotate(requests(1, "same", "same")) == [Verdict((0.5, 0.5), tie=True)]
    assert not judge_server.calls


def test_an_answer_that_cannot_be_understood_makes_its_verdict_abstain_and_is_counted(
    judge_server: Any, make_judge: Any
) -> None:
    judge_server.judge = lambda call: "Sure!\x1b[2J  Let me see" if call.number == 1 else ranked("good", "bad")(call)
    annotator = make_judge()
    first, second = checked(annotator, requests(2))
    assert first.abstained and first.scores is None and r"'Sure!\x1b[2J Let me see'" in first.reason
    assert second == Verdict((1.0, 0.0))
    assert (annotator.counts.unparsable, annotator.counts.requests) == (1, 4)


@pytest.mark.parametrize("answer", ["I am only a language model", None, ["?"], 7])
def test_a_judge_that_is_never_understood_is_an_error_that_quotes_it(
    answer: Any, judge_server: Any, make_judge: Any
) -> None:
    judge_server.judge = lambda call: call.say(answer)
    annotator = make_judge()
    with pytest.raises(AnnotatorError, match="none of 2 answers") as error:
        annotator.annotate(requests(1))
    quoted = {None: "''", 7: "'7'"}.get(answer if not isinstance(answer, list) else "", repr("?"))
    assert (quoted if not isinstance(answer, str) else repr(answer)) in str(error.value)
    assert "max_tokens" in str(error.value) and annotator.counts.unparsable == 2
    # Nor is it paid for again.
    with pytest.raises(AnnotatorError, match="none of 2 answers"):
        make_judge().annotate(requests(1))
    assert len(judge_server.calls) == 2


def test_a_judge_that_was_understood_before_may_fail_on_the_last_row(judge_server: Any, make_judge: Any) -> None:
    judge_server.judge = lambda call: "?" if "question 1?" in call.question else ranked("good", "bad")(call)
    first, last = requests(2)
    annotator = make_judge()
    assert not annotator.annotate([first])[0].abstained and annotator.annotate([last])[0].abstained
    # Also in a run that goes on, with nothing else to do.
    assert make_judge().annotate([last])[0].abstained
    judge_server.judge = lambda call: "?"
    with pytest.raises(AnnotatorError, match="none of 16 answers"):
        annotator.annotate(requests(8, "this", "that"))


def test_answers_are_kept_and_counted(judge_server: Any, make_judge: Any) -> None:
    judge_server.judge = lambda call: call.say("tie", usage={"prompt_tokens": 100, "completion_tokens": 2})
    first, again = make_judge(), make_judge()
    assert first.annotate(requests(3)) == make_judge().annotate(requests(3))
    counts = asdict(first.counts)
    tokens = {"prompt_tokens": 600, "completion_tokens": 12}
    assert counts == {"requests": 6, "from_cache": 0, "retried": 0, "unparsable": 0, "disagreements": 0, **tokens}
    # This one had looked into the cache before anything was there.
    again.annotate(requests(1))
    assert len(judge_server.calls) == 8 and make_judge(max_requests=0).annotate(requests(3))[2].tie
    third = make_judge()
    third.annotate(requests(3))
    assert (third.counts.requests, third.counts.from_cache, third.counts.prompt_tokens) == (0, 6, None)


def test_a_question_that_several_rows_ask_is_asked_once(judge_server: Any, make_judge: Any) -> None:
    (request,) = requests(1)
    annotator = make_judge(requests_at_once=4)
    verdicts = annotator.annotate([request, Request(request.prompt, request.responses[::-1], request.user, "other")])
    assert len(verdicts) == 2 and annotator.counts.requests == 2 and annotator.counts.from_cache == 2


@pytest.mark.parametrize("changed", [{"model": "other"}, {"max_tokens": 8}, {"url": "/"}, {"template": "t.txt"}])
def test_other_judges_and_questions_are_asked_anew(
    changed: dict[str, Any], judge_server: Any, make_judge: Any, tmp_path: Path
) -> None:
    (tmp_path / "t.txt").write_text("{user} {prompt} {first} {second}")
    make_judge().annotate(requests(1))
    if "url" in changed:
        changed = {"url": f"{judge_server.url}/?version=2"}
    if "template" in changed:
        changed = {"template": str(tmp_path / "t.txt")}
    make_judge(**changed).annotate(requests(1))
    assert len(judge_server.calls) == 4
    assert judge_server.calls[-1].path == "/v1/chat/completions" + ("?version=2" if "url" in changed else "")


def test_a_limit_ends_the_run_and_the_next_one_goes_on(judge_server: Any, make_judge: Any) -> None:
    judge_server.judge = lambda call: "tie"
    limited = make_judge(max_requests=5, requests_at_once=3)
    assert limited.annotate(requests(1))[0].tie
    with pytest.raises(AnnotatorError) as error:
        limited.annotate(requests(4))
    assert "endpoint.max_requests is 5, and they are used up" in str(error.value)
    assert "3 of 6 questions are open" in str(error.value) and str(KIND) in str(error.value)
    assert limited.counts.requests == 5
    assert all(verdict.tie for verdict in make_judge(max_requests=3).annotate(requests(4)))
    assert len(judge_server.calls) == len(set(judge_server.questions)) == 8


def test_further_tries_count_towards_the_limit(judge_server: Any, make_judge: Any) -> None:
    judge_server.judge = lambda call: call.send("busy", 500)
    with pytest.raises(AnnotatorError, match=r"used up \(1 by further tries\)"):
        make_judge(max_requests=2).annotate(requests(1))
    assert len(judge_server.calls) == 2


def test_after_an_error_in_mid_batch_only_the_rest_is_asked(judge_server: Any, make_judge: Any) -> None:
    judge_server.judge = lambda call: call.send("no", 400) if "question 3?" in call.question else "tie"
    with pytest.raises(AnnotatorError):
        make_judge(requests_at_once=3).annotate(requests(5))
    answered = [call.question for call in judge_server.calls if "question 3?" not in call.question]
    judge_server.calls.clear()
    judge_server.judge = lambda call: "tie"
    assert all(verdict.tie for verdict in make_judge().annotate(requests(5)))
    assert len(judge_server.calls) == 10 - len(answered) and not set(judge_server.questions) & set(answered)


def test_answers_on_their_way_are_kept_when_another_request_fails(judge_server: Any, make_judge: Any) -> None:
    both, failed = threading.Barrier(2, timeout=30), threading.Event()

    def judge(call: Any) -> str | None:
        both.wait()
        if call.number == 0:
            failed.set()
            return call.send("no", 400)
        failed.wait(30)
        return "tie"

    judge_server.judge = judge
    with pytest.raises(AnnotatorError, match="1 of 2 questions are open"):
        make_judge(requests_at_once=2).annotate(requests(1))


PROGRAM = """
import json, sys
from pathlib import Path
from pluralign.annotation import EndpointConfig
from pluralign.annotators.endpoint import EndpointAnnotator
from pluralign.annotators.protocol import Request
given = json.loads(sys.argv[1])
config = EndpointConfig(url=given["url"], model="judge", requests_at_once=1, timeout=300)
annotator = EndpointAnnotator(config, cache_dir=Path(given["cache"]))
annotator.annotate([Request(f"question {number}?", ("good", "bad"), "ann", str(number)) for number in range(3)])
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_goes_on_and_ctrl_c_ends_one_at_once(
    how: signal.Signals, judge_server: Any, make_judge: Any, tmp_path: Path
) -> None:
    waiting = threading.Event()

    def judge(call: Any) -> str | None:
        if call.number < 3:
            return "tie"
        waiting.set()
        return call.stall()

    judge_server.judge = judge
    given = json.dumps({"url": judge_server.url, "cache": str(tmp_path / "cache")})
    with subprocess.Popen([sys.executable, "-c", PROGRAM, given], stderr=subprocess.PIPE, text=True) as process:
        assert waiting.wait(60)
        process.send_signal(how)
        _, errors = process.communicate(timeout=60)  # the request itself may take 300
    assert process.returncode == -how and ("KeyboardInterrupt" in errors) == (how is signal.SIGINT)
    judge_server.judge = lambda call: "tie"
    annotator = make_judge()
    assert all(verdict.tie for verdict in annotator.annotate(requests(3)))
    assert (annotator.counts.requests, annotator.counts.from_cache) == (3, 3)


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / KIND).rglob("answers-*.jsonl"))


def test_half_a_line_is_passed_over_and_a_damaged_one_named(judge_server: Any, make_judge: Any, tmp_path: Path) -> None:
    judge_server.judge = lambda call: "tie"
    make_judge().annotate(requests(2))
    (path,) = kept(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    halved = make_judge()
    halved.annotate(requests(2))
    assert halved.counts.requests == 1 and len(kept(tmp_path)) == 2
    path.write_bytes(content.replace(b'"answer": "tie"', b'"answer": "A"', 1))
    with pytest.warns(UserWarning, match=r"answers-.*jsonl holds 1 damaged line"):
        damaged = make_judge()
    assert all(verdict.tie for verdict in damaged.annotate(requests(2))) and damaged.counts.requests == 1


def test_a_cache_that_cannot_be_written_is_found_before_anything_is_paid_for(
    judge_server: Any, make_judge: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(InputError, match="cache"):
        make_judge()
    (tmp_path / "cache").unlink()
    annotator = make_judge()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with (
        monkeypatch.context() as patch,
        pytest.raises(AnnotatorError, match=r"cannot be kept .No space left on device"),
    ):
        patch.setattr(os, "fsync", full)
        annotator.annotate(requests(1))
    annotator.annotate(requests(1))
    assert len(judge_server.calls) == 3
