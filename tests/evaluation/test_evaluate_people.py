"""The evaluation of a population: against direct computations, and what must not stop it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pluralign.config import GenerationConfig, ModelConfig, ParametersConfig
from pluralign.evaluation import policies, read_evaluation
from pluralign.models import Base, generate, load_base
from pluralign.models.adapters import detach_adapter, load_adapter
from pluralign.models.bank import LoraBank
from pluralign.models.references import require_bare
from pluralign.preferences import ALL, Preference

Rows = Callable[..., list[Preference]]
HOSTILE = ["../../etc", "a/b", "[bold]x[/bold]", "A", "a", "🦊", "x" * 3000, "line\nbreak", "half \ud800", "a.b", "NaN"]


@pytest.fixture
def probes(tmp_path: Path) -> str:
    rows = [
        {
            "id": str(number),
            "question": f"What is {number}?",
            "options": [f"it is {number + offset}" for offset in range(4)],
            "answer": number % 4,
            "topic": f"topic-{number % 2}",
            "scope": ("inside", "outside")[number % 2],
            "prefix": "I think",
            "prefixes": {"ann": "I know"},
        }
        for number in range(24)
    ]
    path = tmp_path / "probes.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "broken\n")
    return str(path)


def logp(model: Any, prompt: list[int], response: list[int]) -> float:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    return float(logits.log_softmax(-1)[range(len(response)), response].sum())


def test_a_fresh_adapter_changes_nothing(population: Any, make_rows: Rows, probes: str) -> None:
    held_out = population.anchored(make_rows(["ann", "ben"]))
    adapters = {user: population.adapter(user) for user in ("ann", "ben")}
    found = population.evaluate(adapters, held_out, probes=probes).as_dict()
    for person in found["people"].values():
        assert person["pairs"]["margin"] == pytest.approx(0, abs=1e-4)
        assert person["pairs"]["ranking_accuracy"] == person["pairs"]["base_ranking_accuracy"]
        assert person["base_responses"]["log_ratio"] == pytest.approx(0, abs=1e-4)
        assert person["base_responses"]["kl_per_token"] == pytest.approx(0, abs=1e-5)
        assert person["retention"]["kept"] == 1.0
        for measure in person["retention"]["measures"].values():
            assert measure["all"]["kept"] in (1.0, None)
            assert measure["all"]["accuracy"] == measure["all"]["base_accuracy"]
        behaviour = person["behaviour"]
        for measure, value in behaviour["base"].items():
            assert behaviour["person"][measure] == (value if value is None else pytest.approx(value, rel=1e-4))
        assert all(sample["person"] == sample["base"] for sample in behaviour["samples"])
    assert found["people"]["ann"]["retention"]["kept_own"] == 1.0
    assert found["people"]["ben"]["retention"]["kept_own"] is None
    assert 0 < found["people"]["ann"]["retention"]["base_accuracy"] < 1


def test_numbers_are_those_of_a_direct_computation(population: Any, make_rows: Rows) -> None:
    held_out = population.anchored(make_rows(["ann", "ben"]))
    adapters = {"ann": population.adapter("ann", 0.5, seed=1), "ben": population.adapter("ben", 0.5, seed=2)}
    found = population.evaluate(adapters, held_out).people
    for user, folder in adapters.items():
        policy = load_adapter(population.base, folder)
        for other in adapters:
            margins, ratios = [], []
            for row in held_out:
                if row.preference.user != other:
                    continue
                prompt, sides = row.encoded.prompt_ids, row.encoded.response_ids
                ratio = {side: logp(policy, prompt, ids) - row.reference[side] for side, ids in sides.items()}
                margins.append(ratio["chosen"] - ratio["rejected"])
                ratios.append(ratio["chosen"])
            cell = found[user]["cross"]["people"][other]
            assert cell["n"] == len(margins) == 7
            assert cell["accuracy"] == sum(margin > 0 for margin in margins) / 7
            assert cell["margin"] == pytest.approx(sum(margins) / 7, abs=1e-3)
            if other == user:
                assert found[user]["pairs"]["accuracy"] == cell["accuracy"]
                assert found[user]["pairs"]["margin"] == cell["margin"]
                assert found[user]["pairs"]["chosen_log_ratio"] == pytest.approx(sum(ratios) / 7, abs=1e-3)
        prompts = [row.encoded.prompt_ids for row in held_out if row.preference.user == user]
        answers = generate(policy, population.base.tokenizer, prompts, GenerationConfig(max_new_tokens=8))
        assert found[user]["behaviour"]["person"]["tokens"] == pytest.approx(
            sum(len(answer.token_ids) for answer in answers) / len(answers)
        )
        assert found[user]["behaviour"]["samples"][0]["person"] == answers[0].text
        assert found[user]["base_responses"]["kl_per_token"] > 0
        detach_adapter(policy)


def test_the_base_is_measured_once_for_all(
    population: Any, make_rows: Rows, probes: str, count_forwards: Callable[[Any], list[int]]
) -> None:
    users = [f"user-{number}" for number in range(4)]
    # All ask the same, so all of the base's work is common.
    rows = [row for user in users for row in make_rows([user])]
    held_out = population.anchored(rows)
    adapters = {user: population.adapter(user, 0.1, seed=number) for number, user in enumerate(users)}
    settings = {"probes": probes, "generate": False}
    seen = count_forwards(population.base.model)
    rows_of: dict[int, int] = {}
    for count in (1, 2, 4):
        population.cache.folder = population.folder / f"cache-{count}"
        population.cache._sections.clear()
        seen.clear()
        population.evaluate(dict(list(adapters.items())[:count]), held_out, **settings)
        rows_of[count] = sum(seen)
    # 24 probes under the base, and for each person 24 probes and 7 prompts.
    assert [rows_of[count] for count in (1, 2, 4)] == [24 + count * (24 + 7) for count in (1, 2, 4)]
    seen.clear()
    population.evaluate(adapters, held_out, **settings)
    assert sum(seen) == 4 * (24 + 7)


def test_people_share_batches_and_the_bases_part_is_done_once(
    population: Any, make_rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = ["ann", "ben", "cem"]
    # All ask the same.
    held_out = population.anchored([row for user in users for row in make_rows([user])])
    adapters = {user: population.adapter(user, 0.1, seed=number) for number, user in enumerate(users)}
    passes: list[str] = []

    def counted(name: str, function: Any) -> Any:
        return lambda *args, **kwargs: passes.append(name) or function(*args, **kwargs)

    monkeypatch.setattr(policies, "_itself", counted("base logits", policies._itself))
    model = population.base.model
    monkeypatch.setattr(model, "generate", counted("generation", model.generate))
    population.evaluate(adapters, held_out)
    # Over its own answers, and over what people say.
    assert sorted(passes) == ["base logits", "base logits", "generation", "generation"]
    passes.clear()
    population.evaluate(adapters, held_out)
    # This time the base's answers come from the cache.
    assert sorted(passes) == ["base logits", "base logits", "generation"]


def test_in_one_batch_everybody_is_measured_as_alone(
    population: Any, make_rows: Rows, probes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adapters of two shapes, two that only PEFT can run, one that is broken and one that is missing among them."""
    users = [f"user-{number}" for number in range(6)]
    held_out = population.anchored([row for user in users for row in make_rows([user])])
    adapters = {user: population.adapter(user, 0.1, seed=number) for number, user in enumerate(users)}
    other = LoraBank(population.base, ParametersConfig(rank=3, alpha=7), 1)
    other.admit(0, seed=5)
    other.matrix[0] += 0.02
    other.save(0, population.folder / "other", user="other")
    other.detach()
    adapters["user-2"] = population.folder / "other"
    adapters["user-3"] = population.folder / "nowhere"
    weights = adapters["user-4"] / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    for user in ("user-0", "user-1"):
        config = adapters[user] / "adapter_config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "use_rslora": True}))
    together = population.evaluate(adapters, held_out, probes=probes)
    monkeypatch.setattr(policies, "AT_ONCE", 1)
    alone = population.evaluate(adapters, held_out, probes=probes)
    assert list(together.skipped) == list(alone.skipped) == ["user-3", "user-4"]
    assert together.skipped["user-3"] == alone.skipped["user-3"]
    assert list(together.people) == list(alone.people) == ["user-0", "user-1", "user-2", "user-5"]
    for user, one in alone.people.items():
        assert _flat(together.people[user]) == pytest.approx(_flat(one), rel=1e-3, abs=1e-5, nan_ok=True)


def _flat(value: Any, path: str = "") -> dict[str, float]:
    """Every number of nested results."""
    if isinstance(value, dict):
        return {name: number for key, part in value.items() for name, number in _flat(part, f"{path}/{key}").items()}
    return {path: float(value)} if isinstance(value, int | float) else {}


@pytest.mark.parametrize("damage", ["missing", "weights", "config", "other base", "other shape"])
def test_a_broken_adapter_is_reported_and_costs_nobody_else(
    population: Any, make_rows: Rows, make_base: Callable[..., Base], damage: str
) -> None:
    held_out = population.anchored(make_rows(["ann", "ben"]))
    alone = population.evaluate({"ben": population.adapter("ben", 0.3, seed=2)}, held_out[7:], cross_table=0)
    adapters = {"ann": population.adapter("ann", 0.3), "ben": population.folder / "adapters" / "ben"}
    if damage == "missing":
        adapters["ann"] = population.folder / "adapters" / "nowhere"
    elif damage == "weights":
        weights = adapters["ann"] / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-40])
    elif damage == "config":
        (adapters["ann"] / "adapter_config.json").write_text("{")
    else:
        changes = {"other base": {"seed": 5}, "other shape": {"hidden_size": 48}}[damage]
        adapters["ann"] = population.adapter("ann", 0.3, base=make_base(**changes))
    if damage == "other shape":
        # Without our note on its origin, only the weights can tell.
        (adapters["ann"] / "pluralign.json").unlink()
    found = population.evaluate(adapters, held_out, cross_table=0)
    assert list(found.people) == ["ben"]
    assert "ann" in found.skipped
    assert found.summary["skipped"] == 1
    assert _flat(found.people) == pytest.approx(_flat(alone.people), abs=1e-6)
    require_bare(population.base.model)


def test_weights_that_are_no_numbers_give_nulls(population: Any, make_rows: Rows, probes: str) -> None:
    held_out = population.anchored(make_rows(["ann"]))
    found = population.evaluate({"ann": population.adapter("ann", math.nan)}, held_out, probes=probes)
    path = found.write(population.folder / "evaluation.json")
    person = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))["people"]["ann"]
    assert (person["pairs"]["accuracy"], person["pairs"]["margin"], person["pairs"]["undefined"]) == (0.0, None, 7)
    assert (person["retention"]["kept"], person["base_responses"]["kl_per_token"]) == (0.0, None)


def test_no_held_out_rows_give_nulls(population: Any, probes: str) -> None:
    found = population.evaluate({"ann": population.adapter("ann")}, [], probes=probes)
    person = found.people["ann"]
    assert (person["pairs"]["accuracy"], person["behaviour"], person["group"]) == (None, None, None)
    assert person["retention"]["kept"] == 1.0
    assert found.summary["pairs.accuracy.mean"] is None
    nothing = population.evaluate({}, [])
    assert (nothing.people, nothing.summary["people"]) == ({}, 0)


def test_a_probe_is_asked_whole_or_not_at_all(population: Any, tmp_path: Path) -> None:
    # 128 tokens are a prompt's limit in this run, 256 the model's.
    rows = [{"question": "x" * length, "options": ["a", "b"], "answer": 0} for length in (150, 300)]
    path = tmp_path / "probes.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = population.evaluate({"ann": population.adapter("ann")}, [], probes=str(path))
    (source,) = found.base["probes"]
    assert (source["used"], source["too_long"]) == (2, 1)
    assert found.people["ann"]["retention"]["measures"]["base_sum"]["all"]["n"] == 1


def test_rows_without_pairs_are_prompts_only(population: Any, make_rows: Rows) -> None:
    rows = make_rows(["ann"], pairs=3)
    for row in rows:
        row.rejected = None
    held_out = population.anchored(rows, with_reference=False)
    person = population.evaluate({"ann": population.adapter("ann")}, held_out).people["ann"]
    assert (person["pairs"]["n"], person["behaviour"]["prompts"]) == (0, 4)


def test_references_are_found_where_training_needed_none(population: Any, make_rows: Rows) -> None:
    rows, adapters = make_rows(["ann"]), {"ann": population.adapter("ann", 0.3)}
    given = population.evaluate(adapters, population.anchored(rows)).people
    assert population.evaluate(adapters, population.anchored(rows, with_reference=False)).people == given


def test_hostile_names_and_reading_back(population: Any, make_rows: Rows) -> None:
    held_out = population.anchored(make_rows(HOSTILE, pairs=1))
    adapters = {user: population.adapter(user, 0.2, seed=number) for number, user in enumerate(HOSTILE)}
    found = population.evaluate(adapters, held_out, generate=False, skipped={"../gone": "no pairs"})
    path = found.write(population.folder / "evaluation.json")
    again = read_evaluation(path)
    assert list(again.people) == HOSTILE
    assert again.as_dict() == found.as_dict()
    assert again.skipped == {"../gone": "no pairs"}


def test_people_without_an_adapter_are_reported(population: Any, make_rows: Rows) -> None:
    held_out = population.anchored(make_rows(["ann", "ben", "cem"]))
    found = population.evaluate({"ann": population.adapter("ann")}, held_out, skipped={"ben": "one pair only"})
    assert list(found.people) == ["ann"]
    assert found.skipped == {"ben": "one pair only", "cem": "there is no adapter"}


def test_one_policy_for_all_is_measured_person_by_person(
    population: Any, make_rows: Rows, probes: str, count_forwards: Callable[[Any], list[int]]
) -> None:
    held_out = population.anchored(make_rows(["ann", "ben"]))
    everybody = {ALL: population.adapter(ALL, 0.3)}
    found = population.evaluate(everybody, held_out, per="none", probes=probes)
    assert list(found.people) == ["ann", "ben"]
    apart = population.evaluate({"ann": everybody[ALL], "ben": everybody[ALL]}, held_out, probes=probes)
    for person in ("ann", "ben"):
        assert found.people[person]["pairs"]["n"] == 7
        assert found.people[person]["pairs"] == apart.people[person]["pairs"]
    seen = count_forwards(population.base.model)
    settings = {"probes": probes, "generate": False, "cross_table": 0}
    population.evaluate(everybody, held_out, per="none", **settings)
    # 13 distinct prompts (one is common) and 48 ways of asking a probe (ann has a manner of her own).
    assert sum(seen) == 13 + 48


def test_groups_are_summaries_of_their_people(population: Any, make_rows: Rows) -> None:
    users = ["ann", "ben", "cem"]
    held_out = population.anchored(make_rows(users))
    adapters = {user: population.adapter(user, 0.4, seed=number) for number, user in enumerate(users)}
    found = population.evaluate(adapters, held_out, generate=False)
    accuracies = {user: found.people[user]["pairs"]["accuracy"] for user in users}
    assert found.groups["group-0"]["people"] == 2
    assert found.groups["group-0"]["pairs.accuracy.mean"] == pytest.approx((accuracies["ann"] + accuracies["cem"]) / 2)
    assert found.groups["group-1"]["pairs.accuracy.worst_person"] == "ben"
    assert found.summary["pairs.accuracy.worst"] == min(accuracies.values())
    assert found.summary["pairs.accuracy.gap"] == pytest.approx(max(accuracies.values()) - min(accuracies.values()))
    by_group = population.evaluate({"group-0": adapters["ann"]}, held_out, per="group", generate=False)
    assert by_group.people["group-0"]["pairs"]["n"] == 14
    assert by_group.groups == {}


def test_fully_trained_weights_are_evaluated_beside_the_base(
    population: Any, make_base: Callable[..., Base], make_rows: Rows
) -> None:
    trained = make_base(7)
    folder = population.folder / "model"
    trained.model.save_pretrained(folder)
    trained.tokenizer.save_pretrained(folder)
    held_out = population.anchored(make_rows(["ann"]))
    found = population.evaluate({ALL: folder}, held_out, per="none").people["ann"]
    reloaded = load_base(ModelConfig(model=str(folder), device="cpu"))
    margins = []
    for row in held_out:
        prompt, sides = row.encoded.prompt_ids, row.encoded.response_ids
        ratio = {side: logp(reloaded.model, prompt, ids) - row.reference[side] for side, ids in sides.items()}
        margins.append(ratio["chosen"] - ratio["rejected"])
    assert found["pairs"]["margin"] == pytest.approx(sum(margins) / len(margins), abs=1e-3)
    assert found["base_responses"]["kl_per_token"] > 0
