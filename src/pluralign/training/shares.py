"""People divided over workers: each person is trained whole, by one of them."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Share:
    """One of `count` equal parts of a population; the only one by default.

    Attributes:
        index: which, from 0.
        count: of workers.
    """

    index: int = 0
    count: int = 1

    def of(self, users: Sequence[str], sizes: Sequence[int]) -> list[str]:
        """The people of this share, in their order; all shares of the same people make the population.

        Args:
            users: everybody.
            sizes: how much work each of them is; shares get equal sums, as far as that goes.
        """
        if self.count == 1:
            return list(users)
        # The largest first, always to whoever has least: within a third of the best division there is.
        loads = [(0, worker) for worker in range(self.count)]
        mine: set[int] = set()
        for number in sorted(range(len(users)), key=lambda number: (-sizes[number], number)):
            load, worker = heapq.heappop(loads)
            heapq.heappush(loads, (load + sizes[number], worker))
            if worker == self.index:
                mine.add(number)
        return [user for number, user in enumerate(users) if number in mine]
