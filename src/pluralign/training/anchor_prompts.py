"""Prompts without a pair beside a person's pairs: what the base says to them is kept, too."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pluralign.config import TrainConfig
from pluralign.errors import InputError
from pluralign.preferences import Preference, Preferences, data_hash, read_prompts
from pluralign.training.people import person_seed


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
        return cls(read_prompts(base.prompts), base.prompts_per_pair)

    @property
    def digest(self) -> str | None:
        """Hex digest of the pool's content; None where there is none."""
        return data_hash(Preferences([*self.pool])) if self.pool else None

    def added_to(self, training: Preferences, config: TrainConfig) -> Preferences:
        """The rows to learn from, and behind them everybody's anchor-only rows.

        A person's draw follows from their id and the seed: it is the same whoever else is in the table. Where the pool
        has fewer prompts than a person is to get, it comes again from its start.

        Args:
            training: of all people.
            config: names the column of owners, that of weights (anchor-only rows weigh 1), and the seed.
        """
        if not self.pool:
            return training
        pool = [_as_the_table(row, training) for row in self.pool]
        column = config.weighting.column
        columns = {} if column is None else {column: 1.0}
        rows: list[Preference] = []
        for name, own in training.by(config.parameters.per).items():
            draw = random.Random(person_seed(config.seed, name))
            order = draw.sample(pool, len(pool))
            count = max(1, round(len(own) * self.per_pair))
            drawn = [order[number % len(order)] for number in range(count)]
            user, group = own[0].user, own[0].group
            rows += [replace(row, user=user, group=group, columns=dict(columns)) for row in drawn]
        return replace(training, rows=[*training.rows, *rows])


def _as_the_table(row: Preference, table: Preferences) -> Preference:
    """A text is a user's turn where the table's prompts are messages."""
    first = table.rows[0].prompt if table.rows else ""
    if isinstance(row.prompt, str) and not isinstance(first, str):
        return replace(row, prompt=[{"role": "user", "content": row.prompt}])
    return row
