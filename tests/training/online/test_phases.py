"""Online phases: what they record, learn and leave, and how they go on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pluralign.annotators.protocol import AnnotatorError, Request, Verdict
from pluralign.config import GroupWeightingConfig, TrainConfig
from pluralign.errors import InputError
from pluralign.online_config import OnlineConfig
from pluralign.training import train
from pluralign.training.online.files import read_candidates, read_pairs
from pluralign.training.online.run import online

Weights = Callable[[Path | str], dict[str, torch.Tensor]]
Make = Callable[..., Any]


def adapters(result: Any, weights: Weights) -> dict[str, dict[str, torch.Tensor]]:
    return {user: weights(path) for user, path in result.adapters.items()}


def same(found: Any, expected: Any) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[user][name], expected[user][name]) for user in expected for name in expected[user]
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("by", ["rows", "importance", "sampling", "worst"])
def test_one_phase_is_offline_training_on_its_pairs(
    by: Any, make_rows: Make, make_online: Make, make_config: Make, counting: Any, weights: Weights
) -> None:
    rows, training = make_rows("ab", pairs=16, group=lambda number: "xy"[number % 3 // 2]), {"max_steps": 7}
    weighting = {"groups": GroupWeightingConfig(by=by)}
    config = make_online(rows, pairs={"phases": 1}, training=training, weighting=weighting)
    sampled = online(config, counting())
    pairs = Path(config.output_dir) / "phases" / "0000" / "pairs-0000.jsonl"
    table = lines(pairs)
    assert {row["user"] for row in table} == {"a", "b"} and len(table) > 20
    common = {"training": training, "weighting": weighting, "engine": "bank"}
    offline = make_config(table, "offline", data={"validation": 0.0}, **common)
    learned = train(replace(offline, reference=replace(offline.reference, compute="table")))
    assert same(adapters(sampled, weights), adapters(learned, weights))
    # And its recorded log-probs are those of the base, which is what a fresh adapter samples as.
    cached = train(replace(offline, output_dir=f"{offline.output_dir}-cached"))
    for user, found in adapters(cached, weights).items():
        for name, value in found.items():
            torch.testing.assert_close(value, adapters(sampled, weights)[user][name], atol=2e-4, rtol=0)


def test_every_phase_samples_with_the_policy_as_it_is_and_is_compared_with_it(
    make_rows: Make, make_online: Make, counting: Any, metrics: Make
) -> None:
    config = make_online(make_rows("ab", pairs=16), pairs={"phases": 3}, training={"num_train_epochs": 3})
    annotator = counting()
    result = online(config, annotator)
    found = [read_pairs(Path(config.output_dir) / "phases" / f"{n:04d}" / "pairs-0000.jsonl") for n in range(3)]
    versions = [{pair.policy_version for pair in pairs} for pairs in found]
    assert versions[0] == {0} and all(len(some) == 1 for some in versions) and versions[0] < versions[1] | {0}
    for pairs in found:
        for pair in pairs:
            assert pair.references == (pair.chosen.logp, pair.rejected.logp) and pair.chosen.text != pair.rejected.text
    # The first step of a phase sees the very policy that sampled.
    firsts = {min(some) + 1 for some in versions}
    margins = [row["rewards/margins"] for row in metrics(config.output_dir) if row["step"] in firsts and "loss" in row]
    assert len(margins) == 6 and max(map(abs, margins)) < 1e-4
    assert sum(abs(row["rewards/margins"]) > 1e-3 for row in metrics(config.output_dir) if "loss" in row) > 3
    # Each prompt is asked about once, and nobody sees another person's.
    assert len({(one.user, one.prompt) for one in annotator.asked}) == len(annotator.asked)
    assert set(result.adapters) == {"a", "b"}
    # One schedule over all phases: the rate falls along one line.
    rates = torch.tensor([row["learning_rate"] for row in metrics(config.output_dir, "a") if "loss" in row])
    assert rates[0] > 0 and torch.allclose(rates.diff(), rates.diff()[0].expand(len(rates) - 1), rtol=1e-4)


def test_weights_over_groups_go_on_from_phase_to_phase(
    make_rows: Make, make_online: Make, counting: Any, metrics: Make
) -> None:
    """Every step moves them by its own losses, a phase's first step from where the phase before has left them."""
    rows = make_rows("ab", pairs=16, group=lambda number: "x" if number % 5 else "rare")
    worst = GroupWeightingConfig(by="worst", step_size=3.0)
    config = make_online(rows, pairs={"phases": 6}, training={"learning_rate": 5e-3}, weighting={"groups": worst})
    online(config, counting())
    for user in "ab":
        odds, absent = 0.0, 0
        for line in (line for line in metrics(config.output_dir, user) if "loss" in line):
            rare, common = (line.get(f"group/{name}/loss", 0.0) for name in ("rare", "x"))
            absent += "group/rare/loss" not in line
            odds += worst.step_size * (rare - common)
            weight = line["group/rare/weight"]
            assert math.log(weight / (1 - weight)) == pytest.approx(odds, abs=1e-5)
            assert line["group/x/weight"] == pytest.approx(1 - weight)
        assert absent and abs(odds) > 0.5


def test_groups_of_a_file_of_prompts(make_rows: Make, make_online: Make, counting: Any, tmp_path: Path) -> None:
    """They are its own, and stay in the pair files; a row that names none is found before anything is sampled."""
    prompts = tmp_path / "prompts.jsonl"
    asked = [{"prompt": f"Question : the night {number} ?", "region": "ns"[number % 2]} for number in range(8)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in asked))
    rows = make_rows("a", pairs=4, region=lambda number: "elsewhere")
    seat = {"groups": GroupWeightingConfig(by="worst", column="region")}
    config = make_online(rows, pairs={"prompts": str(prompts)}, weighting=seat)
    with pytest.warns(UserWarning, match="group 'elsewhere' is held out and nobody learns from it"):
        online(config, counting())
    pairs = [row for path in Path(config.output_dir).glob("phases/*/pairs-0000.jsonl") for row in lines(path)]
    assert {row["region"] for row in pairs} == {"n", "s"}
    logged = {name for row in lines(Path(config.output_dir) / "metrics.jsonl") for name in row if "/weight" in name}
    assert logged == {"group/n/weight", "group/s/weight"}

    del asked[3]["region"]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in asked))
    annotator = counting()
    with pytest.raises(InputError, match=r"prompts\.jsonl, row 4, column 'region': the row names no group"):
        online(replace(config, output_dir=str(tmp_path / "other")), annotator)
    # The table's own people are in two groups: nothing says which one a prompt is of.
    two = make_online(
        make_rows("a", pairs=4, group=lambda number: "xy"[number % 2]), "two", pairs={"prompts": str(prompts)}
    )
    two.weighting.groups.by = "worst"
    with pytest.raises(InputError, match=r"column 'group': the row names no group"):
        online(two, annotator)
    assert not annotator.asked


def test_every_step_samples_anew_and_warns_that_the_reference_is_inert(
    make_rows: Make, make_online: Make, counting: Any
) -> None:
    training = {"num_train_epochs": 1}
    config = make_online(make_rows("a", pairs=16), pairs={"phases": "every_step"}, training=training)
    with pytest.warns(UserWarning, match="the reference is the policy that samples"):
        online(config, counting())
    phases = sorted((Path(config.output_dir) / "phases").iterdir())
    assert len(phases) == 3
    for number, place in enumerate(phases):
        assert {one.policy_version for one in read_candidates(place / "candidates-0000.jsonl")} == {number}


@pytest.mark.parametrize("fails_after", [0, 3, 14, 17])
def test_a_run_whose_annotator_fails_goes_on_to_the_same_end_and_asks_nothing_twice(
    make_rows: Make, make_online: Make, counting: Any, weights: Weights, fails_after: int
) -> None:
    rows = make_rows("ab", pairs=12)
    changes = {"pairs": {"phases": 2}, "annotator": {"batch_size": 3}}
    undisturbed, whole = counting(), make_online(rows, "whole", **changes)
    expected = adapters(online(whole, undisturbed), weights)
    config = make_online(rows, "again", **changes)
    first = counting(fails_after=fails_after)
    with pytest.raises((AnnotatorError, RuntimeError), match="out of patience"):
        online(config, first)
    with pytest.raises(InputError, match=r"differs in pairs\.phases"):
        online(replace(config, pairs=replace(config.pairs, phases=3)), counting())
    second = counting()
    assert same(adapters(online(config, second), weights), expected)
    assert [one.row for one in (*first.asked, *second.asked)] == [one.row for one in undisturbed.asked]
    third = counting()
    online(config, third)
    assert not third.asked


def test_given_models_are_what_pairs_are_compared_with(
    make_rows: Make, make_online: Make, counting: Any, weights: Weights
) -> None:
    rows, found = make_rows("a", pairs=16), {}
    for policy, models in (("fixed", []), ("given", ["base"]), ("given", "fixed")):
        name = policy if models != "fixed" else "other"
        given = [str(Path(str(found[1].output_dir)) / "adapters" / "a")] if models == "fixed" else models
        config = make_online(rows, name, reference={"policy": policy, "models": given})
        found[len(found) + 1] = online(config, counting())
    # The base by its name is the base that is there; an adapter is another reference.
    assert same(adapters(found[1], weights), adapters(found[2], weights))
    assert not same(adapters(found[1], weights), adapters(found[3], weights))


@pytest.mark.parametrize("policy", ["fixed", "periodic", "ema"])
def test_other_references_are_what_they_say(make_rows: Make, make_online: Make, counting: Any, policy: str) -> None:
    reference = {"policy": policy, **({"ema": 0.0} if policy == "ema" else {"every": 1})}
    rows, more = make_rows("a", pairs=16), {"pairs": {"phases": 3}, "training": {"num_train_epochs": 1}}
    config = make_online(rows, reference=reference, **more)
    online(config, counting())
    pairs = [read_pairs(Path(config.output_dir) / "phases" / f"{n:04d}" / "pairs-0000.jsonl") for n in range(3)]
    if policy == "fixed":
        assert all(pair.references is None for some in pairs for pair in some)
        return
    # Moved after every phase, whole: the policy that samples the next one.
    for pair in (pair for some in pairs for pair in some):
        assert pair.references == pytest.approx((pair.chosen.logp, pair.rejected.logp), abs=1e-3)
    slow = make_online(rows, "slow", reference={"policy": "periodic", "every": 5}, **more)
    online(slow, counting())
    last = read_pairs(Path(slow.output_dir) / "phases" / "0002" / "pairs-0000.jsonl")
    gaps = [abs(pair.references[0] - pair.chosen.logp) for pair in last if pair.references]
    assert max(gaps) > 0.01, "a reference that stays where it was is not the sampler"


def test_an_average_takes_its_share_of_the_policy_after_every_phase(
    make_rows: Make, make_online: Make, counting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pluralign.training.online.population import OnlinePopulation

    seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    move = OnlinePopulation._move_references

    def noted(self: OnlinePopulation, phase: int) -> None:
        there = [(self.compared[user].clone(), self.bank.matrix[one.slot].clone()) for user, one in self.cohort.items()]
        move(self, phase)
        seen.extend((before, policy, self.compared["a"].clone()) for before, policy in there)

    monkeypatch.setattr(OnlinePopulation, "_move_references", noted)
    config = make_online(make_rows("a", pairs=16), reference={"policy": "ema", "ema": 0.75}, pairs={"phases": 3})
    online(config, counting())
    assert len(seen) == 2, "after the last phase nothing is compared any more"
    for before, policy, after in seen:
        torch.testing.assert_close(after, 0.75 * before + 0.25 * policy)
        assert not torch.equal(before, policy)
    assert torch.equal(seen[1][0], seen[0][2])
    last = read_pairs(Path(config.output_dir) / "phases" / "0002" / "pairs-0000.jsonl")
    gaps = [abs(pair.references[0] - pair.chosen.logp) for pair in last if pair.references]
    assert len(gaps) == len(last) and max(gaps) > 0.01, "what lies between is not the sampler"


def test_extrapolation_goes_beyond_what_was_learned_and_ends_with_what_was(
    make_rows: Make,
    make_online: Make,
    counting: Any,
    weights: Weights,
    metrics: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pluralign.training.online import population

    steps: list[tuple[torch.Tensor, torch.Tensor]] = []
    step = population.extrapolated

    def noted(new: Any, old: Any, *, alpha: float) -> Any:
        steps.append((new.delta, old.delta))
        return step(new, old, alpha=alpha)

    monkeypatch.setattr(population, "extrapolated", noted)
    rows = make_rows("a", pairs=24)
    # Of three iterations the second begins beyond the first: what is learned from there on is another.
    found = {}
    for alpha in (0.0, 0.5):
        config = make_online(rows, f"alpha-{alpha}", pairs={"phases": 3}, extrapolation={"alpha": alpha})
        found[alpha] = adapters(online(config, counting()), weights)
        cuts = [row["extrapolation/cut"] for row in metrics(config.output_dir) if "extrapolation/cut" in row]
        assert len(cuts) == (2 if alpha else 0)
        # From nothing to the first iterate there is no other direction to cut.
        assert not cuts or (cuts[0] < 1e-3 < cuts[1] < 0.5)
    assert not same(found[0.5], found[0.0])
    # The momentum is between what was learned, not from where the step beyond had led.
    first, second = steps[: len(steps) // 2], steps[len(steps) // 2 :]
    assert all(not old.any() for _, old in first)
    for (learned, _), (_, old) in zip(first, second, strict=True):
        torch.testing.assert_close(old, learned, rtol=0, atol=0)
    config = make_online(rows, "killed", pairs={"phases": 3}, extrapolation={"alpha": 0.5}, annotator={"batch_size": 2})
    with pytest.raises(RuntimeError):
        online(config, counting(fails_after=14))
    assert same(adapters(online(config, counting()), weights), found[0.5])


def test_people_together_and_in_cohorts_get_what_they_would_get_alone(
    make_rows: Make, make_online: Make, counting: Any, weights: Weights
) -> None:
    together = make_online(make_rows("abc"), "together", dtype="float64")
    cohorts = make_online(make_rows("abc"), "cohorts", dtype="float64", bank={"slots": 2})
    found = adapters(online(together, counting()), weights)
    parts = adapters(online(cohorts, counting()), weights)
    alone = {}
    for user in "abc":
        alone |= adapters(online(make_online(make_rows(user), user, dtype="float64"), counting()), weights)
    for user in "abc":
        for name, value in alone[user].items():
            torch.testing.assert_close(found[user][name], value, rtol=1e-8, atol=1e-10)
            torch.testing.assert_close(parts[user][name], value, rtol=1e-8, atol=1e-10)


class Saying:
    name = "saying"

    def __init__(self, verdict: Callable[[Request], Any], more: int = 0) -> None:
        self.verdict, self.more = verdict, more

    def annotate(self, requests: Any) -> list[Verdict]:
        return [self.verdict(one) for one in requests] + [Verdict(tie=True)] * self.more


@pytest.mark.parametrize(
    ("annotator", "message"),
    [
        (Saying(lambda one: Verdict(scores=(float("nan"), 0.0))), r"annotator saying, row '0/a/\d+': the score nan"),
        (Saying(lambda one: Verdict(scores=(1.0,))), "1 scores for 2 responses"),
        (Saying(lambda one: Verdict(ranking=(0, 0))), r"the ranking \[0, 0\] of 2 responses"),
        (Saying(lambda one: Verdict()), "neither scores nor a ranking"),
        (Saying(lambda one: "A"), "a str in place of a Verdict"),
        (Saying(lambda one: Verdict(tie=True), more=1), r"\d+ verdicts for \d+ requests"),
    ],
)
def test_what_an_annotator_may_not_say_is_named(
    make_rows: Make, make_online: Make, annotator: Any, message: str
) -> None:
    with pytest.raises(AnnotatorError, match=message):
        online(make_online(make_rows("a")), annotator)


def test_who_has_only_ties_or_abstentions_gets_nothing_and_is_named(make_rows: Make, make_online: Make) -> None:
    undecided = Saying(lambda one: Verdict(tie=True) if one.user == "a" else Verdict(ranking=(1, 0)))
    config = make_online(make_rows("ab"))
    with pytest.warns(UserWarning, match=r"of 18 prompts \d+ gave no pair"):
        result = online(config, undecided)
    assert list(result.adapters) == ["b"] and "none of 9 prompts gave a pair" in result.skipped["a"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pairs": {"phases": 0}}, "pairs.phases is 0"),
        ({"pairs": {"responses": 1}}, "pairs.responses is 1"),
        ({"pairs": {"responses": 3, "form": "sampled"}}, "pairs.form is sampled and pairs.responses is 3"),
        ({"pairs": {"budget": 1}}, "user 'a': 1 prompts are annotated, in 2 phases"),
        ({"engine": "trainer"}, "engine is trainer"),
        ({"reference": {"policy": "ema"}}, "reference.policy is ema and reference.ema is None"),
        ({"reference": {"models": ["base"]}}, "reference.policy is behavior and reference.models"),
        ({"reference": {"compute": "forward"}}, "reference.compute is forward"),
    ],
)
def test_settings_that_cannot_be_are_named(
    make_rows: Make, make_online: Make, counting: Any, changes: dict[str, Any], message: str
) -> None:
    config = make_online(make_rows("a"), **changes)
    with pytest.raises(InputError, match=message):
        online(config, counting())
    assert not Path(config.output_dir).exists()


def test_overwriting_begins_anew_with_samples_of_its_own(
    make_rows: Make, make_online: Make, counting: Any, weights: Weights
) -> None:
    rows = make_rows("a", pairs=16)
    config = make_online(rows, "again", pairs={"phases": 2})
    online(config, counting())
    other = replace(config, pairs=replace(config.pairs, phases=1), overwrite=True)
    found = adapters(online(other, counting()), weights)
    assert [place.name for place in (Path(config.output_dir) / "phases").iterdir()] == ["0000"]
    fresh = make_online(rows, "fresh", pairs={"phases": 1})
    assert same(found, adapters(online(fresh, counting()), weights))


def test_prompts_of_a_file_are_asked_and_may_not_change_in_between(
    make_rows: Make, make_online: Make, counting: Any, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    asked = [{"prompt": f"the night {n}"} for n in range(4)] + [{"prompt": "only for b", "user": "b"}]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in asked))
    config: OnlineConfig = make_online(make_rows("ab"), pairs={"prompts": str(prompts)})
    annotator = counting(fails_after=1)
    with pytest.raises((AnnotatorError, RuntimeError)):
        online(config, annotator)
    prompts.write_text(prompts.read_text().replace("night 3", "night 7"))
    with pytest.raises(InputError, match=r"differs in the content of pairs\.prompts"):
        online(config, counting())
    prompts.write_text(prompts.read_text().replace("night 7", "night 3"))
    again = counting()
    online(config, again)
    by_user = {user: {one.prompt for one in again.asked if one.user == user} for user in "ab"}
    assert by_user["a"] <= {row["prompt"] for row in asked[:4]} and "only for b" in by_user["b"]


def test_a_pair_of_another_policy_is_refused(make_rows: Make, make_online: Make, counting: Any) -> None:
    config = make_online(make_rows("a", pairs=16), annotator={"batch_size": 4})
    with pytest.raises(RuntimeError, match="out of patience"):
        online(config, counting(fails_after=8))
    path = Path(config.output_dir) / "phases" / "0001" / "candidates-0000.jsonl"
    path.write_text(path.read_text().replace('"policy_version": 4', '"policy_version": 1'))
    with pytest.raises(Exception, match="was sampled by the policy of step 1, and the reference is that of step"):
        online(config, counting())


def test_a_budget_larger_than_the_prompts_asks_them_again(make_rows: Make, make_online: Make, counting: Any) -> None:
    config = make_online(make_rows("a"), pairs={"budget": 20, "phases": 2})
    online(config, annotator := counting())
    files = [Path(config.output_dir) / "phases" / f"{n:04d}" / "candidates-0000.jsonl" for n in range(2)]
    rows = [one for file in files for one in read_candidates(file)]
    assert [len(read_candidates(file)) for file in files] == [10, 10], "the budget is divided over the phases"
    assert len(rows) == 20 and len({str(one.prompt) for one in rows}) == 9 and len(annotator.asked) <= 20


def test_offline_training_refuses_a_method_that_samples(make_config: Callable[..., TrainConfig]) -> None:
    from pluralign.resolve import resolve

    with pytest.raises(InputError, match=r"method bpo samples its pairs\. It is for `pluralign online`"):
        resolve(TrainConfig, {"method": "bpo"})
