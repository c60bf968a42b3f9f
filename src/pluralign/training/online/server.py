"""Responses from an OpenAI-compatible server that loads people's adapters while it runs (vLLM's protocol)."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import platform
import shutil
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pluralign.annotators.client import Clock, JsonClient, NoAnswerError, Route, StoppedError, split_address
from pluralign.errors import InputError, PluralignError
from pluralign.models.bank import LoraBank
from pluralign.models.generation import Generated, check_settings, context_length, end_tokens
from pluralign.models.masks import causal_lm
from pluralign.online_config import ServerConfig
from pluralign.progress import progress_bar
from pluralign.seats import GenerationConfig
from pluralign.storage import check_place
from pluralign.training.online.sampling import Asked

T = TypeVar("T")

GROUP = "pairs.server"
"""Group of the configuration that errors name."""

_ALL_TOKENS = -1
"""`top_k` of all tokens: every version of vLLM takes it, and only newer ones 0."""
_GRACE = 10.0
"""Seconds that taking leave of a server may take, and that requests have left after Ctrl-C."""


class ServerError(PluralignError):
    """The server does not generate. What came before is kept, and the same call goes on from there.

    Args:
        found: what happened, in a clause.
        fix: what to do, in a sentence.
        row: whose request failed; empty where it is none's.
    """

    exit_code = 1

    def __init__(self, found: str, fix: str, *, row: str = "") -> None:
        self.found, self.fix, self.row = found, fix, row
        place = f"{GROUP}, row {row!r}" if row else GROUP
        super().__init__(
            f"{place}: {found}. {fix} What was learned, sampled and annotated before is kept: the same command goes on "
            f"from there, with another server too, or without {GROUP}.url in its own process"
        )


class ServedPolicies:
    """Lets policies speak on a server: a `Generator` whose responses have no log-probs.

    Some people at a time have their adapter as it stands in the bank written as a PEFT folder, loaded, asked for all of
    their responses, unloaded and removed, whatever fails in between. An adapter's name there is a hash of the run, the
    person, the step and the weights: it tells nobody who it is, and never stands for two adapters (servers keep what
    they computed of a prompt by the adapter's name).

    Responses of a call that failed are not kept: those that are there first are the short ones, and what is asked for
    anew for the others would make the sample one of shorter responses.

    Args:
        config: with a `url`.
        folder: of the run.
        clock: time and chance.

    Raises:
        InputError: a key of the configuration is out of its range, or adapters cannot be written where it says.
    """

    def __init__(self, config: ServerConfig, folder: Path, clock: Clock | None = None) -> None:
        _check(config)
        parts = split_address(config.url, f"{GROUP}.url")
        root = parts.path.rstrip("/").removesuffix("/v1")

        def route(name: str, expected: str, read: Callable[[str], T], missing: str = "") -> Route[T]:
            url = parts._replace(path=f"{root}/v1/{name}", fragment="").geturl()
            return Route(url, expected, read, missing)

        self._models = route("models", "a list of models", _names_of_models)
        self._load = route("load_lora_adapter", "a text", str)
        self._unload = route("unload_lora_adapter", "a text", str)
        expected = 'one completion with finish_reason "stop" or "length"'
        gone = "It no longer has the adapter that it has loaded: was it started anew?"
        self._completions = route("completions", expected, self._completion, gone)
        clock = clock or Clock()
        self._client = JsonClient(
            GROUP, key_variable=config.key_variable, retries=config.retries, timeout=config.timeout, clock=clock
        )
        brief = min(config.timeout, _GRACE)
        self._leaving = JsonClient(GROUP, key_variable=config.key_variable, retries=0, timeout=brief, clock=clock)
        self._config = config
        # Of two machines that share a server, both may call their folder the same.
        self._run = _digest(f"{platform.node()}\0{folder}")
        self._place = folder / "state" / "served"
        if config.adapters:
            # A folder of this run's alone in one that others may use.
            self._place = Path(config.adapters).expanduser().absolute() / f"pluralign-{self._run[:16]}"
            check_place(self._place / "adapter")
        self._idle = threading.Event()
        self._idle.set()

    def __call__(
        self,
        bank: LoraBank,
        asked: Sequence[Asked],
        prompts: Sequence[list[int]],
        settings: GenerationConfig,
        seeds: Sequence[int],
    ) -> list[Generated]:
        """See `Generator`.

        Raises:
            InputError: a setting is out of its range.
            ServerError: the server cannot be reached, lacks the base, or refuses or fails too often.
        """
        check_settings(settings)
        self._check_base(bank.base.name)
        orders = _orders(bank, prompts, settings, seeds)
        numbers: dict[str, list[int]] = {}
        for number, one in enumerate(asked):
            numbers.setdefault(one.owner, []).append(number)
        people, at_once = list(numbers), self._config.adapters_at_once
        found: dict[int, Generated] = {}
        with progress_bar() as progress:
            bar = progress.add_task("sampling", total=len(asked))
            for start in range(0, len(people), at_once):
                own = [numbers[owner] for owner in people[start : start + at_once]]
                with self._loaded(bank, [asked[first] for first, *_ in own]) as names:
                    todo = {n: {**orders[n], "model": names[asked[n].owner]} for some in own for n in some}
                    rows = {number: asked[number].row for number in todo}
                    found |= self._ask(todo, rows, lambda: progress.advance(bar))
        return [found[number] for number in range(len(asked))]

    def _check_base(self, name: str) -> None:
        """Raise where the server does not serve the base: adapters are loaded onto whatever it has."""
        name = self._config.model or name
        try:
            served = self._client.exchange(self._models, None, threading.Event())
        except NoAnswerError as error:
            fix = error.fix or f"Is the server running, and {GROUP}.url its address?"
            raise ServerError(error.found, fix) from None
        if name not in served:
            raise ServerError(
                f"{self._models.place} has no model {name!r}, only {', '.join(map(repr, served)) or 'none'}",
                f"Start the server with the run's base, and let {GROUP}.model be its name there.",
            )

    # ---- adapters ----

    @contextlib.contextmanager
    def _loaded(self, bank: LoraBank, people: Sequence[Asked]) -> Iterator[dict[str, str]]:
        """People's adapters on the server, for the time of a block: whose policy -> its name there."""
        names = {one.owner: self._name(bank, one) for one in people}
        tried: list[str] = []
        # What a killed call has left.
        shutil.rmtree(self._place, ignore_errors=True)
        try:
            for one in people:
                name = names[one.owner]
                bank.save(one.slot, self._place / name, user=name)
                tried.append(name)
                self._bring(name, bank.rank)
            yield names
        finally:
            try:
                failure = self._dismiss(tried)
            finally:
                shutil.rmtree(self._place, ignore_errors=True)
        if failure:
            warnings.warn(f"the server keeps an adapter that nobody needs any more: {failure}", stacklevel=2)

    def _name(self, bank: LoraBank, one: Asked) -> str:
        weights = bank.matrix[one.slot].detach().cpu().numpy().tobytes()
        digest = _digest(f"{self._run}\0{one.owner}\0{one.version}\0{bank.scale}\0", weights)
        return f"pluralign-{digest[:24]}-{one.version}"

    def _bring(self, name: str, rank: int) -> None:
        """Load an adapter.

        Raises:
            ServerError: it was refused.
        """
        order = {"lora_name": name, "lora_path": str(self._place / name)}
        try:
            try:
                self._client.exchange(self._load, order, threading.Event())
            except NoAnswerError as error:
                # A call that was killed may have left it there, or the answer to an earlier try was lost.
                if error.status is None or self._dismiss([name], absent="it is not there"):
                    raise
                self._client.exchange(self._load, order, threading.Event())
        except NoAnswerError as error:
            raise ServerError(
                f"an adapter cannot be loaded: {error.found}",
                error.fix
                or "vLLM has to be started with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment, with "
                f"--enable-lora and a --max-lora-rank of {rank} or more, and has to see the folder {self._place} "
                f"({GROUP}.adapters) under the same path.",
            ) from None

    def _dismiss(self, names: Sequence[str], absent: str = "") -> str:
        """Unload adapters; what kept the server from it, or nothing.

        Args:
            names: of those that may be there.
            absent: what to say of one that is not.
        """
        # Not from under a request that still runs (after Ctrl-C): a server that looked for the adapter on the disk
        # again would fail for everybody.
        if not self._idle.is_set():
            return ""
        failure = ""
        for name in names:
            try:
                self._leaving.exchange(self._unload, {"lora_name": name}, threading.Event())
            except NoAnswerError as error:
                failure = failure or absent if error.status == 404 else error.found
                if error.status is None:
                    # Nobody is there: the others are not asked for one by one.
                    break
        return failure

    # ---- responses ----

    def _ask(
        self, todo: Mapping[int, Mapping[str, Any]], rows: Mapping[int, str], done: Callable[[], None]
    ) -> dict[int, Generated]:
        """What the server answers to orders, by their number.

        Args:
            todo: number -> what is sent.
            rows: number -> what errors name.
            done: called after each answer, from any thread.

        Raises:
            ServerError: one of them has no answer.
        """
        waiting, stop, failures = deque(todo.items()), threading.Event(), deque[tuple[int, BaseException]]()
        found: dict[int, Generated] = {}

        def work() -> None:
            while not stop.is_set():
                try:
                    number, order = waiting.popleft()
                except IndexError:
                    return
                try:
                    found[number] = self._client.exchange(self._completions, order, stop)
                    done()
                except StoppedError:
                    return
                except BaseException as error:  # noqa: BLE001, the thread that started this one raises it
                    failures.append((number, error))
                    stop.set()

        self._idle = threading.Event()
        _side_by_side(work, min(self._config.requests_at_once, len(todo)), stop, self._idle)
        if failures:
            number, error = failures[0]
            if not isinstance(error, NoAnswerError):
                raise error
            fix = f"Is the server still running, and {GROUP}.url that of vLLM or one like it?"
            if error.status == 400:
                fix = "The server refuses what it is asked; it has to take prompts and responses as long as the run's."
            raise ServerError(error.found, error.fix or fix, row=rows[number]) from None
        return found

    def _completion(self, text: str) -> Generated:
        """Read a completion.

        Raises:
            ValueError: it is none.
        """
        found = json.loads(text)
        try:
            (choice,) = found["choices"]
            said, reason = choice["text"], choice["finish_reason"]
        except (KeyError, TypeError):
            raise ValueError("no choices") from None
        if not isinstance(said, str) or reason not in ("stop", "length"):
            raise ValueError("neither ended nor cut")
        # No tokenizer takes half of a surrogate pair.
        said.encode()
        # Without tokens and log-probs: those that are learned are of the tokens that its text is read in.
        return Generated(self._client.without_key(said), [], reason == "stop")


def _orders(
    bank: LoraBank, prompts: Sequence[list[int]], settings: GenerationConfig, seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """What is sent for each prompt, less the adapter's name."""
    model = causal_lm(bank.base.model)
    context = context_length(model)
    alike = {
        "n": 1,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k or _ALL_TOKENS,
        # What is not said would come from the generation config of the server's model.
        **{"min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0},
        "stop_token_ids": end_tokens(model, bank.base.tokenizer),
        "skip_special_tokens": True,
    }
    return [
        {
            **alike,
            "prompt": prompt,
            "seed": seed,
            # The encoder has left room for a token at least.
            "max_tokens": min(settings.max_new_tokens, math.inf if context is None else context - len(prompt)),
        }
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]


def _side_by_side(work: Callable[[], None], count: int, stop: threading.Event, idle: threading.Event) -> None:
    """Let threads work until all are done; after Ctrl-C, what they are at has a moment to end.

    Args:
        work: of each of them.
        count: of threads.
        stop: set when they are to end.
        idle: set when nobody works any more.
    """
    running = set(range(count))

    def run(number: int) -> None:
        try:
            work()
        finally:
            running.discard(number)
            if not running:
                idle.set()

    try:
        # Not an executor: its threads are waited for when the process ends, and a request that stalls would hold it.
        # Nor joined: in Python 3.11 a thread whose join Ctrl-C interrupts counts as ended.
        for number in range(count):
            threading.Thread(target=run, args=(number,), daemon=True).start()
        idle.wait()
    except BaseException:
        stop.set()
        idle.wait(_GRACE)
        raise


def _names_of_models(text: str) -> list[str]:
    """The names in a list of models.

    Raises:
        ValueError: it is none.
    """
    try:
        return [str(one["id"]) for one in json.loads(text)["data"]]
    except (KeyError, TypeError):
        raise ValueError("no models") from None


def _digest(text: str, more: bytes = b"") -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass") + more).hexdigest()


def _check(config: ServerConfig) -> None:
    for name, least in {"adapters_at_once": 1, "requests_at_once": 1, "retries": 0}.items():
        value = getattr(config, name)
        if value < least:
            raise InputError(f"{GROUP}.{name} is {value}", fix=f"It is a whole number of {least} or more.")
    if not 0 < config.timeout < math.inf:
        raise InputError(f"{GROUP}.timeout is {config.timeout}", fix="It is a number above 0.")
