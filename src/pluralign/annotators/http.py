"""Questions to a model behind an OpenAI-compatible endpoint: paced, counted, asked again where a failure may pass."""

from __future__ import annotations

import email.utils
import json
import math
import os
import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse, responses
from typing import Any, cast
from urllib.error import HTTPError, URLError
from urllib.parse import SplitResult, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from pluralign.annotation import EndpointConfig
from pluralign.errors import InputError
from pluralign.fewshot.answers import plain_text

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0
_LONGEST_WAIT = 300.0
_LARGEST_BODY = 4 << 20
_QUOTED = 300
_SHORTEST_SECRET = 8
_HIDDEN = "***"


class NoAnswerError(Exception):
    """A question has no answer, and asking again would not help now.

    Args:
        found: what happened, in a clause.
        fix: what to do, in a sentence.
    """

    def __init__(self, found: str, fix: str = "") -> None:
        self.found, self.fix = found, fix
        super().__init__(found)


class StoppedError(Exception):
    """Another question failed, or somebody pressed Ctrl-C, before this one was answered."""


class _PassingError(Exception):
    """A try failed for a reason that may pass; `after` is how many seconds the server asks to be left alone."""

    def __init__(self, found: str, after: float | None = None) -> None:
        self.found, self.after = found, after
        super().__init__(found)


@dataclass(frozen=True)
class Clock:
    """Time and chance as they are; a test gives its own.

    Attributes:
        now: seconds on a clock that never goes back.
        wait: for so many seconds, or until the event is set; says whether it is.
        chance: a number in [0, 1) that spreads the tries of several threads.
    """

    now: Callable[[], float] = time.monotonic
    wait: Callable[[threading.Event, float], bool] = threading.Event.wait
    # A generator of its own: the global one belongs to whoever seeded it.
    chance: Callable[[], float] = field(default_factory=lambda: random.Random().random)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model said.

    Attributes:
        text: its answer; empty where it gave none.
        prompt_tokens: that were read; None where the endpoint does not say.
        completion_tokens: that were written; the same.
    """

    text: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Key:
    """The secret that an environment variable holds. It leaves this object in the header of a request only.

    Args:
        variable: its name; empty, or of a variable that is not set, for no key.

    Raises:
        InputError: that is no name of a variable, or its value cannot stand in a header. Neither is quoted: the first
            may be a key in the wrong place.
    """

    def __init__(self, variable: str) -> None:
        if variable and not re.fullmatch(r"[A-Za-z_]\w*", variable, re.ASCII):
            raise InputError(
                "annotator.endpoint.key_variable is no name of an environment variable",
                fix="It names the variable that holds the key; the key itself is written nowhere.",
            )
        self._value = os.environ.get(variable, "").strip() if variable else ""
        if not (self._value.isascii() and self._value.isprintable()):
            raise InputError(
                f"the environment variable {variable} holds characters that cannot stand in a header",
                where="annotator.endpoint.key_variable",
            )
        escaped = json.dumps(self._value)[1:-1]
        self._forms = sorted({self._value, escaped, escaped.replace("/", "\\/")} - {""}, key=len, reverse=True)

    def __repr__(self) -> str:
        return f"Key({_HIDDEN if self else 'none'})"

    def __bool__(self) -> bool:
        return bool(self._value)

    def sign(self, request: Request) -> None:
        """Put the key into a request's header, one that urllib gives to no other address."""
        if self._value:
            request.add_unredirected_header("Authorization", f"Bearer {self._value}")

    def hidden(self, text: str) -> str:
        """A text that a server sent, for a message: it may have sent the header back."""
        for form in self._forms:
            text = text.replace(form, _HIDDEN)
        return text

    def hidden_in_answer(self, text: str) -> str:
        """The same for an answer, where a few letters that stand for a key (`EMPTY`, `none`) may be meant as a word."""
        return self.hidden(text) if len(self._value) >= _SHORTEST_SECRET else text


class ChatClient:
    """Asks one model, from as many threads as there are.

    A try that timed out, could not connect, lost its connection, was refused for load (429), met an error of the server
    (5xx) or brought something else than a chat completion is made again, after pauses that double, or as long as
    `Retry-After` asks for; that one holds back the other threads too.

    Attributes:
        url: that is asked.
        place: the same for messages, without a query.
        sent: requests so far, failed ones too.
        retried: those of them that were made again.

    Args:
        config: of the endpoint.
        clock: time and chance.

    Raises:
        InputError: a key of the configuration is out of its range.
    """

    def __init__(self, config: EndpointConfig, clock: Clock) -> None:
        _check(config)
        self.url, self.place = _addresses(config.url)
        self.sent = self.retried = 0
        self._config, self._clock = config, clock
        self._key = Key(config.key_variable)
        self._gate = _Gate(config.requests_per_minute, clock)
        self._opener = build_opener(_NoRedirects)
        self._lock = threading.Lock()

    def ask(self, question: str, stop: threading.Event) -> Reply:
        """The model's answer to one message.

        Args:
            question: the message.
            stop: ends pauses and further tries when it is set.

        Raises:
            NoAnswerError: there is no answer, and no try left.
            StoppedError: `stop` was set first.
        """
        message = {"role": "user", "content": question}
        order = {"model": self._config.model, "messages": [message], "temperature": 0}
        body = json.dumps({**order, "max_tokens": self._config.max_tokens}).encode("ascii")
        tries = self._config.retries + 1
        for number in range(tries):
            self._gate.enter(stop)
            self._count(again=number > 0)
            try:
                return self._post(body)
            except _PassingError as error:
                failure = error
            if number + 1 < tries:
                self._pause(number, failure, stop)
        raise NoAnswerError(f"{failure.found} (the last of {tries} tries)" if tries > 1 else failure.found)

    def quoted(self, text: str) -> str:
        """The beginning of what a server said, for a message: one line in quotes, no control characters, no key."""
        text = " ".join(self._key.hidden(text)[: 4 * _QUOTED].split())
        return repr(text if len(text) <= _QUOTED else f"{text[:_QUOTED]}…")

    def _count(self, *, again: bool) -> None:
        limit = self._config.max_requests
        with self._lock:
            if limit is not None and self.sent >= limit:
                used = f"used up ({self.retried} by further tries)"
                raise NoAnswerError(f"annotator.endpoint.max_requests is {limit}, and they are {used}")
            self.sent += 1
            self.retried += again

    def _pause(self, number: int, failure: _PassingError, stop: threading.Event) -> None:
        pause = min(_FIRST_PAUSE * 2 ** min(number, 10), _LONGEST_PAUSE) * (0.5 + self._clock.chance())
        if failure.after is not None:
            if failure.after > _LONGEST_WAIT:
                raise NoAnswerError(f"{failure.found}, and asks to be left alone for {failure.after:.0f} seconds")
            self._gate.hold(failure.after)
            pause = max(pause, failure.after)
        if self._clock.wait(stop, pause):
            raise StoppedError

    def _post(self, body: bytes) -> Reply:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "pluralign"}
        request = Request(self.url, data=body, headers=headers, method="POST")
        self._key.sign(request)
        try:
            with self._opener.open(request, timeout=self._config.timeout) as response:
                text = self._read(response)
        except HTTPError as error:
            with error:
                failure = self._refusal(error)
            raise failure from None
        except (OSError, HTTPException) as error:
            raise _PassingError(self._key.hidden(self._trouble(error))) from None
        try:
            return self._reply(text)
        except (ValueError, RecursionError):
            found = f"{self.place} sent something else than a chat completion: {self.quoted(text)}"
            raise _PassingError(found) from None

    def _read(self, response: HTTPResponse) -> str:
        # The timeout of a socket is that of one read, and some servers send spaces for as long as they think.
        end = self._clock.now() + self._config.timeout
        content = b""
        while len(content) < _LARGEST_BODY and (part := response.read1(1 << 16)):
            content += part
            if self._clock.now() > end:
                raise TimeoutError
        return content.decode("utf-8", "replace")

    def _reply(self, text: str) -> Reply:
        """Read a chat completion.

        Raises:
            ValueError: it is none.
        """
        found = json.loads(text)
        try:
            message = found["choices"][0]["message"]
            content = message.get("content")
            # Models that refuse, or think until the tokens are used up, say nothing.
            answer = "" if content is None else plain_text([message])
        except (KeyError, IndexError, TypeError, AttributeError):
            raise ValueError("no choices") from None
        usage = found.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        counts = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
        return Reply(
            self._key.hidden_in_answer(answer), *(count if isinstance(count, int) else None for count in counts)
        )

    def _refusal(self, error: HTTPError) -> NoAnswerError | _PassingError:
        """What an error status says."""
        try:
            body = self._read(cast(HTTPResponse, error.fp))
        except (OSError, HTTPException):
            body = ""
        found = f"{self.place} answered {error.code} {responses.get(error.code, '')}".rstrip()
        if body.strip():
            found += f": {self.quoted(body)}"
        if error.code == 429 or error.code >= 500:
            return _PassingError(found, _retry_after(error.headers.get("Retry-After")))
        if error.code < 400:
            # Followed, it would take texts, and with some clients the key, to an address that nobody named.
            target = self.quoted(error.headers.get("Location") or "")
            return NoAnswerError(
                f"{found} and leads on to {target}", "Give annotator.endpoint.url the address that is meant."
            )
        fixes = {
            401: self._key_fix(),
            403: self._key_fix(),
            404: "Check annotator.endpoint.url and annotator.endpoint.model.",
        }
        return NoAnswerError(found, fixes.get(error.code, ""))

    def _key_fix(self) -> str:
        variable = self._config.key_variable
        if self._key:
            return f"Check the key in the environment variable {variable}."
        return f"No key was sent: the environment variable {variable} is not set." if variable else "No key was sent."

    def _trouble(self, error: OSError | HTTPException) -> str:
        """What kept an answer from coming."""
        reason = error.reason if isinstance(error, URLError) else error
        if isinstance(reason, TimeoutError):
            return f"{self.place} did not answer within {self._config.timeout:g} seconds"
        why = getattr(reason, "strerror", None) or str(reason)[:_QUOTED] or type(reason).__name__
        # urllib wraps what happens before a request is out, and nothing after it.
        return f"{self.place} {'cannot be reached' if isinstance(error, URLError) else 'broke the connection'} ({why})"


class _Gate:
    """Lets requests through one by one: so many a minute, evenly, and none while the server wants to be left alone."""

    def __init__(self, per_minute: float | None, clock: Clock) -> None:
        self._spacing = 60 / per_minute if per_minute else 0.0
        self._clock, self._lock = clock, threading.Lock()
        self._next = -math.inf

    def enter(self, stop: threading.Event) -> None:
        with self._lock:
            now = self._clock.now()
            start = max(now, self._next)
            self._next = start + self._spacing
        if (start > now and self._clock.wait(stop, start - now)) or stop.is_set():
            raise StoppedError

    def hold(self, seconds: float) -> None:
        with self._lock:
            self._next = max(self._next, self._clock.now() + seconds)


class _NoRedirects(HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def _retry_after(given: str | None) -> float | None:
    """Seconds that a `Retry-After` header asks for, as a number or a date; None where it says nothing."""
    if given is None:
        return None
    try:
        seconds = float(given)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(given).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def _check(config: EndpointConfig) -> None:
    if not config.model:
        raise InputError("annotator.endpoint.model is empty", fix="It is the judge's name, as the endpoint knows it.")
    whole = {"requests_at_once": 1, "retries": 0, "max_tokens": 1, "max_requests": 0}
    for name, least in whole.items():
        value = getattr(config, name)
        if value is not None and value < least:
            raise InputError(f"annotator.endpoint.{name} is {value}", fix=f"It is a whole number of {least} or more.")
    for name in ("requests_per_minute", "timeout"):
        value = getattr(config, name)
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"annotator.endpoint.{name} is {value}", fix="It is a number above 0.")


def _addresses(url: str) -> tuple[str, str]:
    """Where requests go, and what messages call it.

    Raises:
        InputError: no such address can be asked.
    """
    parts = _split(url)
    path = parts.path.rstrip("/")
    if not path.endswith("/chat/completions"):
        path += "/chat/completions"
    found = parts._replace(path=path, fragment="")
    return found.geturl(), found._replace(query="").geturl()


def _split(url: str) -> SplitResult:
    # Not quoted in any message before it is known to hold no password.
    fix = "It looks like http://localhost:8000/v1."
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        fits = fits and url.isascii() and url.isprintable() and " " not in url
        (parts.hostname or "").encode("idna")
    except ValueError:
        raise InputError("annotator.endpoint.url is no address", fix=fix) from None
    if parts.username is not None:
        raise InputError(
            "annotator.endpoint.url holds a name or a password", fix="Keys come from annotator.endpoint.key_variable."
        )
    if not fits:
        raise InputError(f"annotator.endpoint.url is {url!r}" if url else "annotator.endpoint.url is empty", fix=fix)
    return parts
