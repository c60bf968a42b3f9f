"""Reward models: published ones and our own, what they say and what they refuse; how ours are made and measured."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn.functional import softplus
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from pluralign.annotators.protocol import AnnotatorError, Request, checked
from pluralign.annotators.reward import RewardModel, TrainedRewardModel, figures, reliability
from pluralign.annotators.reward_file import (
    HEADS_FILE,
    MODEL_FILE,
    Heads,
    TrainedReward,
    Trunk,
    fit_heads,
    read_reward,
    side,
    write_reward,
)
from pluralign.annotators.reward_training import train_reward
from pluralign.config import DataConfig
from pluralign.errors import InputError
from pluralign.models.base import Base
from pluralign.preferences import load_preferences, split_preferences
from pluralign.world import World
from pluralign.world.people import world_user

TEXTS = (
    ("Why?", "Because."),
    ("Why?", ""),
    ("And who was it, then, that came here so late?", "Nobody."),
    ("Name a colour", " that is not red, nor blue, nor any colour of the sea: green<eos>"),
)


def asked(texts: Sequence[tuple[str, str]] = TEXTS, user: str | None = None) -> list[Request]:
    """A request each, in which the response stands first."""
    return [Request(prompt, (text, "other"), user, str(row)) for row, (prompt, text) in enumerate(texts)]


def first_scores(model: Any, texts: Sequence[tuple[str, str]] = TEXTS, user: str | None = None) -> list[float]:
    found = []
    for verdict in checked(model, asked(texts, user)):
        assert verdict.scores is not None
        found.append(verdict.scores[0])
    return found


# ---- published reward models ----


def small(kind: str, **changes: Any) -> Any:
    """The configuration of a tiny classifier with one output."""
    size = {"vocab_size": 264, "num_labels": 1, "pad_token_id": None, "initializer_range": 0.3}
    layers = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    if kind == "gpt2":
        return GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=128, **{**size, **changes})
    if kind == "bert":
        return BertConfig(**{**size, **layers, "pad_token_id": 0, "max_position_embeddings": 64, **changes})
    return LlamaConfig(**{**size, **layers, "max_position_embeddings": 128, **changes})


@pytest.fixture
def publish(tmp_path: Path, byte_tokenizer: Any) -> Callable[..., tuple[Path, Any, Any]]:
    """A function that saves a tiny classifier: its folder, the model and the tokenizer."""

    def made(
        config: Any, *, template: bool = True, padding: bool = True, tokenizer: Any = None
    ) -> tuple[Path, Any, Any]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = AutoModelForSequenceClassification.from_config(config).eval()
        folder = tmp_path / "published"
        model.save_pretrained(folder)
        if tokenizer is None:
            special = {"eos_token": "<eos>", "bos_token": "<bos>", **({"pad_token": "<pad>"} if padding else {})}
            tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer.backend_tokenizer, **special)
            tokenizer.chat_template = byte_tokenizer.chat_template if template else None
        tokenizer.save_pretrained(folder)
        return folder, model, tokenizer

    return made


def plain_score(model: Any, ids: Sequence[int]) -> float:
    with torch.no_grad():
        return float(model(input_ids=torch.tensor([ids])).logits[0, 0])


def own_ids(tokenizer: Any, prompt: str, response: str) -> list[int]:
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        return list(tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False))
    return list(tokenizer(prompt + response)["input_ids"])


@pytest.mark.parametrize("template", [True, False])
@pytest.mark.parametrize(
    ("kind", "padding", "changes"),
    [
        ("llama", True, {"pad_token_id": 258}),
        # As many are published: no padding token anywhere, or the end token as one.
        ("llama", False, {}),
        ("gpt2", False, {}),
        ("gpt2", False, {"pad_token_id": 256}),
    ],
)
def test_a_published_classifier_scores_as_its_plain_forward(
    publish: Callable[..., Any], kind: str, padding: bool, changes: dict[str, Any], template: bool
) -> None:
    folder, model, tokenizer = publish(small(kind, **changes), template=template, padding=padding)
    expected = [plain_score(model, own_ids(tokenizer, *one)) for one in TEXTS]
    reward = RewardModel.load(str(folder), device="cpu")
    together = first_scores(reward)
    assert together == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 0.01
    # Whatever stands beside it in a batch.
    assert [first_scores(reward, [one])[0] for one in TEXTS] == pytest.approx(together, abs=1e-5)
    assert first_scores(reward) == together
    assert reward.cuts == 0 and reward.model.config.pad_token_id == changes.get("pad_token_id")


@pytest.mark.parametrize("types", [["token_type_ids"], []])
def test_a_classifier_that_reads_pairs_gets_pairs(publish: Callable[..., Any], types: list[str]) -> None:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(["[PAD]", "[CLS]", "[SEP]", *letters])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    names = ["input_ids", *types, "attention_mask"]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=names, **special)
    assert list(tokenizer("a", "b")) == names
    folder, model, _ = publish(small("bert"), tokenizer=tokenizer)
    reward = RewardModel.load(str(folder), device="cpu")
    texts = [TEXTS[0], ("Who was it that came here late?", "Nobody."), ("p" * 90, "r" * 20)]
    cut = 64 - 20 - 3
    expected = []
    for prompt, response in [*texts[:2], ("p" * cut, "r" * 20)]:
        given = tokenizer(prompt, response, return_tensors="pt")
        with torch.no_grad():
            expected.append(float(model(**given).logits[0, 0]))
    assert first_scores(reward, texts) == pytest.approx(expected, abs=1e-5)
    # The response beside it has room for more of the prompt.
    assert reward.cuts == 2


def test_a_long_prompt_loses_its_beginning_and_the_response_stays(publish: Callable[..., Any]) -> None:
    folder, model, tokenizer = publish(small("gpt2"), template=False, padding=False)
    reward = RewardModel.load(str(folder), device="cpu")
    prompt, response = "abcdefgh" * 20, "the response"
    kept = own_ids(tokenizer, prompt, response)[-128:]
    assert bytes(response, "ascii") in bytes(tokenizer.decode(kept), "ascii")
    assert first_scores(reward, [(prompt, response)]) == pytest.approx([plain_score(model, kept)], abs=1e-5)
    assert reward.cuts == 2


def test_what_is_no_reward_model_is_refused(
    publish: Callable[..., Any], make_base: Callable[..., Base], tmp_path: Path
) -> None:
    folder, _, _ = publish(small("llama", num_labels=2))
    with pytest.raises(InputError, match=r"published: the classifier has 2 outputs, not one"):
        RewardModel.load(str(folder))
    causal = make_base(vocab_size=264, num_labels=1)
    causal.model.save_pretrained(tmp_path / "causal")
    causal.tokenizer.save_pretrained(tmp_path / "causal")
    with pytest.raises(InputError, match=r"causal: the weights lack 1 tensors of a classifier, score.weight"):
        RewardModel.load(str(tmp_path / "causal"))
    with pytest.raises(InputError, match="nowhere"):
        RewardModel.load(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"neither a config.json nor a reward_model.json"):
        RewardModel.load(str(tmp_path / "empty"))
    good, _, _ = publish(small("llama"))
    weights = good / "model.safetensors"
    torch.save(load_file(weights), good / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(InputError, match=r"published: the reward model cannot be loaded \(.*safetensors"):
        RewardModel.load(str(good))


def test_what_cannot_be_scored_names_the_row(publish: Callable[..., Any]) -> None:
    folder, _, _ = publish(small("llama"), template=False, padding=False)
    reward = RewardModel.load(str(folder), device="cpu")
    assert reward.annotate([]) == []
    messages = [{"role": "user", "content": "Why?"}]
    with pytest.raises(AnnotatorError, match=r"row 'b': the prompt is messages"):
        reward.annotate([Request("Why?", ("a", "b"), None, "a"), Request(messages, ("a", "b"), None, "b")])
    with pytest.raises(AnnotatorError, match=r"row 'c': the text has no token"):
        reward.annotate([Request("", ("a", ""), None, "c")])
    with torch.no_grad():
        reward.model.get_input_embeddings().weight[ord("z") - ord("!")] = float("nan")
    with pytest.raises(AnnotatorError, match=r"row '1': it gives a response the score nan"):
        reward.annotate(asked([("Why?", "Because."), ("Why?", "zzz"), ("Why?", "So.")]))


# ---- our own ----


def random_heads(base: Base, kind: str = "user", ids: tuple[str, ...] = ("anna", "ben"), **more: Any) -> Heads:
    draw = torch.Generator().manual_seed(3)
    size = base.model.config.hidden_size
    shared, center = torch.randn(size, generator=draw), torch.randn(size, generator=draw)
    offsets, scale = torch.randn(len(ids), size, generator=draw), torch.rand(size, generator=draw) + 0.5
    return Heads(kind, ids, shared, offsets, center, scale, **more)


def own_model(base: Base, heads: Heads, data: DataConfig | None = None) -> TrainedRewardModel:
    return TrainedRewardModel("own", TrainedReward(Trunk(base, data or DataConfig()), heads))


@pytest.mark.parametrize("layout", ["shared", "separate"])
def test_a_trained_model_scores_the_last_state_of_each_text(tiny_base: Base, layout: Any) -> None:
    heads = random_heads(tiny_base)
    reward = own_model(tiny_base, heads)
    trunk = reward.trained.trunk
    trunk.forward = replace(trunk.forward, layout=layout)
    for user, head in (("ben", heads.shared + heads.offsets[1]), (None, heads.shared)):
        expected = []
        for prompt, response in TEXTS:
            ids = tiny_base.tokenizer(prompt)["input_ids"] + tiny_base.tokenizer(response)["input_ids"]
            ids += [] if ids[-1] == tiny_base.tokenizer.eos_token_id else [tiny_base.tokenizer.eos_token_id]
            with torch.no_grad():
                states = tiny_base.model.model(input_ids=torch.tensor([ids])).last_hidden_state
            expected.append(float((states[0, -1] - heads.center) / heads.scale @ head))
        together = first_scores(reward, user=user)
        assert together == pytest.approx(expected, abs=1e-4)
        assert [first_scores(reward, [one], user)[0] for one in TEXTS] == pytest.approx(together, abs=1e-5)
        assert first_scores(reward, user=user) == together
    assert reward.unknown == {} and reward.cuts == 0


def test_who_has_no_head_gets_the_shared_one_and_is_counted(tiny_base: Base) -> None:
    members = {"anna": "sea", "ben": "hill"}
    reward = own_model(tiny_base, random_heads(tiny_base, "group", ("hill", "sea"), members=members))
    by_user = {user: first_scores(reward, user=user) for user in ("anna", "sea", "ben", "hill", None, "carl")}
    assert by_user["anna"] == by_user["sea"] != by_user["ben"] == by_user["hill"]
    assert by_user["carl"] == by_user[None] != by_user["anna"]
    assert reward.unknown == {"carl": len(TEXTS)}


def test_texts_over_the_limits_are_cut_and_counted(tiny_base: Base) -> None:
    limits = DataConfig(max_prompt_length=8, max_response_length=7)
    reward = own_model(tiny_base, random_heads(tiny_base), limits)
    long, short = first_scores(reward, [("a long beginning, prompt 1", "answer, and more")]), reward.cuts
    assert short == 2  # the prompt, beside both responses
    assert long != first_scores(reward, [("prompt 1", "answer")])  # this one ends
    # What is cut off makes no difference.
    assert long == first_scores(reward, [("another beginning, prompt 1", "answer, or less")])
    with pytest.raises(AnnotatorError, match=r"row 'x': the prompt has no token"):
        reward.annotate([*asked(), Request("", ("a", "b"), None, "x")])


def test_a_reward_model_read_back_says_the_same(
    tiny_base: Base, make_base: Callable[..., Base], tmp_path: Path
) -> None:
    heads = random_heads(tiny_base, "user", ("anna", "[b]ben"))
    limits = DataConfig(max_prompt_length=20, chat_template="always")
    reward = own_model(tiny_base, heads, limits)
    write_reward(tmp_path / "r", reward.trained.trunk, heads, revision=None, report={"n": 1})
    again = RewardModel.load(str(tmp_path / "r"), base=tiny_base)
    for user in ("anna", "[b]ben", "carl"):
        assert first_scores(again, user=user) == first_scores(reward, user=user)
    assert again.unknown == reward.unknown == {"carl": len(TEXTS)}
    with pytest.raises(InputError, match=r"reads with the base 'tiny' \(\w{12}\), and this is 'tiny' \(\w{12}\)"):
        read_reward(tmp_path / "r", base=make_base(1))
    with pytest.raises(InputError, match="the tokenizer of 'tiny' is another one"):
        read_reward(tmp_path / "r", base=replace(tiny_base, tokenizer_fingerprint="another"))
    content = json.loads((tmp_path / "r" / MODEL_FILE).read_text())
    for changes, found in (
        ({"schema_version": 2}, "schema_version is 2, and this program reads 1"),
        ({"heads": "everybody"}, "'heads' is missing or of another kind"),
        ({"text": {"max_prompt_length": 3}}, "'text' is missing"),
        ({"base_fingerprint": None}, "'base_fingerprint' is missing"),
        ({"ids": ["anna"]}, r"offsets are \(2, 32\), with 1 ids"),
    ):
        (tmp_path / "r" / MODEL_FILE).write_text(json.dumps({**content, **changes}))
        with pytest.raises(InputError, match=found):
            read_reward(tmp_path / "r", base=tiny_base)
    (tmp_path / "r" / MODEL_FILE).write_text(json.dumps(content))
    (tmp_path / "r" / HEADS_FILE).write_bytes(b"no")
    with pytest.raises(InputError, match=r"heads.safetensors: the heads cannot be read"):
        read_reward(tmp_path / "r", base=tiny_base)


# ---- fitting heads ----


def synthetic(counts: Sequence[int], size: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Differences of pairs that people with a taste of their own preferred with the model's own probability."""
    draw = torch.Generator().manual_seed(5)
    numbers = torch.tensor([person for person, count in enumerate(counts) for _ in range(count)])
    differences = torch.randn(len(numbers), size, generator=draw, dtype=torch.float64)
    tastes = 1.0 + 2.0 * torch.randn(len(counts), size, generator=draw, dtype=torch.float64)
    margins = (differences * tastes[numbers]).sum(dim=1)
    flipped = torch.rand(len(numbers), generator=draw, dtype=torch.float64) > margins.sigmoid()
    differences[flipped] *= -1
    return differences, numbers


def slopes_of(
    shared: torch.Tensor, offsets: torch.Tensor, differences: torch.Tensor, numbers: torch.Tensor
) -> list[float]:
    """The largest derivatives of the documented sum, by the shared head and by offsets; penalties are .3 and .7."""
    shared, offsets = shared.requires_grad_(), offsets.requires_grad_()
    loss = softplus(-(differences * (shared + offsets[numbers])).sum(dim=1)).sum()
    loss = loss + 0.3 / 2 * shared.square().sum() + 0.7 / 2 * offsets.square().sum()
    return [float(slope.abs().max()) for slope in torch.autograd.grad(loss, (shared, offsets))]


def test_heads_minimise_the_documented_sum() -> None:
    differences, numbers = synthetic([30, 30, 4])
    shared, offsets = fit_heads(differences, numbers, 3, shared_penalty=0.3, offset_penalty=0.7)
    assert max(slopes_of(shared, offsets, differences, numbers)) < 1e-5
    assert min(slopes_of(shared + 0.01, offsets - 0.01, differences, numbers)) > 1e-3


def test_offsets_go_to_the_shared_head_with_the_penalty_and_with_few_pairs() -> None:
    draw = torch.Generator().manual_seed(5)
    taste, counts = torch.randn(6, generator=draw, dtype=torch.float64), (30, 2, 60)
    numbers = torch.tensor([person for person, count in enumerate(counts) for _ in range(count)])
    # Two people want the same, and many the opposite.
    differences = torch.where(numbers[:, None] == 2, -taste, taste)
    alone, none = fit_heads(differences, numbers, 0, shared_penalty=0.3, offset_penalty=1.0)
    assert none.shape == (0, 6) and alone @ taste < 0
    norms = []
    for penalty in (0.1, 1.0, 10.0, 1e9):
        shared, offsets = fit_heads(differences, numbers, 3, shared_penalty=0.3, offset_penalty=penalty)
        norms.append([float(offset.norm()) for offset in offsets[:2]])
        # With few pairs one stays nearer to what all share.
        assert norms[-1][1] < 0.8 * norms[-1][0]
    assert norms == sorted(norms, reverse=True) and norms[0][0] > 1.0 and norms[-1][0] < 1e-6
    torch.testing.assert_close(shared, alone, atol=1e-6, rtol=0)


# ---- figures ----


def test_calibration_of_a_known_case() -> None:
    def margin(probability: float) -> float:
        return math.log(probability / (1 - probability))

    # Said .75, and right three times of four.
    right = figures([margin(0.75)] * 3 + [margin(0.25)])
    assert right["calibration_error"] == pytest.approx(0, abs=1e-12)
    assert right["accuracy"] == 0.75 and right["n"] == 4 and right["ties"] == 0
    assert right["log_likelihood"] == pytest.approx((3 * math.log(0.75) + math.log(0.25)) / 4)
    # Said .95 once and right, .65 three times and right twice: off by .05 and by .65 - 2/3.
    margins = [margin(0.95), margin(0.65), margin(0.65), margin(0.35)]
    assert figures(margins)["calibration_error"] == pytest.approx((0.05 + 3 * (2 / 3 - 0.65)) / 4)
    bins = reliability(margins)
    assert [one["n"] for one in bins] == [1, 0, 0, 3, 0, 0, 3, 0, 0, 1]
    assert bins[6]["predicted"] == pytest.approx(0.65) and bins[6]["observed"] == pytest.approx(2 / 3)
    assert bins[3]["predicted"] == pytest.approx(0.35) and bins[3]["observed"] == pytest.approx(1 / 3)
    assert bins[0]["observed"] == 0 and bins[9]["observed"] == 1 and bins[1]["predicted"] is None
    # Certain on either side stays inside the bins; knowing nothing is a tie, and no error of calibration.
    assert [one["n"] for one in reliability([800.0, -800.0])] == [2, *[0] * 8, 2]
    tied = figures([0.0, 0.0])
    assert tied["ties"] == 2 and tied["accuracy"] == 0 and tied["calibration_error"] == 0
    assert tied["log_likelihood"] == pytest.approx(math.log(0.5))
    assert figures([]) == {"n": 0, "accuracy": None, "ties": 0, "log_likelihood": None, "calibration_error": None}


# ---- making one ----


def write(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def opposed(path: Path, pairs: int = 40) -> str:
    """Two people of the world, and two who want the opposite."""
    rows = []
    for row in World(0).preferences([world_user(0), world_user(1)], pairs):
        turned = {"user": f"not {row['user']}", "chosen": row["rejected"], "rejected": row["chosen"]}
        rows += [row, {**row, **turned}]
    return write(path, rows)


@pytest.mark.parametrize("trunk", ["frozen", "lora"])
def test_heads_tell_people_of_opposed_tastes_apart(trunk: str, tmp_path: Path) -> None:
    data = {"path": opposed(tmp_path / "pairs.jsonl"), "validation": 0.3}
    keys = {"data": data, "trunk": trunk, "device": "cpu", "output_dir": str(tmp_path / "r")}
    made = train_reward(keys)
    report = json.loads((tmp_path / "r" / "reward.json").read_text())
    assert report == made.report and report["schema_version"] == 1
    people, held_out = report["people"], report["held_out"]
    assert len(people) == 4 and held_out["n"] == sum(one["n"] for one in people.values()) >= 40
    assert all(one["accuracy"] > 0.8 and one["n"] >= 8 for one in people.values())
    assert held_out["accuracy"] > 0.9 and held_out["log_likelihood"] > -0.4
    assert people[report["worst"]]["accuracy"] == min(one["accuracy"] for one in people.values())
    assert sum(one["n"] for one in held_out["reliability"]) == 2 * held_out["n"]
    # What one shared head says is right of a person as often as it is wrong of the opposite one.
    assert report["shared_head"]["accuracy"] < 0.65 and report["unknown"] == {}
    assert len(report["losses"]) == (trunk == "lora")
    assert {path.suffix for path in (tmp_path / "r").rglob("*") if path.is_file()} == {".json", ".safetensors"}
    # Read back, it is the one that was measured.
    reward, config = RewardModel.load(str(tmp_path / "r"), device="cpu"), DataConfig(path=data["path"])
    _, rows = split_preferences(load_preferences(config), validation=0.3, by="prompt", per="user", seed=0, data=config)
    requests = [
        Request(row.prompt, tuple(text[0]["content"] for text in (row.chosen, row.rejected)), row.user, str(row.place))
        for row in rows
    ]
    scores = [verdict.scores for verdict in checked(reward, requests)]
    again = figures([score[0] - score[1] for score in scores if score is not None])
    assert again == pytest.approx({name: held_out[name] for name in again}, abs=1e-6)
    console = Console(width=100, record=True)
    console.print(made.table())
    shown = console.export_text()
    assert "not formal-000" in shown and "all, by the shared head" in shown and "0.9 to 1.0" in shown


def test_a_trained_trunk_has_learned_and_its_heads_fit_what_it_reads(tmp_path: Path) -> None:
    data = {"path": opposed(tmp_path / "pairs.jsonl", 8), "validation": 0.0}
    keys = {"data": data, "epochs": 3, "learning_rate": 1e-3, "batch_size": 8, "heads": "user", "device": "cpu"}
    made = train_reward({**keys, "output_dir": str(tmp_path / "r"), "shared_penalty": 0.3, "offset_penalty": 0.7})
    losses = made.report["losses"]
    assert len(losses) == 3 and losses[2] < losses[1] < losses[0] < math.log(2)
    adapter = load_file(tmp_path / "r" / "trunk" / "adapter_model.safetensors")
    assert all(weight.abs().max() > 0 for name, weight in adapter.items() if "lora_B" in name)
    trained = read_reward(tmp_path / "r", device="cpu")
    heads, rows = trained.heads, load_preferences(DataConfig(path=data["path"])).rows
    sides = [side(row.prompt, getattr(row, name)) for name in ("chosen", "rejected") for row in rows]
    states = trained.trunk.states(trained.trunk.requests(sides)[0]).double()
    torch.testing.assert_close(states.mean(dim=0).float(), heads.center, atol=1e-5, rtol=1e-5)
    chosen, rejected = (states / heads.scale).chunk(2)
    numbers = torch.tensor(heads.numbers([row.user for row in rows]))
    slopes = slopes_of(heads.shared.double(), heads.offsets.double(), chosen - rejected, numbers)
    assert max(slopes) < 1e-4


def test_one_head_for_all_is_the_limit_of_a_large_penalty(tmp_path: Path) -> None:
    data = {"path": opposed(tmp_path / "pairs.jsonl", 12), "validation": 0.25}
    found = {}
    for name, keys in {
        "none": {"heads": "none"},
        "limit": {"heads": "user", "offset_penalty": 1e12},
        "user": {"heads": "user"},
    }.items():
        keys |= {"data": data, "device": "cpu", "output_dir": str(tmp_path / name), "learning_rate": 1e-3}
        made = train_reward(keys)
        assert made.report["losses"][0] > 0 and made.report["held_out"]["n"] > 0
        reward = RewardModel.load(str(tmp_path / name), device="cpu")
        found[name] = first_scores(reward, user="not formal-000")
    assert found["limit"] == pytest.approx(found["none"], abs=1e-3)
    assert found["user"] != pytest.approx(found["none"], abs=0.1)


def test_groups_share_a_head_and_others_the_common_one(tmp_path: Path) -> None:
    rows = World(0).preferences([world_user(number) for number in (0, 1, 10)], 20)
    keys = {"heads": "group", "trunk": "frozen", "device": "cpu", "output_dir": str(tmp_path / "r")}
    new = write(tmp_path / "new.jsonl", World(0).preferences([world_user(2), world_user(10)], 5))
    table = write(tmp_path / "pairs.jsonl", rows)
    first = train_reward({**keys, "data": {"path": table, "validation": new}})
    heads = load_file(tmp_path / "r" / HEADS_FILE)
    assert heads["offsets"].shape == (2, 96)
    content = json.loads((tmp_path / "r" / MODEL_FILE).read_text())
    assert content["ids"] == ["formal", "cheerful"]
    assert content["members"] == {"formal-000": "formal", "cheerful-001": "cheerful", "formal-010": "formal"}
    assert first.report["unknown"] == {"terse-002": 5}
    assert first.report["people"]["formal-000"]["n"] == 0 and first.report["people"]["formal-010"]["n"] == 5
    # The same again, with the older one replaced.
    train_reward({**keys, "data": {"path": table, "validation": new}, "overwrite": True})
    for name, tensor in load_file(tmp_path / "r" / HEADS_FILE).items():
        assert torch.equal(tensor, heads[name])


def test_without_people_and_of_new_people_all_share_a_head(tmp_path: Path) -> None:
    rows = World(0).preferences([world_user(0), world_user(10), world_user(20)], 12)
    keys = {"trunk": "frozen", "device": "cpu", "data": {"path": write(tmp_path / "people.jsonl", rows)}}
    keys["data"] |= {"validation": 0.3, "split_by": "user"}
    found = train_reward({**keys, "output_dir": str(tmp_path / "new")}).report
    (new,) = [person for person, results in found["people"].items() if results["n"]]
    assert found["unknown"] == {new: 12} and found["people"][new]["training_pairs"] == 0
    assert found["worst"] == new and found["held_out"]["accuracy"] == found["shared_head"]["accuracy"] > 0.6
    plain = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in rows]
    keys["data"] = {"path": write(tmp_path / "plain.jsonl", plain), "validation": 0.3}
    found = train_reward({**keys, "heads": "none", "output_dir": str(tmp_path / "none")}).report
    assert list(found["people"]) == ["_all"] and found["unknown"] == {}
    assert found["held_out"]["n"] > 0 and found["shared_head"]["accuracy"] == found["held_out"]["accuracy"]
    reward = RewardModel.load(str(tmp_path / "none"), device="cpu")
    assert first_scores(reward, user="anybody") == first_scores(reward) and reward.unknown == {}


def test_bad_tables_settings_and_places_are_named(tmp_path: Path) -> None:
    pair = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}
    keys = {"output_dir": str(tmp_path / "r"), "device": "cpu", "trunk": "frozen"}

    def refused(rows: Sequence[dict[str, Any]], found: str, **more: Any) -> None:
        path = write(tmp_path / "pairs.jsonl", rows)
        with pytest.raises(InputError, match=found):
            train_reward({**keys, "data": {"path": path, "validation": 0.0}, **more})
        assert not (tmp_path / "r").exists()

    refused([{"user": "a", "prompt": "Why?", "answer": "So."}], "pairs.jsonl: the columns are")
    refused([{"user": "a", "prompt": "Why?", "completion": "So."}], r"no row has a pair .*row 1: there is no rejected")
    refused([pair, pair], r"pairs.jsonl: the table has no column 'user'")
    refused([{**pair, "user": "a"}] * 2, r"pairs.jsonl: the table has no column 'group'", heads="group")
    refused([{**pair, "user": "a"}] * 2, r"pairs.jsonl: all pairs to learn from are of one user, 'a'")
    two = [{**pair, "user": "a"}, {**pair, "user": "b"}]
    one_sided = {**pair, "user": "c", "rejected": None}
    refused([*two, one_sided], r"pairs.jsonl, row 3: user 'c' has no pair to learn from \(the pair has one side only\)")
    for key, value, fix in (
        ("shared_penalty", 0.0, "greater than 0"),
        ("offset_penalty", -1.0, "greater than 0"),
        ("learning_rate", 0.0, "greater than 0"),
        ("epochs", 0, "at least 1"),
        ("batch_size", 0, "at least 1"),
        ("rank", 0, "at least 1"),
    ):
        refused(two, f"{key} is {value}.*{fix}", **{key: value})
    write(tmp_path / "file", two)
    with pytest.raises(InputError, match="it is a file, and a folder is to be written"):
        train_reward({**keys, "output_dir": str(tmp_path / "file")})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="other: the folder holds something else"):
            train_reward({**keys, "output_dir": str(tmp_path / "other"), "overwrite": overwrite})
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / MODEL_FILE).write_text("{}")
    # Before any work: the data is not even looked for.
    with pytest.raises(InputError, match="there: a reward model is there"):
        train_reward({**keys, "output_dir": str(tmp_path / "there"), "data": "nowhere.jsonl"})


def test_rows_that_are_left_out_or_cut_are_told(tmp_path: Path) -> None:
    rows = World(0).preferences([world_user(0), world_user(1)], 6)
    rows.append({**rows[0], "rejected": None})
    data = {"path": write(tmp_path / "pairs.jsonl", rows), "validation": 0.0, "max_response_length": 6}
    with pytest.warns(UserWarning) as warned:
        made = train_reward({"data": data, "trunk": "frozen", "device": "cpu", "output_dir": str(tmp_path / "r")})
    told = " ".join(str(one.message) for one in warned)
    assert "row 13, column 'rejected': the pair has one side only" in told
    assert made.report["left_out"] == 1 and 0 < made.report["cut"] <= 12
    assert f"{made.report['cut']} a response cut on the right" in told
    # Nothing is held out: there is nothing to say of it.
    assert made.report["held_out"]["n"] == 0 and made.report["held_out"]["accuracy"] is None
    assert made.report["worst"] is None
    Console(quiet=True).print(made.table())
