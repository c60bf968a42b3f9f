"""Prompts as the policy meets them: with what the configuration puts into them of the person, or of somebody else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pluralign.config import ConditioningConfig, EvaluationConfig
from pluralign.errors import InputError
from pluralign.models.encoding import Encoder
from pluralign.preferences import Preference, Preferences
from pluralign.preferences.conditioning import Conditioner, Identities, overflow_of

BRANCHES = ("chosen", "rejected")


@dataclass(frozen=True, slots=True)
class Listeners:
    """Conditions the rows of a table.

    Attributes:
        conditioner: leaves rows as they are where nothing is configured.
        encoder: knows how much room a prompt has.
        identities: of everybody in the table.
    """

    conditioner: Conditioner
    encoder: Encoder
    identities: Identities

    @classmethod
    def of(cls, config: ConditioningConfig, encoder: Encoder, table: Preferences) -> Listeners:
        """For a table, which is checked as a whole.

        Raises:
            InputError: a template cannot be used, or is not made for the table.
        """
        conditioner = Conditioner.of(config, encoder.tokenizer)
        conditioner.check(table)
        return cls(conditioner, encoder, conditioner.identities(table.rows) if conditioner.active else {})

    def condition(self, rows: Preferences) -> Preferences:
        """The rows with what their prompts say of the person; those that cannot be conditioned are problems."""
        return self.conditioner.condition(rows, overflow=overflow_of(self.encoder, BRANCHES))

    def others(self, rows: Sequence[Preference], seed: int) -> dict[str, list[Preference]]:
        """The rows under somebody else's identity (`random`) and under none (`missing`)."""
        overflow = overflow_of(self.encoder, BRANCHES)
        return self.conditioner.under_others(rows, self.identities, seed=seed, overflow=overflow)


def check_identities(conditioning: ConditioningConfig, evaluation: EvaluationConfig) -> None:
    """Raise where other identities are asked for and prompts have none.

    Raises:
        InputError: names the key.
    """
    if evaluation.identities and not (conditioning.template or conditioning.system):
        raise InputError(
            "evaluation.identities is set, and prompts are not conditioned",
            fix="Set conditioning.template or conditioning.system, or leave it out.",
        )
