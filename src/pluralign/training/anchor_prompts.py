"""Prompts without a pair beside a person's pairs: what the base says to them is kept, too."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pluralign.config import TrainConfig
from pluralign.errors import InputError
from pluralign.models.encoding import Encoder
from pluralign.preferences import Preference, Preferences, data_hash, read_prompts
from pluralign.training.people import Census, person_seed


@dataclass(frozen=True, slots=True)
class AnchorPrompts:
    """Anchor-only rows for everybody, drawn from one pool.

    Attributes:
        pool: prompts, as rows without responses; none where the configuration names none.
        per_pair: rows that a person gets for each of their own.
    """

    pool: Sequence[Preference]
    per_pair: float

    @classmethod
    def of(cls, config: TrainConfig) -> AnchorPrompts:
        """Read the prompts that a configuration names.

        Raises:
            InputError: there is no base anchor to hold them, their share is not positive, or they cannot be read.
        """
        base = config.anchor.base
        if not base.prompts:
            return cls((), 0.0)
        if base.weight <= 0:
            raise InputError(
                f"anchor.base.prompts is given and anchor.base.weight is {base.weight}",
                fix="Prompts without a pair have the base anchor only: give it a weight, or leave them out.",
            )
        if not 0 < base.prompts_per_pair < math.inf:
            raise InputError(f"anchor.base.prompts_per_pair is {base.prompts_per_pair}", fix="It must be a number > 0.")
        return cls(read_prompts(base.prompts, key="anchor.base.prompts"), base.prompts_per_pair)

    @property
    def digest(self) -> str | None:
        """Hex digest of the pool's content; None where there is none."""
        return data_hash(Preferences([*self.pool])) if self.pool else None

    def give_to(self, census: Census, config: TrainConfig, encoder: Encoder) -> None:
        """Put anchor-only rows behind everybody's rows to learn from.

        A person's draw follows from their id and the seed: it is the same whoever else is in the table. Where the pool
        has fewer prompts than a person is to get, it comes again from its start.

        Args:
            census: the people who can be trained.
            config: names the column of weights (anchor-only rows weigh 1), and the seed.
            encoder: finds prompts that cannot be turned into tokens.

        Raises:
            InputError: a prompt cannot be turned into tokens.
        """
        if not self.pool:
            return
        messages = not isinstance(census.people[0].train[0].prompt, str)
        pool = [_as_turn(row) if messages else row for row in self.pool]
        census.cuts += [tuple(row.cut) for row in encoder.encode_many(pool, branches=())]
        column = config.weighting.column
        columns = {} if column is None else {column: 1.0}
        for person in census.people:
            count = max(1, round(len(person.train) * self.per_pair))
            drawn = random.Random(person_seed(config.seed, person.user)).sample(pool, min(count, len(pool)))
            user, group = person.train[0].user, person.train[0].group
            person.train += [
                replace(drawn[number % len(drawn)], user=user, group=group, columns=dict(columns))
                for number in range(count)
            ]


def _as_turn(row: Preference) -> Preference:
    """A text as a user's turn."""
    return replace(row, prompt=[{"role": "user", "content": row.prompt}]) if isinstance(row.prompt, str) else row
