"""At every step with one update: the gradient of the policy that sampled, and log-probs that a later forward finds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pluralign.objectives import Objective
from pluralign.seats import AnchorConfig, LossConfig
from pluralign.training.bank.forwards import Forwards
from pluralign.training.online.population import OnlinePopulation
from pluralign.training.online.run import online

Make = Callable[..., Any]


@pytest.fixture
def linear(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    sys.modules.pop("linear_loss", None)
    return "linear_loss:linear"


def test_with_one_update_a_batch_the_gradient_is_that_of_the_two_responses(
    make_rows: Make, make_online: Make, counting: Any, linear: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """-(beta / 2) (g_w - g_l), to 1e-6 relative in float64: the reference has no part in it."""
    beta, seen, units = 0.1, [], []
    backward, update = Forwards.backward, OnlinePopulation._update

    def noted(self: Forwards, some: Any) -> None:
        units[:] = some
        backward(self, some)

    def compared(self: OnlinePopulation, learners: Any) -> Any:
        grads = self.bank.grads
        assert grads is not None
        own, objective = grads.clone(), self.forwards.objective
        grads.zero_()
        self.forwards.objective = Objective(LossConfig(type=linear, beta=beta), AnchorConfig())
        backward(self.forwards, units)
        seen.append(float((own - grads).norm() / grads.norm()))
        self.forwards.objective = objective
        grads.copy_(own)
        return update(self, learners)

    monkeypatch.setattr(Forwards, "backward", noted)
    monkeypatch.setattr(OnlinePopulation, "_update", compared)
    training = {"num_train_epochs": 1, "learning_rate": 5e-3}
    config = make_online(make_rows("ab", pairs=16), dtype="float64", pairs={"phases": "every_step"}, training=training)
    with pytest.warns(UserWarning, match="nothing but the learning rate"):
        online(config, counting())
    assert len(seen) == 3 and max(seen) < 1e-6


def test_a_response_that_is_read_in_other_tokens_than_it_was_drawn_has_the_log_prob_of_those_it_is_read_in(
    make_rows: Make, make_online: Make, counting: Any, monkeypatch: pytest.MonkeyPatch, metrics: Make
) -> None:
    """Whatever was drawn, the first margins of a phase are 0: what is noted is of the tokens that are learned."""
    from pluralign.training.online import sampling

    generate = sampling.generate

    def spaced(*arguments: Any, **keywords: Any) -> Any:
        made = generate(*arguments, **keywords)
        # As a tokenizer does that does not give back what it was given.
        for one in made[::2]:
            one.text = f" {one.text.strip()} night"
        return made

    monkeypatch.setattr(sampling, "generate", spaced)
    config = make_online(make_rows("ab", pairs=16), pairs={"phases": 2}, training={"num_train_epochs": 1})
    online(config, counting())
    margins = [row["rewards/margins"] for row in metrics(config.output_dir) if "loss" in row and row["step"] == 1]
    assert len(margins) == 2 and max(map(abs, margins)) < 1e-5


def test_recorded_log_probs_are_those_of_a_later_forward(
    make_rows: Make, make_online: Make, counting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To 1e-3 on sums, whatever top-k, top-p and temperature sampled."""
    from pluralign.training.online import population

    gaps: list[float] = []
    enter = OnlinePopulation._enter

    def again(self: OnlinePopulation, phase: int, asked: Any, pairs: Any) -> None:
        rows = [population._row(pair, asked) for pair in pairs]
        for pair, row in zip(pairs, self.encoder.encode_many(rows, ("chosen", "rejected")), strict=True):
            slot = self.cohort[pair.owner].slot
            found = population.score_pairs(self.bank, self._layout, {slot: [row]})[slot][0]
            gaps.extend([abs(found["chosen"] - pair.chosen.logp), abs(found["rejected"] - pair.rejected.logp)])
        enter(self, phase, asked, pairs)

    monkeypatch.setattr(OnlinePopulation, "_enter", again)
    settings = {"do_sample": True, "temperature": 1.5, "top_k": 50, "top_p": 0.95, "max_new_tokens": 12}
    config = make_online(make_rows("ab", pairs=16), training={"learning_rate": 5e-3})
    config.pairs.generation.__dict__.update(settings)
    online(config, counting())
    assert len(gaps) > 30 and max(gaps) < 1e-3
    assert torch.tensor(gaps).median() < 1e-5
