"""Several adapters as the sampler: their mean on what they add to the weights, and the policy untouched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pluralign.config import ParametersConfig
from pluralign.errors import InputError
from pluralign.models.bank import LoraBank
from pluralign.training import train
from pluralign.training.online.ensemble import merged
from pluralign.training.online.files import read_candidates, read_pairs
from pluralign.training.online.run import online

Make = Callable[..., Any]


def deltas(bank: LoraBank, slot: int) -> list[torch.Tensor]:
    return [bank.scale * layer.up[slot].T @ layer.down[slot] for layer in bank.layers]


def test_the_sampler_is_the_mean_of_what_adapters_add_and_not_of_their_factors(tiny_base: Any, tmp_path: Path) -> None:
    parameters = ParametersConfig(rank=2, alpha=6)
    bank = LoraBank(tiny_base, parameters, 3, trainable=True)
    draw = torch.Generator().manual_seed(0)
    bank.matrix[:3] = torch.randn(bank.matrix[:3].shape, generator=draw) * 0.1
    for slot in (1, 2):
        bank.save(slot, tmp_path / str(slot), user="a")
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad(), bank.rows(torch.tensor([0])):
        before = tiny_base.model(input_ids=ids).logits
    expected = [torch.stack(some).mean(0) for some in zip(*(deltas(bank, slot) for slot in range(3)), strict=True)]
    kept = bank.matrix.clone()
    with merged(bank, parameters, {0: [tmp_path / "1", tmp_path / "2"]}) as whole:
        for found, value, layer in zip(deltas(whole, 0), expected, bank.layers, strict=True):
            torch.testing.assert_close(found, value, rtol=1e-6, atol=1e-7)
            of_factors = bank.scale * layer.up[:3].mean(0).T @ layer.down[:3].mean(0)
            assert (of_factors - value).norm() > 0.1 * value.norm()
        with torch.no_grad(), whole.rows(torch.tensor([0])):
            together = tiny_base.model(input_ids=ids).logits
    with torch.no_grad(), bank.rows(torch.tensor([0])):
        after = tiny_base.model(input_ids=ids).logits
    assert torch.equal(before, after) and torch.equal(bank.matrix, kept)
    for layer, value in zip(bank.layers, expected, strict=True):
        layer.module.weight.data += value
    bank.detach()
    with torch.no_grad():
        torch.testing.assert_close(together, tiny_base.model(input_ids=ids).logits, rtol=1e-4, atol=1e-4)


def test_an_ensemble_samples_and_is_what_pairs_are_compared_with(
    make_rows: Make, make_config: Make, make_online: Make, counting: Any
) -> None:
    others = [
        train(make_config(make_rows("ab"), f"other-{seed}", seed=seed, training={"learning_rate": 2e-2})).output_dir
        for seed in (1, 2)
    ]
    config = make_online(make_rows("ab"), pairs={"ensemble": [str(one) for one in others], "phases": 2})
    assert set(online(config, counting()).adapters) == {"a", "b"}
    candidates = read_candidates(Path(config.output_dir) / "phases" / "0000" / "candidates-0000.jsonl")
    # A fresh policy alone would be the base.
    assert max(abs(one.logp - one.base_logp) for row in candidates for one in row.responses) > 1e-2
    for phase in ("0000", "0001"):
        for pair in read_pairs(Path(config.output_dir) / "phases" / phase / "pairs-0000.jsonl"):
            assert pair.references == (pair.chosen.logp, pair.rejected.logp)
    (others[0] / "adapters" / "a" / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError):
        online(config, counting())


def test_an_ensemble_that_lacks_somebody_is_named(
    make_rows: Make, make_config: Make, make_online: Make, counting: Any, tmp_path: Path
) -> None:
    other = train(make_config(make_rows("a"), "other")).output_dir
    config = make_online(make_rows("ab"), pairs={"ensemble": [str(other)]})
    with pytest.raises(InputError, match="the run has no adapter of 'b'"):
        online(config, counting())
    with pytest.raises(InputError, match=r"neither adapter_config\.json nor adapters/index\.json"):
        online(replace(config, pairs=replace(config.pairs, ensemble=[str(tmp_path)])), counting())
