"""Requests to a judge: what fails and passes, what ends a run, how they are paced, and where the key goes."""

from __future__ import annotations

import email.utils
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pluralign.annotators.endpoint import KIND
from pluralign.annotators.http import Clock
from pluralign.annotators.protocol import AnnotatorError, Request, Verdict
from pluralign.errors import InputError

Judge = Callable[[Any], "str | None"]


def requests(count: int) -> list[Request]:
    return [Request(f"question {number}?", ("good", "bad"), "ann", f"row {number}") for number in range(count)]


def fail(call: Any) -> None:
    call.send("busy", 500)


def overloaded(call: Any) -> None:
    call.send("slow down", 429)


def babble(call: Any) -> None:
    call.send("<html>Bad gateway</html>")


def no_choices(call: Any) -> None:
    call.send('{"error": {"message": "no provider"}}')


def empty_choices(call: Any) -> None:
    call.send('{"choices": []}')


def deep(call: Any) -> None:
    call.send("[" * 100_000)


def cut(call: Any) -> None:
    call.send('{"choices": [{"mess', Content_Length="100")


def drip(call: Any) -> None:
    """Spaces, for as long as somebody listens."""
    call.send("")
    while not call.handler.server.over.wait(0.02):
        call.handler.wfile.write(b" ")


TROUBLES = {
    "a server's error": fail,
    "too many": overloaded,
    "a dropped connection": lambda call: call.drop(),
    "no JSON": babble,
    "no choices": no_choices,
    "an empty list": empty_choices,
    "a deep list": deep,
    "a cut body": cut,
    "stalled": lambda call: call.stall(),
    "spaces for ever": drip,
}
SLOW = ("stalled", "spaces for ever")


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_failure_that_passes_costs_a_pause(trouble: str, judge_server: Any, make_judge: Any) -> None:
    def judge(call: Any) -> str | None:
        if call.number == 1:
            return TROUBLES[trouble](call)
        return "A" if "[Response A]\ngood" in call.question else "B"

    judge_server.judge = judge
    pauses: list[float] = []

    def wait(stop: threading.Event, seconds: float) -> bool:
        pauses.append(seconds)
        return stop.is_set()

    # Time goes on by itself here: a server that drips has to run out of it.
    annotator = make_judge(Clock(wait=wait, chance=lambda: 0.5), timeout=0.3 if trouble in SLOW else 30)
    assert annotator.annotate(requests(1)) == [Verdict((1.0, 0.0))]
    assert judge_server.questions[1] == judge_server.questions[2] and pauses[0] == 0.5
    # On a busy machine others may have stalled too.
    assert trouble in SLOW or (annotator.counts.requests, annotator.counts.retried, len(pauses)) == (3, 1, 1)


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("a server's error", "answered 500 Internal Server Error: 'busy' (the last of 4 tries)"),
        ("too many", "429 Too Many Requests"),
        ("a dropped connection", "broke the connection (Remote end closed connection without response)"),
        ("no JSON", "something else than a chat completion: '<html>Bad gateway</html>'"),
        ("no choices", "no provider"),
    ],
)
def test_a_failure_that_stays_is_an_error_that_names_the_row(
    trouble: str, said: str, judge_server: Any, make_judge: Any, stopwatch: Any
) -> None:
    judge_server.judge = lambda call: TROUBLES[trouble](call) if "question 1?" in call.question else "tie"
    annotator = make_judge(stopwatch.clock(), retries=3)
    with pytest.raises(AnnotatorError) as error:
        annotator.annotate(requests(3))
    assert said in str(error.value) and error.value.row == "row 1" and error.value.exit_code == 1
    assert "annotator endpoint judge, row 'row 1': http://127.0.0.1:" in str(error.value)
    assert "4 of 6 questions are open" in str(error.value) and "goes on from there" in str(error.value)
    assert stopwatch.waits == [0.5, 1.0, 2.0] and annotator.counts.requests == 6


def test_an_endpoint_that_never_answers(judge_server: Any, make_judge: Any) -> None:
    judge_server.judge = lambda call: call.stall()
    with pytest.raises(AnnotatorError, match=r"did not answer within 0\.1 seconds\. 2 of 2"):
        make_judge(timeout=0.1, retries=0).annotate(requests(1))


def test_an_endpoint_that_is_not_there(make_judge: Any) -> None:
    with pytest.raises(AnnotatorError, match="cannot be reached"):
        make_judge(url="http://127.0.0.1:9", retries=0).annotate(requests(1))


@pytest.mark.parametrize(
    ("given", "pause"),
    [("7", 7.0), ("0", 0.5), ("soon", 0.5), ("nan", 0.5), ("Thu, 01 Jan 1970 00:00:00 GMT", 0.5), ("", 0.5)],
)
def test_retry_after_is_honoured(given: str, pause: float, judge_server: Any, make_judge: Any, stopwatch: Any) -> None:
    judge_server.judge = lambda call: call.send("slow", 429, Retry_After=given) if call.number == 0 else "tie"
    assert make_judge(stopwatch.clock()).annotate(requests(1))[0].tie
    assert stopwatch.waits == [pause]


def test_retry_after_holds_back_the_other_requests_too(judge_server: Any, make_judge: Any) -> None:
    judge_server.judge = lambda call: call.send("slow", 503, Retry_After="7") if call.number == 0 else "tie"
    waits: list[float] = []

    def wait(stop: threading.Event, seconds: float) -> bool:
        waits.append(seconds)
        return stop.is_set()

    # On a clock that stands still nobody has waited long enough: not the one that was refused, nor the next one.
    assert make_judge(Clock(now=lambda: 0.0, wait=wait, chance=lambda: 0.5)).annotate(requests(1))[0].tie
    assert waits == [7.0, 7.0, 7.0]


def test_retry_after_may_be_a_date(judge_server: Any, make_judge: Any, stopwatch: Any) -> None:
    date = email.utils.formatdate(time.time() + 200, usegmt=True)
    judge_server.judge = lambda call: call.send("slow", 503, Retry_After=date) if call.number == 0 else "tie"
    assert make_judge(stopwatch.clock()).annotate(requests(1))[0].tie
    assert len(stopwatch.waits) == 1 and 100 < stopwatch.waits[0] <= 200


def test_who_wants_to_be_left_alone_for_hours_ends_the_run(judge_server: Any, make_judge: Any) -> None:
    judge_server.judge = lambda call: call.send("quota", 429, Retry_After="86400")
    with pytest.raises(AnnotatorError, match="left alone for 86400 seconds"):
        make_judge().annotate(requests(1))
    assert len(judge_server.calls) == 1


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (400, "400 Bad Request: 'context length'"),
        (401, "OPENAI_API_KEY"),
        (404, "annotator.endpoint.model"),
        (422, "422"),
    ],
)
def test_other_refusals_are_errors_at_once(status: int, said: str, judge_server: Any, make_judge: Any) -> None:
    judge_server.judge = lambda call: call.send("context\n length" + "!" * (status == 422) * 5000, status)
    with pytest.raises(AnnotatorError) as error:
        make_judge().annotate(requests(2))
    assert said in str(error.value) and error.value.row == "row 0" and len(str(error.value)) < 800
    assert len(judge_server.calls) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(status: int, judge_server: Any, make_judge: Any) -> None:
    judge_server.judge = lambda call: call.send("", status, Location=f"{judge_server.url}/elsewhere")
    with pytest.raises(AnnotatorError, match=r"leads on to '.*/elsewhere'"):
        make_judge().annotate(requests(1))
    assert len(judge_server.calls) == 1


def test_so_many_requests_a_minute(judge_server: Any, make_judge: Any, stopwatch: Any) -> None:
    judge_server.judge = lambda call: fail(call) if call.number == 2 else "tie"
    make_judge(stopwatch.clock(), requests_per_minute=120).annotate(requests(2))
    # The third failed, and its pause was as long as the next one had to wait anyway.
    assert stopwatch.waits == [0.5] * 4 and stopwatch.time == 2.0 and len(judge_server.calls) == 5


def test_the_key_goes_into_the_header_and_nowhere_else(
    judge_server: Any, make_judge: Any, judge_key: str, tmp_path: Path, caplog: Any, capfd: Any
) -> None:
    caplog.set_level(0)
    found: list[str] = []
    escaped = json.dumps(judge_key)[1:-1].replace("/", "\\/")
    troubles: list[Judge] = [
        lambda call: call.send(f"bad header: {call.headers['Authorization']}", 401),
        lambda call: call.send(f'{{"error": "{escaped}"}}', 403),
        lambda call: call.send(f"{'x' * 290}{judge_key}", 400),
        lambda call: call.send("", 302, Location=f"http://127.0.0.1/?key={judge_key}"),
        lambda call: call.send(call.headers["Authorization"]),
        lambda call: call.handler.wfile.write(f"{call.headers['Authorization']}\r\n\r\n".encode()),
        lambda call: call.headers["Authorization"],
    ]
    for judge in troubles:
        judge_server.judge = judge
        annotator = make_judge(retries=1)
        with pytest.raises(AnnotatorError) as error:
            annotator.annotate(requests(1))
        assert error.value.__cause__ is None and error.value.__context__ is None
        found += [str(error.value), repr(error.value), repr(annotator), repr(vars(annotator)), str(annotator.counts)]
        found += [repr(vars(value)) for value in vars(annotator).values() if hasattr(value, "__dict__")]
    assert all(call.headers["Authorization"] == f"Bearer {judge_key}" for call in judge_server.calls)
    assert sum("***" in text for text in found) >= 6
    (kept,) = (tmp_path / "cache" / KIND).rglob("answers-*.jsonl")
    assert kept.read_text().count("***") == 2
    found += [path.read_text() for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    found += [caplog.text, *capfd.readouterr()]
    assert not [text for text in found if any(part in text for part in (judge_key[:10], judge_key[-10:]))]


def test_a_verdict_does_not_quote_the_key(judge_server: Any, make_judge: Any, judge_key: str) -> None:
    judge_server.judge = lambda call: f"Your key is {judge_key}" if call.number == 0 else "tie"
    (verdict,) = make_judge().annotate(requests(1))
    assert verdict.abstained and verdict.reason == "unparsable answer 'Your key is ***'"


def test_without_a_key_none_is_sent(judge_server: Any, make_judge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    make_judge(key_variable="").annotate(requests(1))
    monkeypatch.delenv("OPENAI_API_KEY")
    make_judge(model="second").annotate(requests(1))
    assert len(judge_server.calls) == 4 and not any("Authorization" in call.headers for call in judge_server.calls)
    judge_server.judge = lambda call: call.send("who?", 401)
    with pytest.raises(AnnotatorError, match="the environment variable OPENAI_API_KEY is not set"):
        make_judge(model="third").annotate(requests(1))


def test_a_placeholder_for_a_key_leaves_answers_as_they_are(
    judge_server: Any, make_judge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "A")
    judge_server.judge = lambda call: "AB"[call.number]
    assert make_judge().annotate(requests(1)) == [Verdict((1.0, 0.0))]


def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(
    make_judge: Any, judge_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f"{judge_key}\n{judge_key}")
    with pytest.raises(InputError, match="OPENAI_API_KEY holds characters") as error:
        make_judge()
    assert judge_key not in str(error.value)
    with pytest.raises(InputError, match="no name of an environment variable") as error:
        make_judge(key_variable=judge_key)
    assert judge_key not in str(error.value)


def test_spaces_around_a_key_are_not_sent(
    judge_server: Any, make_judge: Any, judge_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f" {judge_key}\n")
    make_judge().annotate(requests(1))
    assert judge_server.calls[0].headers["Authorization"] == f"Bearer {judge_key}"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"url": ""}, "annotator.endpoint.url is empty"),
        ({"url": "localhost:8000/v1"}, "annotator.endpoint.url is 'localhost:8000/v1'"),
        ({"url": "file:///etc/passwd"}, "annotator.endpoint.url"),
        ({"url": "http://host:port/v1"}, "annotator.endpoint.url is no address"),
        ({"url": "http://a..b/v1"}, "annotator.endpoint.url is no address"),
        ({"url": "http://host/v 1"}, "annotator.endpoint.url"),
        ({"url": "http://me:hunter2@host/v1"}, "annotator.endpoint.url holds a name or a password"),
        ({"model": ""}, "annotator.endpoint.model is empty"),
        ({"requests_at_once": 0}, "annotator.endpoint.requests_at_once is 0"),
        ({"requests_per_minute": 0}, "annotator.endpoint.requests_per_minute is 0"),
        ({"retries": -1}, "annotator.endpoint.retries is -1"),
        ({"timeout": float("nan")}, "annotator.endpoint.timeout is nan"),
        ({"max_requests": -1}, "annotator.endpoint.max_requests is -1"),
        ({"max_tokens": 0}, "annotator.endpoint.max_tokens is 0"),
    ],
)
def test_keys_out_of_their_range(changes: dict[str, Any], said: str, make_judge: Any) -> None:
    with pytest.raises(InputError) as error:
        make_judge(**changes)
    assert said in str(error.value) and "hunter2" not in str(error.value)
