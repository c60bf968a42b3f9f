"""JSON over HTTP with one server: paced, counted, asked again where a failure may pass."""

from __future__ import annotations

import email.utils
import json
import math
import os
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse, responses
from typing import Any, Generic, TypeVar, cast
from urllib.error import HTTPError, URLError
from urllib.parse import SplitResult, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from pluralign.errors import InputError

T = TypeVar("T")

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
        status: that the server answered with; None where it did not answer.
    """

    def __init__(self, found: str, fix: str = "", status: int | None = None) -> None:
        self.found, self.fix, self.status = found, fix, status
        super().__init__(found)


class StoppedError(Exception):
    """Another question failed, or somebody pressed Ctrl-C, before this one was answered."""


class _PassingError(Exception):
    """A try failed for a reason that may pass; `after` is how many seconds the server asks to be left alone."""

    def __init__(self, found: str, after: float | None = None, status: int | None = None) -> None:
        self.found, self.after, self.status = found, after, status
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


class Key:
    """The secret that an environment variable holds. It leaves this object in the header of a request only.

    Args:
        variable: its name; empty, or of a variable that is not set, for no key.
        place: key of the configuration that names the variable.

    Raises:
        InputError: that is no name of a variable, or its value cannot stand in a header. Neither is quoted: the first
            may be a key in the wrong place.
    """

    def __init__(self, variable: str, place: str) -> None:
        if variable and not re.fullmatch(r"[A-Za-z_]\w*", variable, re.ASCII):
            raise InputError(
                f"{place} is no name of an environment variable",
                fix="It names the variable that holds the key; the key itself is written nowhere.",
            )
        self._value = os.environ.get(variable, "").strip() if variable else ""
        if not (self._value.isascii() and self._value.isprintable()):
            raise InputError(
                f"the environment variable {variable} holds characters that cannot stand in a header",
                where=place,
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


@dataclass(frozen=True, slots=True)
class Route(Generic[T]):
    """One thing that a server can be asked for.

    Attributes:
        url: that is asked.
        expected: what an answer is, for messages ("a chat completion").
        read: makes the answer of a body; a ValueError says that it is none.
        missing: what to do where there is nothing at that address (404), in a sentence.
    """

    url: str
    expected: str
    read: Callable[[str], T]
    missing: str = ""

    @property
    def place(self) -> str:
        """The address for messages, without a query."""
        return urlsplit(self.url)._replace(query="").geturl()


class JsonClient:
    """Asks one server, from as many threads as there are.

    A try that timed out, could not connect, lost its connection, was refused for load (429), met an error of the server
    (5xx) or brought something else than was expected is made again, after pauses that double, or as long as
    `Retry-After` asks for; that one holds back the other threads too.

    Attributes:
        sent: requests so far, failed ones too.
        retried: those of them that were made again.

    Args:
        group: of the configuration, whose keys messages name: `url`, `key_variable`, `max_requests`.
        key_variable: environment variable with the key.
        retries: further tries of a request.
        timeout: seconds until a request counts as stalled.
        clock: time and chance.
        per_minute: most requests in a minute.
        most: requests that may be sent at all.

    Raises:
        InputError: `key_variable` is no name of a variable, or its value no key.
    """

    def __init__(
        self,
        group: str,
        *,
        key_variable: str,
        retries: int,
        timeout: float,
        clock: Clock,
        per_minute: float | None = None,
        most: int | None = None,
    ) -> None:
        self.sent = self.retried = 0
        self._group, self._variable = group, key_variable
        self._retries, self._timeout, self._most, self._clock = retries, timeout, most, clock
        self._key = Key(key_variable, f"{group}.key_variable")
        self._gate = _Gate(per_minute, clock)
        self._opener = build_opener(_NoRedirects)
        self._lock = threading.Lock()

    def exchange(self, route: Route[T], order: Mapping[str, Any] | None, stop: threading.Event) -> T:
        """What the server answers.

        Args:
            route: that is asked.
            order: what is sent, as JSON; None asks without a body (GET).
            stop: ends pauses and further tries when it is set.

        Raises:
            NoAnswerError: there is no answer, and no try left.
            StoppedError: `stop` was set first.
        """
        body = None if order is None else json.dumps(order).encode("ascii")
        tries = self._retries + 1
        for number in range(tries):
            self._gate.enter(stop)
            self._count(again=number > 0)
            try:
                return self._send(route, body)
            except _PassingError as error:
                failure = error
            if number + 1 < tries:
                self._pause(number, failure, stop)
        found = f"{failure.found} (the last of {tries} tries)" if tries > 1 else failure.found
        raise NoAnswerError(found, status=failure.status)

    def quoted(self, text: str) -> str:
        """The beginning of what a server said, for a message: one line in quotes, no control characters, no key."""
        text = " ".join(self._key.hidden(text)[: 4 * _QUOTED].split())
        return repr(text if len(text) <= _QUOTED else f"{text[:_QUOTED]}…")

    def without_key(self, answer: str) -> str:
        """An answer, as `Key.hidden_in_answer`."""
        return self._key.hidden_in_answer(answer)

    def _count(self, *, again: bool) -> None:
        with self._lock:
            if self._most is not None and self.sent >= self._most:
                used = f"used up ({self.retried} by further tries)"
                raise NoAnswerError(f"{self._group}.max_requests is {self._most}, and they are {used}")
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

    def _send(self, route: Route[T], body: bytes | None) -> T:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "pluralign"}
        request = Request(route.url, data=body, headers=headers, method="GET" if body is None else "POST")
        self._key.sign(request)
        try:
            with self._opener.open(request, timeout=self._timeout) as response:
                text = self._read(response)
        except HTTPError as error:
            with error:
                failure = self._refusal(route, error)
            raise failure from None
        except (OSError, HTTPException) as error:
            raise _PassingError(self._key.hidden(self._trouble(route, error))) from None
        try:
            return route.read(text)
        except (ValueError, RecursionError):
            found = f"{route.place} sent something else than {route.expected}: {self.quoted(text)}"
            raise _PassingError(found) from None

    def _read(self, response: HTTPResponse) -> str:
        # The timeout of a socket is that of one read, and some servers send spaces for as long as they think.
        end = self._clock.now() + self._timeout
        content = b""
        while len(content) < _LARGEST_BODY and (part := response.read1(1 << 16)):
            content += part
            if self._clock.now() > end:
                raise TimeoutError
        return content.decode("utf-8", "replace")

    def _refusal(self, route: Route[Any], error: HTTPError) -> NoAnswerError | _PassingError:
        """What an error status says."""
        try:
            body = self._read(cast(HTTPResponse, error.fp))
        except (OSError, HTTPException):
            body = ""
        found = f"{route.place} answered {error.code} {responses.get(error.code, '')}".rstrip()
        if body.strip():
            found += f": {self.quoted(body)}"
        if error.code == 429 or error.code >= 500:
            return _PassingError(found, _retry_after(error.headers.get("Retry-After")), error.code)
        if error.code < 400:
            # Followed, it would take texts, and with some clients the key, to an address that nobody named.
            target = self.quoted(error.headers.get("Location") or "")
            fix = f"Give {self._group}.url the address that is meant."
            return NoAnswerError(f"{found} and leads on to {target}", fix, error.code)
        fixes = {401: self._key_fix(), 403: self._key_fix(), 404: route.missing}
        return NoAnswerError(found, fixes.get(error.code, ""), error.code)

    def _key_fix(self) -> str:
        variable = self._variable
        if self._key:
            return f"Check the key in the environment variable {variable}."
        return f"No key was sent: the environment variable {variable} is not set." if variable else "No key was sent."

    def _trouble(self, route: Route[Any], error: OSError | HTTPException) -> str:
        """What kept an answer from coming."""
        reason = error.reason if isinstance(error, URLError) else error
        if isinstance(reason, TimeoutError):
            return f"{route.place} did not answer within {self._timeout:g} seconds"
        why = getattr(reason, "strerror", None) or str(reason)[:_QUOTED] or type(reason).__name__
        # urllib wraps what happens before a request is out, and nothing after it.
        return f"{route.place} {'cannot be reached' if isinstance(error, URLError) else 'broke the connection'} ({why})"


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


def split_address(url: str, key: str) -> SplitResult:
    """The parts of an address that can be asked.

    Args:
        url: as it was given.
        key: of the configuration, for messages.

    Raises:
        InputError: no such address can be asked, or it holds a password.
    """
    # Not quoted in any message before it is known to hold no password.
    fix = "It looks like http://localhost:8000/v1."
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        fits = fits and url.isascii() and url.isprintable() and " " not in url
        (parts.hostname or "").encode("idna")
    except ValueError:
        raise InputError(f"{key} is no address", fix=fix) from None
    if parts.username is not None:
        raise InputError(
            f"{key} holds a name or a password", fix=f"Keys come from {key.rpartition('.')[0]}.key_variable."
        )
    if not fits:
        raise InputError(f"{key} is {url!r}" if url else f"{key} is empty", fix=fix)
    return parts
