"""Does the model listen: held-out pairs under the right identity in the prompt, under somebody else's, under none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pluralign.evaluation.pairs import Pair, ScoredPair, pairs_of, scored_pairs
from pluralign.evaluation.people import Person, gather
from pluralign.evaluation.statistics import bootstrap_interval, mean, wilson_interval
from pluralign.models.anchoring import Anchored
from pluralign.models.scoring import Request

RIGHT, RANDOM, MISSING = "right", "random", "missing"
ONE_IDENTITY = "the table has a single identity, so there is no other one to try"


@dataclass
class Listening:
    """Pairs of everybody under other identities, and what their policies say of them.

    Attributes:
        pairs: `random` and `missing`, each only where there are such rows -> person -> pairs, in the order of the
            person's own.
        heard: person -> the group of each pair, and the pair as scored under each identity.
    """

    pairs: Mapping[str, Mapping[str, Sequence[Pair]]]
    heard: dict[str, list[tuple[str | None, Mapping[str, ScoredPair]]]] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Mapping[str, Sequence[Anchored]], adapters: Mapping[str, Path], *, per: str) -> Listening:
        """From rows under other identities, in the order of the held-out rows, with their reference log-probs."""
        people = {
            name: gather(adapters, some, per=per, max_prompts=0, seed=0)[0] for name, some in rows.items() if some
        }
        return cls({name: {one: person.pairs for one, person in some.items()} for name, some in people.items()})

    def requests(self, person: str) -> list[Request]:
        """What the person's policy must score beside their own pairs."""
        return [request for some in self.pairs.values() for pair in some.get(person, ()) for request in pair.requests]

    def hear(self, served: Mapping[int, Sequence[Person]], scores: Mapping[int, Mapping[Request, float]]) -> None:
        """Take up what some policies say, each of the people whom it serves."""
        for number, sharing in served.items():
            for person in sharing:
                self.heard[person.id] = self._heard(person, scores[number])

    def _heard(
        self, person: Person, scores: Mapping[Request, float]
    ) -> list[tuple[str | None, Mapping[str, ScoredPair]]]:
        groups = [row.preference.group for row in person.rows if pairs_of([row])]
        scored = {RIGHT: scored_pairs(person.pairs, scores)}
        scored |= {name: scored_pairs(some.get(person.id, ()), scores) for name, some in self.pairs.items()}
        named = [dict(zip(scored, one, strict=True)) for one in zip(*scored.values(), strict=True)]
        return list(zip(groups, named, strict=True))

    def results(self, *, seed: int = 0) -> dict[str, Any]:
        """The `identities` of `evaluation.json`: of all pairs, and of the pairs of each group."""
        heard = [one for some in self.heard.values() for one in some]
        groups: dict[str, list[Mapping[str, ScoredPair]]] = {}
        for group, pair in heard:
            if group is not None:
                groups.setdefault(group, []).append(pair)
        return {
            "reason": None if RANDOM in self.pairs or not heard else ONE_IDENTITY,
            "all": _results([pair for _, pair in heard], seed=seed),
            "groups": {group: _results(some, seed=seed) for group, some in sorted(groups.items())},
        }


def _results(pairs: Sequence[Mapping[str, ScoredPair]], *, seed: int) -> dict[str, Any]:
    margins = {
        name: [pair[name].margin for pair in pairs] for name in (RIGHT, RANDOM, MISSING) if pairs and name in pairs[0]
    }
    found: dict[str, Any] = {"n": len(pairs)}
    for name in (RIGHT, RANDOM, MISSING):
        found[name] = _shown(margins[name]) if name in margins else None
    both = list(zip(margins[RIGHT], margins[RANDOM], strict=True)) if RANDOM in margins else []
    differences = {
        "accuracy": [float(right > 0) - float(other > 0) for right, other in both],
        "margin": [right - other for right, other in both],
    }
    for measure, values in differences.items():
        found[f"{measure}_difference"] = mean(values)
        found[f"{measure}_difference_interval"] = bootstrap_interval(values, seed=seed)
    return found


def _shown(margins: Sequence[float]) -> dict[str, Any]:
    """One identity's figures; a margin that is no number counts as wrong, and is left out of the mean."""
    right = sum(margin > 0 for margin in margins)
    return {
        "accuracy": right / len(margins),
        "accuracy_interval": wilson_interval(right, len(margins)),
        "margin": mean(margins),
    }
