"""Who meets whom on which prompts: people's policies against the base, or against those of another run."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pluralign.config import TrainConfig
from pluralign.errors import InputError
from pluralign.evaluation.comparable import named
from pluralign.evaluation.runs import adapters_of, held_out_rows, made_with, trained_config
from pluralign.preferences import Preference, Preferences, load_preferences, read_prompts, text_key
from pluralign.winrate_config import WinRateConfig

BASE = "base"


@dataclass(frozen=True)
class Side:
    """One of the two that answer.

    Attributes:
        run: its folder.
        trained: what it was made from.
        adapters: owner -> folder of the policy; None where the base answers, as this run would ask it.
        skipped: owner -> why there is no policy.
        table: of the run's data.
        prompts: person -> prompt -> the first held-out row that has it.
    """

    run: Path
    trained: TrainConfig
    adapters: Mapping[str, Path] | None
    skipped: Mapping[str, str]
    table: Preferences
    prompts: Mapping[str, Mapping[str, Preference]]

    @property
    def name(self) -> str:
        """What tables and files call it."""
        return BASE if self.adapters is None else str(self.run)

    @cached_property
    def base(self) -> Any:
        """What tells its base from others: the fingerprint, or the model's name in a run that has none."""
        return made_with(self.run / "config.yaml").get("base_fingerprint") or self.trained.model

    @property
    def facts(self) -> dict[str, Any]:
        """What decides its answers beside the policy's weights and the row."""
        trained, greedy = self.trained, asdict(self.trained.base_responses.greedy())
        greedy.pop("batch_size")
        loaded = {name: getattr(trained, name) for name in ("dtype", "quantization", "attn_implementation")}
        lengths = {name: getattr(trained.data, name) for name in ("max_prompt_length", "chat_template")}
        said = {"conditioning": asdict(trained.conditioning), "generation": greedy}
        return {"base": self.base, **loaded, **lengths, **said}

    def folder(self, row: Preference) -> Path | None:
        """Of the policy that answers a row; None of the base."""
        return None if self.adapters is None else self.adapters[row.owner(self.trained.parameters.per)]


@dataclass(frozen=True)
class Asked:
    """A prompt of a person.

    Attributes:
        person: whose.
        row: that has the prompt, as its table has it.
    """

    person: str
    row: Preference

    @property
    def id(self) -> str:
        """The same in every call, and nothing that tells of the person: what files call it."""
        return f"{person_digest(self.person)}-{_digest(text_key(self.row.prompt))}"


@dataclass
class Contest:
    """What is to be compared.

    Attributes:
        side: whose win rate it is.
        against: the other side.
        asked: prompts, person by person.
        skipped: id -> why a person is in no comparison.
        different: why the two are not of the same yardstick; empty where they are.
    """

    side: Side
    against: Side
    asked: list[Asked] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    different: list[str] = field(default_factory=list)

    @property
    def group(self) -> dict[str, str | None]:
        """Person -> the group of their first row that has one; None where people are groups themselves."""
        groups: dict[str, str | None] = {}
        for one in self.asked:
            own = None if self.side.trained.parameters.per == "group" else one.row.group
            groups[one.person] = groups.get(one.person) or own
        return groups


def person_digest(person: str) -> str:
    """What stands for a person in the names of comparisons."""
    return _digest(person)


def contest_of(config: WinRateConfig) -> Contest:
    """The comparisons that a configuration asks for; nothing is loaded but tables.

    Raises:
        InputError: a run or its data cannot be used, two runs have nobody in common, or they have other bases or
            held-out prompts and `config.different` is not set.
    """
    places = [config.runs] if isinstance(config.runs, str) else list(config.runs)
    if len(places) not in (1, 2):
        raise InputError(f"there are {len(places)} runs", fix="Give one (against its base) or two.")
    sides = [_side(Path(place).expanduser(), config) for place in places]
    last = sides[-1]
    if len(sides) == 1:
        return _drawn(Contest(last, replace(last, adapters=None)), last.prompts, config)
    first = sides[0]
    if first.run.resolve() == last.run.resolve():
        raise InputError("the run is given twice", where=str(last.run))
    shared = [person for person in last.prompts if person in first.prompts]
    if not shared:
        raise InputError("they have nobody with held-out prompts in common", where=f"{first.run} and {last.run}")
    made = Contest(last, first, different=_differences(first, last, shared))
    if made.different and not config.different:
        fix = "Give both the same rows with --data, or compare them as they are with --different."
        raise InputError("; ".join(made.different), where=f"{first.run} and {last.run}", fix=fix)
    common = {
        person: {key: row for key, row in last.prompts[person].items() if key in first.prompts[person]}
        for person in shared
    }
    for side, other in ((last, first), (first, last)):
        lone = [person for person in side.prompts if person not in other.prompts]
        made.skipped |= dict.fromkeys(lone, f"only {side.run} has prompts of theirs")
    return _drawn(made, common, config)


def _side(run: Path, config: WinRateConfig) -> Side:
    trained = trained_config(run)
    adapters, skipped = adapters_of(run, trained)
    if config.prompts:
        table = load_preferences(config.data or trained.data, trained.seed)
        rows = _own_prompts(config.prompts, adapters, table, trained.parameters.per)
    else:
        table, held_out = held_out_rows(run, trained, config.data, adapters)
        rows = held_out.rows
    prompts: dict[str, dict[str, Preference]] = {}
    for row in rows:
        owner = row.owner(trained.parameters.per)
        # Where everybody shares one policy, people are still told apart, as in an evaluation.
        person = row.user or owner if trained.parameters.per == "none" else owner
        prompts.setdefault(person, {}).setdefault(text_key(row.prompt), row)
    if not prompts:
        raise InputError("there is no prompt of anybody", where=str(run), fix="Name some by --prompts.")
    return Side(run, trained, adapters, skipped, table, prompts)


def _own_prompts(
    given: str | list[str], adapters: Mapping[str, Path], table: Preferences, per: str
) -> list[Preference]:
    """Each prompt as a row of everybody, or of the one person whose it is; put as the table's own prompts are."""
    messages = any(not isinstance(row.prompt, str) for row in table)
    rows = [
        replace(row, prompt=[{"role": "user", "content": row.prompt}])
        if messages and isinstance(row.prompt, str)
        else row
        for row in read_prompts(given, key="prompts")
    ]
    if per == "none":
        return rows
    if per == "group":
        return [replace(row, group=owner) for owner in adapters for row in rows]
    return [replace(row, user=owner) for owner in adapters for row in rows if row.user in (None, owner)]


def _differences(first: Side, last: Side, shared: list[str]) -> list[str]:
    found = []
    if first.base != last.base:
        names = (f"{side.trained.model} ({str(side.base)[:12]})" for side in (first, last))
        found.append(f"the bases differ: {' and '.join(names)}")
    if others := [one for one in shared if first.prompts[one].keys() != last.prompts[one].keys()]:
        found.append(f"the held-out prompts differ for {len(others)} of {len(shared)} people ({named(others)})")
    return found


def _drawn(made: Contest, prompts: Mapping[str, Mapping[str, Preference]], config: WinRateConfig) -> Contest:
    """The contest with at most so many prompts of each person who has a policy on both sides."""
    for person, rows in prompts.items():
        lacking = [side for side in (made.side, made.against) if side.adapters is not None]
        lacking = [side for side in lacking if _owner(side, rows) not in (side.adapters or {})]
        if lacking or not rows:
            reason = lacking[0].skipped.get(person, "there is no adapter") if lacking else "no prompt is in both runs"
            made.skipped[person] = reason
            continue
        made.asked += [Asked(person, row) for row in _some(list(rows.values()), config)]
    if not made.asked:
        raise InputError("nobody can be compared", where=made.side.name, fix=next(iter(made.skipped.values()), ""))
    return made


def _owner(side: Side, rows: Mapping[str, Preference]) -> str | None:
    return next((row.owner(side.trained.parameters.per) for row in rows.values()), None)


def _some(rows: list[Preference], config: WinRateConfig) -> list[Preference]:
    """At most so many, the sample that an evaluation with the same seed draws, in order."""
    if len(rows) <= config.max_prompts:
        return rows
    if config.max_prompts < 1:
        raise InputError(f"max_prompts is {config.max_prompts}", fix="It is at least 1.")
    drawn = random.Random(f"held-out prompts {config.seed}").sample(range(len(rows)), config.max_prompts)
    return [rows[place] for place in sorted(drawn)]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
