"""A reference that follows the policy: its values by hand, its forward by a copy, and nothing of it in the policy."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from pluralign.config import LossConfig, ParametersConfig
from pluralign.errors import InputError
from pluralign.models.adapters import detach_adapter, new_adapter, save_adapter
from pluralign.models.anchored_table import Anchored
from pluralign.models.base import Base
from pluralign.models.encoding import Encoded
from pluralign.models.logprobs import branch_logps
from pluralign.models.references import require_bare
from pluralign.models.rows import ResponseBatch, collate
from pluralign.objectives import Objective, sigmoid_loss
from pluralign.preferences.schema import Preference
from pluralign.training import PreferenceTrainer
from pluralign.training.batches import AnchoredDataset, PreferenceCollator
from pluralign.training.conditions import recompute_activations
from pluralign.training.ema import FILE, FollowPolicy, MovingReference

BRANCHES = ("chosen", "rejected")


def draw(seed: int, length: int) -> list[int]:
    return torch.randint(0, 256, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


ENCODED = [
    Encoded(draw(number, 4 + number), {"chosen": draw(10 + number, 6), "rejected": draw(20 + number, 3 + number)})
    for number in range(4)
]


def batch(encoded: list[Encoded] = ENCODED) -> ResponseBatch:
    return collate(encoded, pad_id=0, branches=BRANCHES, layout="shared")


def make_policy(base: Base, **parameters: Any) -> Any:
    policy = new_adapter(base, ParametersConfig(rank=3, **parameters), seed=0)
    shift(policy, 1)
    return policy


def shift(policy: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for weight in policy.parameters():
        if weight.requires_grad:
            weight.data.add_(torch.randn(weight.shape, generator=generator).to(weight), alpha=0.1)


def trained(policy: Any) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in policy.named_parameters() if weight.requires_grad}


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


@torch.no_grad()
def logps(model: Any) -> dict[str, Tensor]:
    return branch_logps(model, batch())


def test_it_begins_as_a_copy_and_stays_where_the_policy_leaves(tiny_base: Base) -> None:
    policy = make_policy(tiny_base)
    reference = MovingReference(policy, 0.9)
    first = logps(policy.eval())
    assert same(reference.forward(batch()), first)
    shift(policy, 2)
    weights, now = trained(policy), logps(policy)
    assert not same(now, first)
    assert same(reference.forward(batch()), first)
    assert same(trained(policy), weights)
    assert same(logps(policy), now)
    assert all(weight.requires_grad == ("lora" in name) for name, weight in policy.named_parameters())


def test_it_moves_by_its_decay(make_base: Callable[..., Base]) -> None:
    policy = make_policy(make_base(dtype=torch.float64))
    reference, last = MovingReference(policy, 0.75), MovingReference(policy, 0.0)
    expected = trained(policy)
    for step in range(4):
        shift(policy, step)
        reference.update()
        last.update()
        expected = {name: 0.75 * expected[name] + 0.25 * value for name, value in trained(policy).items()}
        torch.testing.assert_close(reference.values, expected, rtol=1e-12, atol=1e-14)
        # What the step has left, to the last bit: its margin is 0 when it is compared.
        assert same(last.values, trained(policy))
        assert same(last.forward(batch()), logps(policy.eval()))


@pytest.mark.parametrize("how", ["plain", "checkpointed", "autocast", "bfloat16", "full", "full tied"])
def test_its_forward_is_that_of_a_policy_with_its_values(how: str, make_base: Callable[..., Base]) -> None:
    dtype = torch.bfloat16 if how == "bfloat16" else torch.float32
    base = make_base(dtype=dtype, tie_word_embeddings=how.endswith("tied"))
    policy = base.model.requires_grad_(True) if how.startswith("full") else make_policy(base)
    reference = MovingReference(policy, 0.5)
    shift(policy, 2)
    reference.update()
    if how == "checkpointed":
        recompute_activations(base.model, on=True)
        policy.train()
    twin = copy.deepcopy(policy).eval()
    for name, weight in twin.named_parameters():
        if name in reference.values:
            weight.data.copy_(reference.values[name])
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=how == "autocast"):
        # Within the one autocast that surrounds both forwards of a step.
        found = reference.forward(batch())
        own = branch_logps(policy, batch())
        # The head of all weights is trained, and its blocks are other ones than a frozen head's: to rounding.
        if how.startswith("full"):
            torch.testing.assert_close(found, logps(twin), rtol=1e-6, atol=1e-5)
        else:
            assert same(found, logps(twin))
        margin = (own["chosen"] - own["rejected"]) - (found["chosen"] - found["rejected"])
        sigmoid_loss(margin, beta=0.1).mean().backward()
    assert not any(value.requires_grad for value in found.values())
    assert all(weight.grad is not None for weight in policy.parameters() if weight.requires_grad)
    # Nothing else reached the gradient than the policy's own forward.
    gradients = {name: weight.grad.clone() for name, weight in policy.named_parameters() if weight.requires_grad}
    policy.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=how == "autocast"):
        own = branch_logps(policy, batch())
        margin = (own["chosen"] - own["rejected"]) - (found["chosen"] - found["rejected"])
        sigmoid_loss(margin, beta=0.1).mean().backward()
    for name, weight in policy.named_parameters():
        if weight.requires_grad:
            torch.testing.assert_close(weight.grad, gradients[name])


def test_it_drops_nothing_while_the_policy_does(tiny_base: Base) -> None:
    policy = make_policy(tiny_base, dropout=0.5)
    reference = MovingReference(policy, 0.5)
    expected = logps(policy.eval())
    policy.train()
    modes = [module.training for module in policy.modules()]
    state = torch.get_rng_state()
    assert same(reference.forward(batch()), expected)
    assert [module.training for module in policy.modules()] == modes
    # Nor does it draw: the policy drops what it would have dropped without it.
    assert torch.equal(torch.get_rng_state(), state)
    assert not same(logps(policy), expected)


def test_nothing_of_it_is_in_what_is_saved(tiny_base: Base, tmp_path: Path) -> None:
    policy = make_policy(tiny_base)
    save_adapter(policy, tmp_path / "without", base=tiny_base, user="a")
    reference = MovingReference(policy, 0.5)
    reference.forward(batch())
    save_adapter(policy, tmp_path / "with", base=tiny_base, user="a")
    for file in (tmp_path / "without").iterdir():
        assert (tmp_path / "with" / file.name).read_bytes() == file.read_bytes()
    assert list(policy.peft_config) == ["default"]
    detach_adapter(policy)
    require_bare(tiny_base.model)


def test_a_killed_training_goes_on_to_the_same_bytes(make_base: Callable[..., Base], tmp_path: Path) -> None:
    def begin() -> tuple[Any, MovingReference, torch.optim.AdamW]:
        policy = make_policy(make_base(), dropout=0.3).train()
        weights = [weight for weight in policy.parameters() if weight.requires_grad]
        return policy, MovingReference(policy, 0.6), torch.optim.AdamW(weights, lr=1e-2)

    def steps(policy: Any, reference: MovingReference, optimizer: torch.optim.AdamW, numbers: range) -> None:
        for number in numbers:
            torch.manual_seed(number)
            rows = batch(ENCODED[number % 2 :: 2])
            fixed = reference.forward(rows)
            own = branch_logps(policy, rows)
            margin = (own["chosen"] - own["rejected"]) - (fixed["chosen"] - fixed["rejected"])
            sigmoid_loss(margin, beta=0.5).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            reference.update()

    whole = begin()
    steps(*whole, range(8))
    killed = begin()
    steps(*killed, range(5))
    killed[1].save(tmp_path)
    weights, optimizer = trained(killed[0]), copy.deepcopy(killed[2].state_dict())
    resumed = begin()
    resumed[0].load_state_dict(weights, strict=False)
    resumed[1].load(tmp_path)
    resumed[2].load_state_dict(optimizer)
    assert same(resumed[1].values, killed[1].values)
    steps(*resumed, range(5, 8))
    for folder, reference in ((tmp_path / "whole", whole[1]), (tmp_path / "resumed", resumed[1])):
        folder.mkdir()
        reference.save(folder)
    assert (tmp_path / "whole" / FILE).read_bytes() == (tmp_path / "resumed" / FILE).read_bytes()
    assert same(trained(whole[0]), trained(resumed[0]))
    assert not same(whole[1].values, trained(whole[0]))


def test_states_that_are_not_its_own(tiny_base: Base, make_base: Callable[..., Base], tmp_path: Path) -> None:
    reference = MovingReference(make_policy(tiny_base), 0.5)
    state = reference.state_dict()
    reference.update()
    state[next(iter(state))].zero_()
    assert all(value.any() for value in reference.values.values())
    with pytest.raises(InputError, match=rf"{FILE}: the moving reference cannot be read"):
        reference.load(tmp_path)
    other = MovingReference(make_policy(make_base(), target_modules=["q_proj"]), 0.5)
    other.save(tmp_path)
    with pytest.raises(InputError, match=rf"{FILE}: .*other weights than the policy's: .*lora_A"):
        reference.load(tmp_path)
    (tmp_path / FILE).write_bytes(b"half")
    with pytest.raises(InputError, match=rf"{FILE}: the moving reference cannot be read"):
        reference.load(tmp_path)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_what_it_cannot_follow(decay: float, tiny_base: Base) -> None:
    with pytest.raises(ValueError, match="no trainable weight"):
        MovingReference(tiny_base.model, 0.5)
    with pytest.raises(ValueError, match=f"decay is {decay}"):
        MovingReference(make_policy(tiny_base), decay)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_it_follows_every_step_of_the_trainer(tiny_base: Base, tmp_path: Path, accumulation: int) -> None:
    policy = make_policy(tiny_base)
    reference = MovingReference(policy, 0.75)
    seen = [trained(policy)]

    class Watch(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            seen.append(trained(policy))

        def on_save(self, args: TrainingArguments, state: Any, *_: Any, **kwargs: Any) -> None:
            # A checkpoint holds what its step has left.
            (tmp_path / str(state.global_step)).mkdir()
            reference.save(tmp_path / str(state.global_step))

    rows = [Anchored(Preference("", "", ""), row, {"chosen": -9.0, "rejected": -9.0}) for row in ENCODED]
    settings: dict[str, Any] = {"max_steps": 3, "learning_rate": 1e-2, "save_strategy": "steps", "save_steps": 2}
    settings |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": accumulation, "report_to": "none"}
    trainer = PreferenceTrainer(
        policy,
        TrainingArguments(str(tmp_path), use_cpu=True, remove_unused_columns=False, disable_tqdm=True, **settings),
        Objective(LossConfig()),
        train_dataset=AnchoredDataset(rows),
        data_collator=PreferenceCollator(pad_id=0, branches=BRANCHES),
        callbacks=[FollowPolicy(reference), Watch()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    assert len(seen) == 4
    expected = seen[0]
    for number, weights in enumerate(seen[1:], start=1):
        expected = {name: 0.75 * expected[name] + 0.25 * value for name, value in weights.items()}
        if number >= 2:
            found = load_file(tmp_path / str(number) / FILE)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert same(found, reference.values)
