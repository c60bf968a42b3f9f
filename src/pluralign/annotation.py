"""What annotators are given, as dataclasses: who says which response is better.

No torch here: help and error messages must not pay for it. Each key's help is the docstring below it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class EndpointConfig:
    """A judge behind an OpenAI-compatible HTTP endpoint."""

    url: str = ""
    """Base address, as `http://localhost:8000/v1`; `/chat/completions` is added."""
    model: str = ""
    """Name of the judge's model, as the endpoint knows it."""
    template: str = ""
    """File of the question that the judge is asked, with `{prompt}`, `{first}`, `{second}` and `{user}`; by default
    one that asks for A, B or a tie. Its judge answers A, B or TIE on the first or last line."""
    profiles: str = ""
    """JSON file, person -> a text about them, which stands for `{user}` (the template has to show it); by default it is
    the id."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable with the key; it is written nowhere. Unset, no key is sent."""
    requests_at_once: int = 4
    """Requests in flight, >= 1."""
    requests_per_minute: float | None = None
    """Most requests in a minute, > 0."""
    retries: int = 4
    """Further tries of a request that failed, stalled or was refused for load, with growing pauses."""
    timeout: float = 60.0
    """Seconds until a request counts as stalled."""
    max_requests: int | None = None
    """Requests that may be sent in this call, further tries included; 0 takes what is kept only. When they are used up,
    the run stops and can be gone on with."""
    max_tokens: int = 16
    """Tokens of an answer."""


@dataclass
class AnnotatorConfig:
    """Who says which response is better; one of these keys, or `world` on the embedded world."""

    type: Literal["auto", "world", "function", "reward", "endpoint", "people", "taste"] = "auto"
    """Who annotates; `auto` is the one whose key is given, or the judge of the world on the world."""
    function: str = ""
    """A function by import path (`package.module:function`): list of requests -> list of verdicts."""
    reward: str = ""
    """Folder or hub id of a reward model: a sequence classifier with one output, or what `pluralign reward train`
    wrote."""
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    people: str = ""
    """Table that people fill in (`.csv` or `.jsonl`): what is to be compared is written there, and the run stops until
    its column `choice` is filled: the number of the best response (from 1), or `tie`."""
    missing: Literal["stop", "skip"] = "stop"
    """Where some of the table is filled in and some is not: wait for the rest, or go on without it."""
    taste: str = ""
    """What `pluralign fewshot fit` wrote; with `answers`."""
    answers: str | list[str] = field(default_factory=list)
    """Tables of answers or preferences of the people whose taste decides; with `taste`."""
    batch_size: int = 64
    """Requests that an annotator is given at a time; what it said of them is kept at once."""
