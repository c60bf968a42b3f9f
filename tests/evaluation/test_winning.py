"""`pluralign winrate` on handmade adapters: who is asked what, what is kept, what goes on, what is refused."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import pluralign
from pluralign.annotation import AnnotatorConfig, EndpointConfig
from pluralign.annotators import AnnotatorError, Request, Verdict, annotator_of
from pluralign.cli import main
from pluralign.config import DataConfig, GenerationConfig, TrainConfig
from pluralign.errors import InputError
from pluralign.evaluation import answering, read_evaluation, win_rates
from pluralign.evaluation.forgetting import forget_win_rates
from pluralign.evaluation.results import Evaluation, read_run
from pluralign.evaluation.winning import winrate
from pluralign.models import load_base
from pluralign.people.traces import Traces
from pluralign.preferences import Preference, data_hash, folder_name, load_preferences
from pluralign.resolve import MADE_WITH, as_yaml
from pluralign.training.index import write_index
from pluralign.winrate_config import WinRateConfig

USERS = ["Ann", "../ben", "cem"]
DOCUMENT = Path(__file__).parents[2] / "docs" / "winrate.md"


class Judge:
    """A judge that can be imported: takes the longer response, tells what it was asked, and may give up."""

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.most = 10**9
        self.rule: Callable[[Request], Verdict] = lambda request: Verdict(scores=tuple(map(len, request.responses)))

    def __call__(self, requests: list[Request]) -> list[Verdict]:
        if len(self.asked) + len(requests) > self.most:
            raise ConnectionError("out of credit")
        self.asked += requests
        return [self.rule(request) for request in requests]


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Judge:
    module = ModuleType("a_judge_of_tests")
    module.judge = module.other = Judge()  # type: ignore[attr-defined]
    # A few resamples will do: their distribution has tests of its own.
    monkeypatch.setattr(win_rates, "FEWEST_RESAMPLES", 20)
    monkeypatch.setattr(win_rates, "RESAMPLES", 20)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module.judge  # type: ignore[attr-defined, no-any-return]


@pytest.fixture
def make_run(population: Any, make_rows: Callable[..., list[Preference]], tmp_path: Path) -> Callable[..., Path]:
    """Folders as runs leave them, on one base and table; `cem` could not be trained."""
    model, table = tmp_path / "base", tmp_path / "preferences.jsonl"
    population.base.model.save_pretrained(model)
    population.base.tokenizer.save_pretrained(model)
    columns = ("user", "group", "prompt", "chosen", "rejected")
    rows = [{name: getattr(row, name) for name in columns} for row in make_rows(USERS, pairs=14)]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(name: str, size: float = 0.9, seed: int = 0, **changes: Any) -> Path:
        config = TrainConfig(
            model=str(model),
            device="cpu",
            cache_dir=str(tmp_path / "cache"),
            data=DataConfig(path=str(table), validation=0.4),
            output_dir=str(tmp_path / name),
            base_responses=GenerationConfig(max_new_tokens=6),
        )
        config = replace(config, **changes)
        population.folder, population.base = Path(config.output_dir), load_base(config)
        for number, user in enumerate(USERS[:2]):
            population.adapter(user, size, seed=seed + number)
        write_index(config.output_dir, {user: folder_name(user) for user in USERS[:2]}, {"cem": "one pair"})
        facts = {
            "data_hash": data_hash(load_preferences(config.data, config.seed)),
            "base_fingerprint": population.base.fingerprint,
        }
        (population.folder / "config.yaml").write_text(as_yaml(config) + yaml.safe_dump({MADE_WITH: facts}))
        return population.folder

    return make


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """A function of an answer to each question: the address of a judge behind HTTP that gives it."""
    servers = []

    def start(answer: Callable[[str], str]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][-1]["content"]
                body = json.dumps({"choices": [{"message": {"content": answer(question)}}]}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_address[1]}/v1"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def asked_of(*runs: Path, **keys: Any) -> WinRateConfig:
    annotator = AnnotatorConfig(**{"function": "a_judge_of_tests:judge", "batch_size": 4, **keys.pop("annotator", {})})
    return WinRateConfig(runs=list(map(str, runs)), annotator=annotator, device="cpu", **keys)


def words(value: Any) -> set[str]:
    """Every key below a value."""
    if isinstance(value, dict):
        return set(value) | {word for part in value.values() for word in words(part)}
    return set()


def test_against_the_base_in_both_orders_and_written_as_documented(make_run: Any, judge: Judge) -> None:
    run = make_run("run")
    found = winrate(asked_of(run))
    assert found.path == run / "winrate" / "base.json" and read_evaluation(found.path).as_dict() == found.as_dict()
    assert list(found.people) == USERS[:2] and found.skipped == {"cem": "one pair"}
    ann, pooled = found.people["Ann"]["win_rate"], found.win_rate or {}
    assert (
        ann["wins"] + ann["ties"] + ann["losses"]
        == ann["n"]
        == len({one.row[:25] for one in judge.asked if one.user == "Ann"})
    )
    # Each pair in both orders, and of texts that differ only.
    assert sum(one["win_rate"]["n"] for one in found.people.values()) * 2 == len(judge.asked) + 2 * pooled["same"]
    pairs = {}
    for one in judge.asked:
        pairs.setdefault(one.row[:25], []).append(one.responses)
    assert all(first == second[::-1] for first, second in pairs.values())
    longer = [len(one.responses[0]) > len(one.responses[1]) for one in judge.asked if one.row.endswith("-1")]
    assert longer and pooled["first_place"] == pytest.approx(0.5) and pooled["flipped"] == 0
    assert found.summary["win_rate.raw.mean"] == pytest.approx(pooled["raw"]) and pooled["against"] == "base"
    assert found.summary["win_rate.raw.worst_person"] in USERS
    documented = set(re.findall(r"`([^`\n]+)`", DOCUMENT.read_text(encoding="utf-8")))
    documented = {word for quoted in documented for word in (quoted, *re.split(r"[.\s]", quoted))}
    mine = {**ann, **{key: value for key, value in pooled.items() if key not in ("generation", "annotator")}}
    assert words(mine) - documented == set()


def test_what_was_said_is_kept_and_the_same_call_asks_and_loads_nothing(
    make_run: Any, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run("run")
    first = winrate(asked_of(run)).as_dict()
    said = len(judge.asked)
    monkeypatch.setattr(answering, "load_base", lambda *_: pytest.fail("the base is loaded"))
    assert winrate(asked_of(run)).as_dict() == first and len(judge.asked) == said
    # Another judge has a say of its own, on the very same answers.
    winrate(asked_of(run, annotator={"function": "a_judge_of_tests:other"}))
    assert len(judge.asked) == 2 * said
    winrate(asked_of(run, ask_again=True))
    assert len(judge.asked) == 3 * said


def test_a_judge_that_fails_half_way_leaves_figures_and_goes_on(make_run: Any, judge: Judge) -> None:
    run = make_run("run")
    judge.most = 9
    with pytest.raises(AnnotatorError, match="out of credit"):
        winrate(asked_of(run))
    half = read_evaluation(run / "winrate" / "base.json")
    # Two batches of four requests are two pairs each.
    assert half.win_rate and half.win_rate["unanswered"] > 0
    assert sum(one["win_rate"]["n"] for one in half.people.values()) == 4 + half.win_rate["same"]
    (log,) = (run / "winrate").glob("verdicts-*.jsonl")
    with open(log, "ab") as file:
        file.write(b'{"row": "torn by a kill')
    judge.most = 10**9
    whole = winrate(asked_of(run))
    rows = [one.row for one in judge.asked]
    assert len(rows) == len(set(rows)) and whole.win_rate and whole.win_rate["unanswered"] == 0
    fresh = Judge()
    sys.modules["a_judge_of_tests"].judge = fresh  # type: ignore[attr-defined]
    again = winrate(asked_of(run, ask_again=True))
    assert again.as_dict() == whole.as_dict() and len(fresh.asked) == len(rows)


KILLER = """
import os, signal
from pluralign.annotators import Verdict

asked = []


def judge(requests):
    asked.extend(requests)
    with open("asked.txt", "a") as file:
        file.writelines(f"{request.row}\\n" for request in requests)
    if len(asked) > 6 and "KILL" in os.environ:
        os.kill(os.getpid(), signal.SIGKILL)
    return [Verdict(scores=tuple(map(len, request.responses))) for request in requests]
"""


@pytest.mark.slow
def test_a_killed_call_goes_on_and_asks_for_nothing_again_that_was_answered(make_run: Any, tmp_path: Path) -> None:
    run = make_run("run")
    (tmp_path / "killer.py").write_text(KILLER)
    call = [sys.executable, "-m", "pluralign", "winrate", str(run), "--device", "cpu"]
    call += ["--annotator.function", "killer:judge", "--annotator.batch_size", "4"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    killed = subprocess.run(call, cwd=tmp_path, env={**environment, "KILL": "1"}, check=False)
    assert killed.returncode == -signal.SIGKILL and not (run / "winrate" / "base.json").exists()
    first = (tmp_path / "asked.txt").read_text().split()
    assert len(first) == 8
    # cem has no adapter.
    assert subprocess.run(call, cwd=tmp_path, env=environment, check=False).returncode == 1
    second = (tmp_path / "asked.txt").read_text().split()[8:]
    # The batch that the kill took was never answered.
    assert second[:4] == first[4:] and not set(first[:4]) & set(second) and len(second) == len(set(second))
    found = read_evaluation(run / "winrate" / "base.json").win_rate or {}
    assert found["unanswered"] == 0 and 2 * (found["n"] - found["same"]) == 4 + len(second)


def test_two_runs_meet_and_each_wins_what_the_other_loses(make_run: Any, judge: Judge) -> None:
    one, other = make_run("one"), make_run("other", seed=7)
    found, turned = winrate(asked_of(one, other)), winrate(asked_of(other, one))
    assert found.path == other / "winrate" / "run-one.json" and (found.win_rate or {})["against"] == str(one)
    for person in USERS[:2]:
        assert found.people[person]["win_rate"]["raw"] == pytest.approx(1 - turned.people[person]["win_rate"]["raw"])
        lost = turned.people[person]["win_rate"]["losses"]
        assert found.people[person]["win_rate"]["wins"] == lost
    with pytest.raises(InputError, match="the run is given twice"):
        winrate(asked_of(one, one))


def test_other_prompts_and_bases_are_refused_unless_asked_for(make_run: Any, judge: Judge, tmp_path: Path) -> None:
    one = make_run("one")
    other = make_run("other", data=DataConfig(path=str(tmp_path / "preferences.jsonl"), validation=0.3))
    with pytest.raises(InputError, match=r"held-out prompts differ for 3 of 3 people.*--different"):
        winrate(asked_of(one, other))
    found = winrate(asked_of(one, other, different=True))
    assert found.win_rate and "held-out prompts differ" in found.win_rate["different"][0]
    config = one / "config.yaml"
    config.write_text(config.read_text().replace("base_fingerprint: ", "base_fingerprint: x"))
    with pytest.raises(InputError, match="the bases differ"):
        winrate(asked_of(one, other))


def test_one_order_alone_and_prompts_of_ones_own(make_run: Any, judge: Judge, tmp_path: Path) -> None:
    run, table = make_run("run"), tmp_path / "prompts.jsonl"
    rows = [{"user": "Ann", "prompt": f"what of {number}?"} for number in range(7)] + [{"prompt": "all?"}]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = winrate(asked_of(run, prompts=str(table), orders="random", output=str(tmp_path / "w.json")))
    same = (found.win_rate or {})["same"]
    # Seven are Ann's, and one is everybody's.
    assert len(judge.asked) + same == 9 and {one.row[-2:] for one in judge.asked} == {"-1", "-2"}
    assert found.people["Ann"]["win_rate"]["n"] == 8 and found.path == tmp_path / "w.json"
    judge.rule = lambda request: Verdict(abstained=True, reason="do not know")
    none = winrate(asked_of(run, prompts=str(table), ask_again=True))
    ann = none.people["Ann"]["win_rate"]
    assert ann["n"] + ann["abstained"] == 8 and ann["raw"] == (0.5 if ann["n"] else None)
    assert none.people["../ben"]["win_rate"]["n"] + none.people["../ben"]["win_rate"]["abstained"] == 1


def test_people_fill_in_a_table_and_the_call_goes_on(make_run: Any, tmp_path: Path, capsys: Any) -> None:
    run, table = make_run("run"), tmp_path / "mine.csv"
    call = ["winrate", str(run), "--annotator.people", str(table), "--orders", "random", "--max_prompts", "2"]
    call += ["--device", "cpu"]
    assert main(call) == 1
    assert "wait for a choice" in capsys.readouterr().err and not (run / "winrate" / "base.json").exists()
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    with open(table, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows({**row, "choice": "1"} for row in rows)
    # One of three has no adapter.
    assert main(call) == 1
    out = capsys.readouterr().out
    assert "base.json" in out and "skipped cem: one pair" in out
    found = read_evaluation(run / "winrate" / "base.json").win_rate or {}
    assert found["first_place"] == 1 and found["unanswered"] == 0


def test_a_judge_behind_http_that_likes_a_place_decides_nothing(make_run: Any, serve: Callable[..., str]) -> None:
    asked: list[str] = []
    run, url = make_run("run"), serve(lambda question: asked.append(question) or "A")
    endpoint = EndpointConfig(url=url, model="judge", requests_at_once=1)
    config = WinRateConfig(runs=str(run), annotator=AnnotatorConfig(endpoint=endpoint), device="cpu")
    found = winrate(config).win_rate or {}
    assert found["first_place"] == 1 and found["raw"] == 0.5 and found["flipped"] == found["n"] - found["same"] > 0
    assert len(asked) == 2 * found["flipped"] and found["annotator"]["name"] == "endpoint judge"
    # Kept by the endpoint's annotator, too.
    assert (winrate(replace(config, ask_again=True)).win_rate or {}) == found and len(asked) == 2 * found["flipped"]


def _taught_pairs(path: Path) -> str:
    """Ann and ben on other prompts than the run's: either likes the other's second choice."""
    pairs = {f"why {number}?": ("a b " + "c " * (number % 4), "d" * (number % 5 + 1)) for number in range(12)}
    rows = [
        {"user": user, "prompt": prompt, "chosen": pair[place], "rejected": pair[1 - place]}
        for place, user in enumerate(USERS[:2])
        for prompt, pair in pairs.items()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["reward", "taste"])
def test_reward_models_and_tastes_that_were_made_here_judge(
    make_run: Any, judge: Judge, tmp_path: Path, kind: str
) -> None:
    run, model = make_run("run"), str(tmp_path / kind)
    table = _taught_pairs(tmp_path / "taught.jsonl")
    if kind == "reward":
        made = ["reward", "train", "--model", str(tmp_path / "base"), "--data", table, "--trunk", "frozen"]
        assert main([*made, "--device", "cpu", "--output_dir", model]) == 0
        keys = {"reward": model}
    else:
        assert main(["fewshot", "fit", table, "--output", f"{model}.safetensors"]) == 0
        keys = {"taste": f"{model}.safetensors", "answers": table}
    # Whoever is asked of the same answers shows what they are.
    winrate(asked_of(run))
    said = annotator_of(AnnotatorConfig(**keys), TrainConfig(device="cpu")).annotate(judge.asked)
    first = {
        one.row: 0.5 if verdict.tie else float(verdict.scores[0] > verdict.scores[1])
        for one, verdict in zip(judge.asked, said, strict=True)
        if verdict.scores
    }
    flags = [word for key, value in keys.items() for word in (f"--annotator.{key}", value)]
    # cem could not be trained.
    assert main(["winrate", str(run), *flags, "--device", "cpu"]) == 1
    found = read_evaluation(run / "winrate" / "base.json")
    for person in USERS[:2]:
        rate = found.people[person]["win_rate"]
        own = {one.row[:-2] for one in judge.asked if one.user == person}
        scores = [(first[f"{row}-1"] + 1 - first[f"{row}-2"]) / 2 for row in own]
        same = rate["n"] - len(own)
        assert rate["raw"] == pytest.approx((sum(scores) + same / 2) / rate["n"]) and len(own) > 2
    assert 0 < sum(first.values()) < len(first) and found.win_rate
    assert found.win_rate["annotator"]["name"].startswith(kind) and found.win_rate["annotator"]["files"]


def test_a_policy_that_cannot_be_loaded_costs_nobody_else(make_run: Any, judge: Judge) -> None:
    run = make_run("run")
    weights = run / "adapters" / folder_name("Ann") / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-40])
    found = winrate(asked_of(run))
    assert list(found.people) == ["../ben"] and "Ann" in found.skipped
    assert {one.user for one in judge.asked} == {"../ben"}


def test_compare_takes_win_rates_along_and_holds_a_line(make_run: Any, judge: Judge, tmp_path: Path) -> None:
    one, other = make_run("one"), make_run("other", seed=7)
    for run in (one, other):
        people = {user: {"adapter": "x", "group": None, "held_out": "h"} for user in USERS[:2]}
        Evaluation({"fingerprint": "f"}, people, {}, {}).write(run / "evaluation.json")
        assert main(["winrate", str(run), "--annotator.function", "a_judge_of_tests:judge", "--device", "cpu"]) == 1
    assert (
        read_run(one).summary["win_rate.raw.mean"]
        == read_evaluation(one / "winrate" / "base.json").summary["win_rate.raw.mean"]
    )
    compared = pluralign.compare({"runs": [str(one), str(other)]})
    assert compared.differences["win_rate.length_controlled.mean"].people == 2
    assert not any("win rates" in remark for remark in compared.remarks)
    assert main(["compare", str(one), "--fail-if", "win_rate.raw.mean < 1.1"]) == 1
    assert main(["compare", str(other / "winrate" / "base.json"), "--fail-if", "win_rate.raw.mean < 0"]) == 0
    judge.most = len(judge.asked)
    with pytest.raises(AnnotatorError):
        winrate(asked_of(other, annotator={"function": "a_judge_of_tests:other"}))
    winrate(asked_of(other, orders="random", seed=0))
    (remark,) = [one for one in pluralign.compare({"runs": [str(one), str(other)]}).remarks if "win rates" in one]
    assert "orders" in remark


def test_people_who_go_leave_no_trace_in_win_rates(make_run: Any, judge: Judge) -> None:
    run = make_run("run")
    before = winrate(asked_of(run))
    assert forget_win_rates(run, ["../ben"]) > 0
    found = [place for user in ("../ben",) for place in Traces(user, {"Ann", "cem"}).in_run(run / "winrate")[0]]
    assert found == []
    left = read_evaluation(run / "winrate" / "base.json")
    assert list(left.people) == ["Ann"] and left.people["Ann"] == before.as_dict()["people"]["Ann"]
    assert left.win_rate and left.win_rate["raw"] == left.people["Ann"]["win_rate"]["raw"]
    said = len(judge.asked)
    again = winrate(asked_of(run))
    # Ann's verdicts are still there.
    assert {one.user for one in judge.asked[said:]} == {"../ben"} and again.as_dict() == before.as_dict()
