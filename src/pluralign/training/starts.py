"""`parameters.start`: what adapters begin with, the same for everybody or each person's own."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from peft import LoraConfig

from pluralign.config import ParametersConfig
from pluralign.errors import InputError
from pluralign.models.adapters import CONFIG_FILE, adapter_parameters, check_adapter
from pluralign.models.base import Base
from pluralign.preferences import ALL, shown
from pluralign.training.index import index_path, read_index

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Starts:
    """Who begins with what.

    Attributes:
        parameters: of every adapter; rank, scale, dropout and layers are those of the given adapters, where there are.
        everyone: folder of the adapter that everybody begins with.
        own: person -> folder of the adapter that they begin with.
    """

    parameters: ParametersConfig
    everyone: Path | None = None
    own: Mapping[str, Path] = field(default_factory=dict)

    def of(self, user: str) -> Path | None:
        """Folder of the adapter that a person begins with; None for a fresh one."""
        return self.everyone or self.own.get(user)

    def check(self, base: Base, like: LoraConfig | None = None) -> None:
        """Raise now, and not when somebody's turn comes, where a given adapter cannot be begun with.

        Args:
            base: that is trained on.
            like: rank and scale that all must have, where they share a bank.

        Raises:
            InputError: an adapter cannot be read, belongs to another base, or is shaped otherwise.
        """
        for folder in dict.fromkeys([*([self.everyone] if self.everyone else ()), *self.own.values()]):
            check_adapter(base, folder, like)


def resolve_starts(parameters: ParametersConfig, users: Collection[str]) -> Starts:
    """Find out what people begin with.

    From a run, each begins with their own adapter there; who has none begins with a fresh one of the same shape, and a
    warning names them.

    Args:
        parameters: of the run; `start` is the folder of an adapter, or of a run.
        users: who is to be trained.

    Raises:
        InputError: `start` is neither, all weights are trained, or the run has adapters for other kinds of people.
    """
    if parameters.start is None:
        return Starts(parameters)
    folder, where = Path(parameters.start).expanduser(), f"parameters.start ({parameters.start})"
    if parameters.kind != "lora":
        raise InputError(
            f"it names an adapter to begin with, and parameters.kind is {parameters.kind}",
            where=where,
            fix="All weights begin with those of the model: leave parameters.start out, or take kind lora.",
        )
    if (folder / CONFIG_FILE).is_file():
        return Starts(adapter_parameters(folder, parameters), everyone=folder)
    if not index_path(folder).is_file():
        raise InputError(
            f"there is neither {CONFIG_FILE} nor adapters/index.json",
            where=where,
            fix="Give the folder of an adapter, or the output folder of a run that trained adapters.",
        )
    there = {user: folder / "adapters" / name for user, name in read_index(folder).people.items()}
    own = {user: there[user] for user in users if user in there}
    _check_people(there, users, folder, where)
    lacking = [user for user in users if user not in own]
    if lacking:
        more = f" and {len(lacking) - _SHOWN} more" if len(lacking) > _SHOWN else ""
        warnings.warn(
            f"{where} has no adapter of {', '.join(map(shown, lacking[:_SHOWN]))}{more}: they begin with a fresh one",
            stacklevel=2,
        )
    return Starts(adapter_parameters(next(iter(there.values())), parameters), own=own)


def _check_people(there: Mapping[str, Path], users: Collection[str], folder: Path, where: str) -> None:
    """A policy of everybody is nobody's own, and nobody's own is everybody's."""
    if not there:
        raise InputError("the run has no adapter", where=where, fix="Its index.json says why.")
    if (ALL in there) != (ALL in users):
        whose = "one adapter for everybody" if ALL in there else "an adapter each for its people"
        fix = (
            f"Give {folder / 'adapters' / '_all'} for everybody." if ALL in there else "Give the folder of one of them."
        )
        raise InputError(f"the run has {whose}, and this one trains otherwise", where=where, fix=fix)
