"""People's policies speak on a server: a local stand-in, which loads their PEFT folders onto the tiny model."""

from __future__ import annotations

import copy
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from pluralign.errors import InputError
from pluralign.models.generation import generate
from pluralign.seats import GenerationConfig
from pluralign.training.online import server
from pluralign.training.online.files import Candidates, read_candidates
from pluralign.training.online.run import online
from pluralign.training.online.server import ServerError

Make = Callable[..., Any]
Answer = tuple[int, str]
MODEL = Path(__file__).parents[2] / "golden" / "dpo_trajectory"
WORDS = ["the", "river", "is", "bright", "and", "waits", "for", "spring", "curious", "rests", "at", "night"]


@dataclass
class Call:
    """A request: what it asks for, what with, and how many of its kind came before."""

    kind: str
    body: dict[str, Any]
    number: int
    key: str | None


@dataclass
class Engine:
    """What vLLM does with adapters; `trouble` may answer a call in its place.

    With a `base` adapters are put on it and asked; without one they are words drawn by the seed, which is quicker.
    """

    url: str
    base: Any = None
    tokenizer: Any = None
    trouble: Callable[[Call], Answer | None] = lambda call: None
    calls: list[Call] = field(default_factory=list)
    adapters: dict[str, Path] = field(default_factory=dict)
    policies: dict[str, Any] = field(default_factory=dict)
    most: dict[str, int] = field(default_factory=lambda: {"adapters": 0, "requests": 0})
    running: int = 0
    seen: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, kind: str) -> list[Call]:
        return [call for call in self.calls if call.kind == kind]

    def answer(self, kind: str, body: dict[str, Any], key: str | None) -> Answer:
        with self.lock:
            call = Call(kind, body, len(self.of(kind)), key)
            self.calls.append(call)
            self.running += 1
            self.most["requests"] = max(self.most["requests"], self.running)
        try:
            found = self.trouble(call)
            with self.lock:
                return found or getattr(self, kind)(body)
        finally:
            with self.lock:
                self.running -= 1

    def models(self, _: dict[str, Any]) -> Answer:
        return 200, json.dumps({"object": "list", "data": [{"id": name} for name in (str(MODEL), *self.adapters)]})

    def load_lora_adapter(self, body: dict[str, Any]) -> Answer:
        name, path = body["lora_name"], Path(body["lora_path"])
        if name in self.adapters:
            return refusal(400, f"The lora adapter '{name}' has already been loaded.")
        if not path.is_absolute() or not path.is_dir():
            return refusal(404, f"No adapter found for {path}")
        if self.base is not None:
            self.policies[name] = PeftModel.from_pretrained(copy.deepcopy(self.base), str(path)).eval()
        self.adapters[name] = path
        self.seen += "".join(file.read_text() for file in path.glob("*.json")) + str(path)
        self.most["adapters"] = max(self.most["adapters"], len(self.adapters))
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def unload_lora_adapter(self, body: dict[str, Any]) -> Answer:
        if body["lora_name"] not in self.adapters:
            return refusal(404, f"The lora adapter '{body['lora_name']}' cannot be found.")
        del self.adapters[body["lora_name"]]
        return 200, "Success"

    def completions(self, body: dict[str, Any]) -> Answer:
        if body["model"] not in self.adapters:
            return refusal(404, f"The model `{body['model']}` does not exist.")
        assert body["n"] == 1 and body["skip_special_tokens"] and "logprobs" not in body
        if self.base is None:
            return 200, completion(f" {WORDS[body['seed'] % 12]} {WORDS[body['seed'] // 12 % 12]}")
        return self.say(self.policies[body["model"]], body)

    def say(self, policy: Any, body: dict[str, Any]) -> Answer:
        settings = GenerationConfig(
            max_new_tokens=body["max_tokens"],
            do_sample=True,
            temperature=body["temperature"],
            top_p=body["top_p"],
            top_k=max(body["top_k"], 0),
        )
        (made,) = generate(policy, self.tokenizer, [body["prompt"]], settings, seed=body["seed"])
        return 200, completion(made.text, "stop" if made.finished else "length")


def refusal(status: int, message: str) -> Answer:
    return status, json.dumps({"error": {"message": message, "code": status}})


def completion(text: Any = " night", reason: Any = "stop", count: int = 1) -> str:
    choice = {"index": 0, "text": text, "finish_reason": reason}
    return json.dumps({"object": "text_completion", "choices": [choice] * count})


class Handler(BaseHTTPRequestHandler):
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def do_GET(self) -> None:
        self.reply({})

    def reply(self, body: dict[str, Any]) -> None:
        engine: Engine = self.server.engine  # type: ignore[attr-defined]
        first, kind = self.path.strip("/").split("/")
        assert first == "v1"
        status, content = engine.answer(kind, body, self.headers["Authorization"])
        self.send_response(status)
        self.end_headers()
        self.wfile.write(content.encode())

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """What stands behind the server of the test."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads, http.block_on_close = True, False
    found = Engine(url=f"http://127.0.0.1:{http.server_port}/v1")
    http.engine = found  # type: ignore[attr-defined]
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield found
    http.shutdown()
    http.server_close()


@pytest.fixture
def served(make_online: Make, make_rows: Make, engine: Any) -> Make:
    """A function of people that makes a configuration whose responses come from the server."""

    def make(users: Any = "ab", **keys: Any) -> Any:
        training = {"learning_rate": 5e-3, "max_steps": 8}
        config = make_online(make_rows(users), "served", pairs={"phases": 2}, training=training)
        return on_server(config, **{"url": engine.url, "retries": 0, **keys})

    return make


def on_server(config: Any, **keys: Any) -> Any:
    return replace(config, pairs=replace(config.pairs, server=replace(config.pairs.server, **keys)))


def phase(config: Any, number: int, part: int = 0) -> list[Candidates]:
    return read_candidates(Path(config.output_dir) / "phases" / f"{number:04d}" / f"candidates-{part:04d}.jsonl")


def left(engine: Engine, config: Any) -> list[Any]:
    """What a run leaves on the server and on the disk of what it was lent."""
    place = Path(config.pairs.server.adapters or Path(config.output_dir) / "state" / "served")
    return [*engine.adapters, *(place.iterdir() if place.exists() else ())]


def test_responses_are_those_of_peoples_own_policies_as_they_are(
    served: Make, engine: Engine, counting: Any, metrics: Make
) -> None:
    engine.base, engine.tokenizer = AutoModelForCausalLM.from_pretrained(MODEL), AutoTokenizer.from_pretrained(MODEL)
    config = served(["Anna Q.", "Bert"])
    config.pairs.generation.max_new_tokens = 12
    result = online(config, counting())
    here = replace(on_server(config, url=""), output_dir=f"{config.output_dir}-here")
    online(here, counting())
    for number in range(2):
        there, own = phase(config, number), phase(here, number)
        # The stand-in draws as this process does: the same texts are the same policies.
        for one, other in zip(there, own, strict=True):
            assert (one.row, one.owner, one.policy_version) == (other.row, other.owner, other.policy_version)
            for said, expected in zip(one.responses, other.responses, strict=True):
                assert (said.text, said.finished) == (expected.text, expected.finished)
                assert said.logp == pytest.approx(expected.logp, abs=1e-2)
    assert {one.finished for row in phase(config, 0) for one in row.responses} == {True, False}
    assert {row.policy_version for row in phase(config, 1)} == {4}
    # And another policy would have said something else: each has a name of its own, which tells nobody whose it is.
    assert len(engine.policies) == 4 and all(name[-1] in "04" for name in engine.policies)
    assert not any(part in engine.seen for part in ("Anna", "anna", "Bert", "bert"))
    later = [call.body for call in engine.of("completions") if call.body["model"].endswith("4")]
    policies = [policy for name, policy in engine.policies.items() if name.endswith("4")]
    assert any(engine.say(policies[0], body) != engine.say(policies[1], body) for body in later)
    with policies[0].disable_adapter():
        assert any(engine.say(policies[0], body) != engine.say(policies[1], body) for body in later)
    # What is noted is what the learner finds: the first step of a phase is at a margin of 0.
    firsts = [row["rewards/margins"] for row in metrics(config.output_dir) if row["step"] in (1, 5) and "loss" in row]
    assert len(firsts) == 4 and max(map(abs, firsts)) < 1e-4
    assert not left(engine, config) and len(result.adapters) == 2


def test_what_is_sent_says_all_of_how_to_sample_and_has_the_key(
    served: Make, engine: Engine, counting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVER_KEY", "secret-0123456789")
    config = served("a", key_variable="SERVER_KEY")
    settings = replace(config.pairs.generation, temperature=0.7, top_p=0.9, top_k=7, max_new_tokens=300)
    config.pairs.generation = settings
    online(config, counting())
    bodies = [call.body for call in engine.of("completions")]
    asked = {"temperature": 0.7, "top_p": 0.9, "top_k": 7, "n": 1, "skip_special_tokens": True, "stop_token_ids": [2]}
    plain = {"min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    assert all(body | asked | plain == body for body in bodies)
    # As many tokens as the context has left, and a seed of its own for each.
    assert all(body["max_tokens"] == 256 - len(body["prompt"]) for body in bodies)
    assert len({body["seed"] for body in bodies}) == len(bodies) == 2 * 9
    assert {call.key for call in engine.calls} == {"Bearer secret-0123456789"}
    files = [path for path in Path(config.output_dir).rglob("*") if path.is_file()]
    assert not any(b"secret-0" in path.read_bytes() for path in files)


def test_so_many_adapters_and_requests_at_a_time(served: Make, engine: Engine, counting: Any, tmp_path: Path) -> None:
    together = threading.Barrier(3)

    def meet(call: Call) -> None:
        if call.kind == "completions" and call.number < 3:
            together.wait(60)

    engine.trouble = meet
    place = tmp_path / "seen by both"
    config = served("abcde", adapters_at_once=2, requests_at_once=3, adapters=str(place))
    config.bank.slots = 3
    result = online(config, counting())
    assert engine.most == {"adapters": 2, "requests": 3} and len(result.adapters) == 5
    names = [call.body["lora_name"] for call in engine.of("load_lora_adapter")]
    assert len(set(names)) == len(names) == 5 * 2 and str(place) in engine.seen
    assert [row.owner for row in phase(config, 0, 1)] == ["d"] * 4 + ["e"] * 4
    assert not left(engine, config)


@pytest.mark.parametrize("where", ["there", "elsewhere", "here"])
def test_a_server_that_fails_in_the_middle_is_gone_on_with(
    served: Make, engine: Engine, counting: Any, weights: Make, where: str
) -> None:
    def fail(call: Call) -> Answer | None:
        return (500, "out of memory") if call.kind == "completions" and call.number == 30 else None

    config = served("ab")
    engine.trouble = fail
    first = counting()
    with pytest.raises(
        ServerError, match=r"pairs\.server, row '1/b/\d': .*500 .*'out of memory'.*same command goes on"
    ):
        online(config, first)
    assert not left(engine, config)
    assert len(phase(config, 0)) == 8 and not (Path(config.output_dir) / "phases" / "0001").exists()
    before, engine.trouble = len(engine.calls), lambda call: None
    changes = {"there": {}, "elsewhere": {"timeout": 5.0, "requests_at_once": 2}, "here": {"url": ""}}
    again = counting()
    result = online(on_server(config, **changes[where]), again)
    # What was sampled and annotated is not asked for again.
    versions = {call.body["model"][-1] for call in engine.calls[before:] if call.kind == "completions"}
    assert versions == ({"4"} if where != "here" else set())
    assert {one.row[0] for one in first.asked} == {"0"} and {one.row[0] for one in again.asked} == {"1"}
    assert len(result.adapters) == 2 and not left(engine, config)
    if where != "there":
        return
    # A server that honours seeds says the same again.
    expected = online(replace(config, output_dir=f"{config.output_dir}-whole"), counting())
    for user in "ab":
        found, other = weights(result.adapters[user]), weights(expected.adapters[user])
        assert all(torch.equal(found[name], value) for name, value in other.items())


def test_adapters_that_a_killed_call_has_left_are_put_anew(served: Make, engine: Engine, counting: Any) -> None:
    def deaf(call: Call) -> Answer | None:
        return (500, "busy") if call.kind == "unload_lora_adapter" or call.kind == "completions" else None

    config = served("a")
    engine.trouble = deaf
    with pytest.raises(ServerError, match="busy"):
        online(config, counting())
    (kept,) = engine.adapters
    leftover = Path(config.output_dir) / "state" / "served" / "half"
    leftover.mkdir(parents=True)
    engine.trouble = lambda call: None
    online(config, counting())
    assert [call.body["lora_name"] for call in engine.of("load_lora_adapter")].count(kept) == 3
    assert not left(engine, config)


def test_an_adapter_that_a_server_keeps_is_told(served: Make, engine: Engine, counting: Any) -> None:
    engine.trouble = lambda call: (500, "in use") if call.kind == "unload_lora_adapter" else None
    with pytest.warns(UserWarning, match=r"keeps an adapter .*unload_lora_adapter answered 500 .*'in use'"):
        result = online(served("a"), counting())
    assert list(result.adapters) == ["a"]


def test_a_failure_that_passes_is_not_seen(served: Make, engine: Engine, counting: Any) -> None:
    engine.trouble = lambda call: (503, "starting") if call.number == 0 and call.kind == "completions" else None
    result = online(served("a", retries=2), counting())
    assert list(result.adapters) == ["a"] and len(engine.of("completions")) == 19


def test_ctrl_c_ends_a_run_that_goes_on_later(served: Make, engine: Engine, counting: Any) -> None:
    def interrupt(call: Call) -> None:
        if call.kind == "completions" and call.number == 5:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            time.sleep(0.2)

    engine.trouble = interrupt
    config = served("ab", requests_at_once=2)
    with pytest.raises(KeyboardInterrupt):
        online(config, counting())
    assert not left(engine, config) and len(engine.of("completions")) < 10
    engine.trouble = lambda call: None
    assert len(online(config, counting()).adapters) == 2


def test_after_ctrl_c_an_adapter_is_not_taken_from_under_a_request(
    served: Make, engine: Engine, counting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()

    def stall(call: Call) -> None:
        if call.kind == "completions":
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            over.wait(60)

    engine.trouble = stall
    config = served("a", requests_at_once=1)
    with monkeypatch.context() as during, pytest.raises(KeyboardInterrupt):
        during.setattr(server, "_GRACE", 0.1)
        online(config, counting())
    over.set()
    # It stays on the server, and nothing of it on the disk, until the same command puts it there anew.
    (kept,) = left(engine, config)
    assert not engine.of("unload_lora_adapter")
    engine.trouble = lambda call: None
    online(config, counting())
    assert engine.of("unload_lora_adapter")[0].body == {"lora_name": kept} and not left(engine, config)


def only(kind: str, answer: Answer) -> Callable[[Call], Answer | None]:
    return lambda call: answer if call.kind == kind else None


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (
            only("models", (200, '{"data": [{"id": "other"}]}')),
            r"has no model '.*', only 'other'.*pairs\.server\.model",
        ),
        (only("models", (200, "<html>")), "something else than a list of models: '<html>'"),
        (only("models", (401, "who?")), "No key was sent"),
        (
            only("load_lora_adapter", (404, '{"detail":"Not Found"}')),
            r"an adapter cannot be loaded: .*404 Not Found.*detail.*VLLM_ALLOW_RUNTIME_LORA_UPDATING=True",
        ),
        (only("load_lora_adapter", (400, "rank " * 300)), "400 Bad Request: 'rank rank.*--max-lora-rank of 4 or more"),
        (only("completions", refusal(404, "no such model")), r"row '0/a/0': .*no such model.*was it started anew"),
        (only("completions", refusal(400, "maximum context")), "maximum context.*as long as the run's"),
        (only("completions", (200, '{"choices": []}')), "something else than one completion with finish_reason"),
        (only("completions", (200, completion(count=2))), "something else than one completion"),
        (only("completions", (200, completion(None))), "something else than one completion"),
        (only("completions", (200, completion(reason="abort"))), "something else than one completion.*abort"),
        (only("completions", (200, completion("\ud800"))), "something else than one completion"),
        (only("completions", (200, '{"object": "error"}')), "something else than one completion.*error"),
    ],
)
def test_what_a_server_refuses_is_named(
    served: Make, engine: Engine, counting: Any, trouble: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    engine.trouble = trouble
    config = served("a", requests_at_once=1)
    with pytest.raises(ServerError, match=said) as error:
        online(config, annotator := counting())
    assert "the same command goes on" in str(error.value) and error.value.exit_code == 1
    assert len(str(error.value)) < 1200 and not annotator.asked and not left(engine, config)


def test_a_server_that_is_not_there(served: Make, counting: Any) -> None:
    with pytest.raises(ServerError, match=r"127\.0\.0\.1:9/v1/models cannot be reached .*Is the server running"):
        online(served("a", url="http://127.0.0.1:9"), counting())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"url": "localhost:8000"}, r"pairs\.server\.url is 'localhost:8000'"),
        ({"url": "http://me:secret@host/v1"}, r"pairs\.server\.url holds a name or a password"),
        ({"requests_at_once": 0}, r"pairs\.server\.requests_at_once is 0"),
        ({"adapters_at_once": 0}, r"pairs\.server\.adapters_at_once is 0"),
        ({"retries": -1}, r"pairs\.server\.retries is -1"),
        ({"timeout": 0.0}, r"pairs\.server\.timeout is 0"),
        ({"key_variable": "sk-1"}, r"pairs\.server\.key_variable is no name"),
    ],
)
def test_settings_out_of_their_range(served: Make, counting: Any, changes: dict[str, Any], said: str) -> None:
    config = on_server(served("a"), **changes)
    with pytest.raises(InputError, match=said) as error:
        online(config, counting())
    assert "secret" not in str(error.value) and not Path(config.output_dir).exists()


def test_a_folder_that_cannot_be_written_to(served: Make, counting: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file is a file, not a folder"):
        online(served("a", adapters=str(tmp_path / "file")), counting())
    assert not (tmp_path / "served").exists()
