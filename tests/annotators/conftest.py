"""A judge behind a real local HTTP server, which does to each request what a test wants."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pluralign.annotation import EndpointConfig
from pluralign.annotators.endpoint import EndpointAnnotator
from pluralign.annotators.http import Clock


@dataclass
class Call:
    """One request as it came, and ways to answer it."""

    number: int
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    handler: _Handler = field(repr=False)

    @property
    def question(self) -> str:
        (message,) = self.body["messages"]
        assert message["role"] == "user"
        return message["content"]

    def send(self, content: str, status: int = 200, **headers: str) -> None:
        self.handler.send_response(status)
        for name, value in headers.items():
            self.handler.send_header(name.replace("_", "-"), value)
        self.handler.end_headers()
        self.handler.wfile.write(content.encode())

    def say(self, answer: Any, **more: Any) -> None:
        self.send(json.dumps({"choices": [{"message": {"role": "assistant", "content": answer}}], **more}))

    def drop(self) -> None:
        self.handler.connection.shutdown(socket.SHUT_RDWR)

    def stall(self) -> None:
        self.handler.server.over.wait(600)


class JudgeServer(ThreadingHTTPServer):
    """Notes what it is asked; `judge` answers with text, or deals with the call and returns None."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.calls: list[Call] = []
        self.judge: Callable[[Call], str | None] = lambda call: "A"
        self.over = threading.Event()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def questions(self) -> list[str]:
        return [call.question for call in self.calls]

    def handle_error(self, *_: Any) -> None:
        """Clients that gave up are part of the game."""


class _Handler(BaseHTTPRequestHandler):
    server: JudgeServer
    # Else headers wait until the client has acknowledged them, and the body after them.
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            call = Call(len(self.server.calls), self.path, dict(self.headers), body, self)
            self.server.calls.append(call)
        answer = self.server.judge(call)
        if answer is not None:
            call.say(answer)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


class Stopwatch:
    """A clock that only waiting moves."""

    def __init__(self) -> None:
        self.time = 0.0
        self.waits: list[float] = []

    def wait(self, stop: threading.Event, seconds: float) -> bool:
        self.time += seconds
        self.waits.append(seconds)
        return stop.is_set()

    def clock(self) -> Clock:
        return Clock(now=lambda: self.time, wait=self.wait, chance=lambda: 0.5)


@pytest.fixture
def stopwatch() -> Stopwatch:
    return Stopwatch()


@pytest.fixture
def judge_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServer]:
    """A server that runs as long as the test; calls that stall end with it."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = JudgeServer()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def judge_key(monkeypatch: pytest.MonkeyPatch) -> str:
    """The key that the environment holds."""
    key = "sk-test/0123456789"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    return key


@pytest.fixture
def make_judge(judge_server: JudgeServer, judge_key: str, tmp_path: Path) -> Callable[..., EndpointAnnotator]:
    """A function of changes to the configuration that makes an annotator of the server, with one cache for all."""

    def make(clock: Clock | None = None, *, both_orders: bool = True, **changes: Any) -> EndpointAnnotator:
        config = EndpointConfig(**{"url": judge_server.url, "model": "judge", "requests_at_once": 1, **changes})
        used = clock or Stopwatch().clock()
        return EndpointAnnotator(config, cache_dir=tmp_path / "cache", both_orders=both_orders, clock=used)

    return make
