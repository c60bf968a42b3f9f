"""Several adapters as the sampler: each person's policy and given ones, merged exactly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from pluralign.config import ParametersConfig
from pluralign.errors import InputError
from pluralign.models.adapters import CONFIG_FILE, adapter_digest
from pluralign.models.bank import LoraBank
from pluralign.storage import sha256_of_json
from pluralign.training.index import index_path, read_index

KEY = "pairs.ensemble"


def members_of(folders: Sequence[str], users: Sequence[str]) -> dict[str, list[Path]]:
    """Person -> folders of the adapters that sample beside the person's own policy.

    Args:
        folders: of adapters, which are everybody's, or of runs, of which everybody's own is taken.
        users: who samples.

    Raises:
        InputError: a folder is neither, or a run has no adapter of somebody.
    """
    found: dict[str, list[Path]] = {user: [] for user in users}
    for folder in folders:
        there = _adapters(folder)
        for user in users:
            own = there.get(None) or there.get(user)
            if own is None:
                raise InputError(f"the run has no adapter of {user!r}", where=f"{KEY} ({folder})")
            found[user].append(own)
    return found


def ensemble_digest(folders: Sequence[str]) -> str | None:
    """Hex digest of all that is named; None for nothing.

    Raises:
        InputError: as `members_of`.
    """
    digests = [[adapter_digest(place) for place in _adapters(folder).values()] for folder in folders]
    return sha256_of_json(digests) if digests else None


def _adapters(folder: str) -> dict[str | None, Path]:
    """Person -> adapter; None stands for everybody."""
    place = Path(folder).expanduser()
    if (place / CONFIG_FILE).is_file():
        return {None: place}
    if not index_path(place).is_file():
        raise InputError(
            f"there is neither {CONFIG_FILE} nor adapters/index.json",
            where=f"{KEY} ({folder})",
            fix="Give the folder of an adapter, or the output folder of a run that trained adapters.",
        )
    return {user: place / "adapters" / name for user, name in read_index(place).people.items()}


@contextmanager
def merged(bank: LoraBank, parameters: ParametersConfig, members: Mapping[int, Sequence[Path]]) -> Iterator[LoraBank]:
    """A bank whose slots hold, of each person, the mean of what K adapters add to the weights, exactly.

    Factors stand side by side, of K times the rank: B = [B_1 ... B_K] / K over A = [A_1; ...; A_K]. Means of the A and
    of the B factors would add the products of one adapter's with another's. The bank itself is detached in the block.

    Args:
        bank: with everybody's policy.
        parameters: of the bank's adapters.
        members: slot -> folders of the other adapters, equally many for each; shaped as the bank's.

    Raises:
        InputError: an adapter cannot be read, belongs to another base, or is shaped otherwise.
    """
    count = 1 + max(map(len, members.values()))
    own = {slot: _factors(bank, slot, folders) for slot, folders in members.items()}
    bank.detach()
    wide = replace(parameters, rank=bank.rank * count, alpha=bank.scale * bank.rank * count, dropout=0.0)
    whole = LoraBank(bank.base, wide, bank.slots)
    try:
        with torch.no_grad():
            for slot, layers in own.items():
                for layer, (down, up) in zip(whole.layers, layers, strict=True):
                    layer.down[slot], layer.up[slot] = down, up / count
        yield whole
    finally:
        whole.detach()
        bank.attach()


@torch.no_grad()
def _factors(bank: LoraBank, slot: int, folders: Sequence[Path]) -> list[tuple[Tensor, Tensor]]:
    """Of every layer the A factors one below another, [K r, in], and the transposed B factors likewise, [K r, out]."""
    policy = bank.matrix[slot].clone()
    found = [[(layer.down[slot].clone(), layer.up[slot].clone()) for layer in bank.layers]]
    try:
        for folder in folders:
            bank.load(slot, folder)
            found.append([(layer.down[slot].clone(), layer.up[slot].clone()) for layer in bank.layers])
    finally:
        bank.matrix[slot].copy_(policy)
    return [
        (torch.cat([down for down, _ in layers]), torch.cat([up for _, up in layers]))
        for layers in zip(*found, strict=True)
    ]
