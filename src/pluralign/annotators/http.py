"""Questions to a model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import json
import math
import threading
from dataclasses import dataclass

from pluralign.annotation import EndpointConfig
from pluralign.annotators.client import Clock, JsonClient, NoAnswerError, Route, StoppedError, split_address
from pluralign.errors import InputError
from pluralign.fewshot.answers import plain_text

__all__ = ["ChatClient", "Clock", "NoAnswerError", "Reply", "StoppedError"]


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


class ChatClient(JsonClient):
    """Asks one model, from as many threads as there are.

    Attributes:
        url: that is asked.

    Args:
        config: of the endpoint.
        clock: time and chance.

    Raises:
        InputError: a key of the configuration is out of its range.
    """

    def __init__(self, config: EndpointConfig, clock: Clock) -> None:
        _check(config)
        self.url = _address(config.url)
        super().__init__(
            "annotator.endpoint",
            key_variable=config.key_variable,
            retries=config.retries,
            timeout=config.timeout,
            clock=clock,
            per_minute=config.requests_per_minute,
            most=config.max_requests,
        )
        self._config = config
        missing = "Check annotator.endpoint.url and annotator.endpoint.model."
        self._route = Route(self.url, "a chat completion", self._reply, missing)

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
        return self.exchange(self._route, {**order, "max_tokens": self._config.max_tokens}, stop)

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
        return Reply(self.without_key(answer), *(count if isinstance(count, int) else None for count in counts))


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


def _address(url: str) -> str:
    """Where requests go.

    Raises:
        InputError: no such address can be asked.
    """
    parts = split_address(url, "annotator.endpoint.url")
    path = parts.path.rstrip("/")
    if not path.endswith("/chat/completions"):
        path += "/chat/completions"
    return parts._replace(path=path, fragment="").geturl()
