"""Conditioning: what the model sees of the person, put into the prompt of every row by a template of the user's."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from pluralign.errors import InputError
from pluralign.preferences.keys import fraction, row_key
from pluralign.preferences.markers import Markers, Part, markers_of, pieces_of
from pluralign.preferences.schema import BadRow, Preference, Preferences, Problem, Text, excerpt
from pluralign.preferences.templates import PROMPT, Template, length, shortened, with_system
from pluralign.seats import ConditioningConfig

IDS = ("user", "group")
"""Fields that are no carried columns; they are names, and stand on one line."""

Overflow = Callable[[Sequence[Preference]], Sequence[int]]
"""Tells of each row how many tokens of its prompt would be cut for want of room."""
Values = Mapping[str, str | None]
"""A person's values by field, escaped; None for one that is absent."""
Identities = Mapping[str, Sequence[tuple[str | None, ...]]]
"""Distinct values of the fields of each template, in a fixed order."""


@dataclass(slots=True)
class Conditioned(Preference):
    """A row whose prompt has been conditioned.

    Attributes:
        original: the row as its table has it.
    """

    original: Preference = field(default_factory=lambda: Preference("", None, None))


def overflow_of(encoder: Any, branches: Sequence[str] = ()) -> Overflow:
    """What an encoder (`models.Encoder`) would cut of prompts, beside the responses of some branches."""
    return lambda rows: [one.cut.get(PROMPT, 0) for one in encoder.encode_many(rows, branches)]


def original_of(row: Preference) -> Preference:
    """The row as its table has it, conditioned or not."""
    return row.original if isinstance(row, Conditioned) else row


class Conditioner:
    """Puts what is known of a person into prompts.

    A prompt of text becomes `template` with its fields filled in; a prompt of messages gets `system` as its first
    message, and a system message that stands first already goes below it, after a blank line. Fields are the row's
    `user`, its `group`, and its other columns. Their values are escaped (see `Markers`): a profile must not forge a
    turn or an end. Of the prompt itself nothing is changed, but that a long one is cut for room.

    Without a template of either kind it leaves rows as they are.

    Args:
        config: the templates.
        markers: what tokenizer and chat template treat as markup (see `markers_of`); the templates' own text is added.

    Raises:
        InputError: a template cannot be used; names the key.
    """

    def __init__(self, config: ConditioningConfig, markers: Iterable[str] = ()) -> None:
        self.absent = config.absent
        self._templates = {
            key: Template.parse(text, where=f"conditioning.{key}")
            for key, text in (("template", config.template), ("system", config.system))
            if text
        }
        if not self._templates and config.absent is not None:
            raise InputError(
                "conditioning.absent is set, and there is no template that it could stand in",
                fix="Set conditioning.template or conditioning.system too, or leave it out.",
            )
        _check_fields(self._templates)
        literals = [literal for template in self._templates.values() for literal, _ in template.parts]
        self._markers = Markers(markers, [piece for literal in literals for piece in pieces_of(literal)])

    @classmethod
    def of(cls, config: ConditioningConfig, tokenizer: Any) -> Conditioner:
        """With the markers of a tokenizer (of transformers) and its chat template."""
        return cls(config, markers_of(tokenizer) if config.template or config.system else ())

    @property
    def active(self) -> bool:
        """Whether rows are changed at all."""
        return bool(self._templates)

    def check(self, table: Preferences) -> None:
        """Find out, on the whole table, whether templates and rows are made for each other.

        Raises:
            InputError: a field is no column of any row, or no row has a prompt of the kind that the templates are for.
        """
        if not (self.active and table.rows):
            return
        known = {name for row in table.rows for name in row.columns}
        known |= {name for name in IDS if any(getattr(row, name) is not None for row in table.rows)}
        used = {key: self._templates[key] for key in dict.fromkeys(map(_key, table.rows)) if key in self._templates}
        if not used:
            bad = _no_template(table.rows[0])
            raise InputError(bad.found, where=table.name, fix=bad.fix)
        for key, template in used.items():
            for name in template.columns:
                if name not in known:
                    raise InputError(
                        f"conditioning.{key} names {{{name}}}, and no row has such a column",
                        where=table.name,
                        fix=f"Columns are: {', '.join(sorted(known)) or 'none'}.",
                    )

    def condition(self, table: Preferences, *, overflow: Overflow | None = None) -> Preferences:
        """The table with conditioned prompts.

        A base response that a row brings is left out, for it answers another prompt. A row that lacks a value, or whose
        values leave its prompt no room, becomes a problem of its place and column.

        Args:
            table: rows, conditioned or not.
            overflow: where given, prompts that do not fit are cut on the left, behind what stands for the person (of
                messages, whole early turns go first), and a warning counts them.
        """
        if not self.active:
            return table
        asked: list[tuple[Preference, Values]] = []
        problems: list[Problem] = []
        for row in map(original_of, table.rows):
            try:
                asked.append((row, self._values(row)))
            except BadRow as bad:
                bad.user = row.user
                problems.append(bad.at(row.place))
        rows, cuts = self._fitted(asked, overflow)
        for number in [number for number, cut in cuts.items() if cut is None]:
            row, values = asked[number]
            problems.append(_no_room(values, row))
        if shortened := sum(cut is not None for cut in cuts.values()):
            warnings.warn(
                f"of {len(rows)} rows, {shortened} had a prompt cut on the left, behind what stands for the person "
                "(data.max_prompt_length, the model's context)",
                stacklevel=2,
            )
        kept = [row for number, row in enumerate(rows) if cuts.get(number, 0) is not None]
        return replace(table, rows=list(kept), problems=[*table.problems, *problems])

    def prompts(
        self, rows: Sequence[Preference], given: Mapping[str, str], *, overflow: Overflow | None = None
    ) -> list[Preference]:
        """Bare prompts, conditioned with values that somebody gave.

        Args:
            rows: prompts; columns of their own do not count.
            given: value by field; an empty one is none.
            overflow: as in `condition`.

        Raises:
            InputError: a prompt has no template, lacks a value or has no room; names its place.
        """
        columns = {name: value for name, value in given.items() if name not in IDS}
        asked = [replace(row, user=given.get("user"), group=given.get("group"), columns=columns) for row in rows]
        table = self.condition(Preferences(asked), overflow=overflow)
        if table.problems:
            raise InputError(str(table.problems[0]))
        return list(table.rows)

    def covers(self, row: Preference) -> bool:
        """Whether there is a template for the row's kind of prompt."""
        return _key(row) in self._templates

    def needed(self, rows: Iterable[Preference]) -> list[str]:
        """Fields that the templates for these rows name."""
        templates = [self._templates[key] for key in dict.fromkeys(map(_key, filter(self.covers, rows)))]
        return list(dict.fromkeys(name for template in templates for name in template.columns))

    # -- other people's identities --------------------------------------------------------------------------------

    def identities(self, rows: Iterable[Preference]) -> Identities:
        """What distinguishes the people of a table to the model; rows that cannot be conditioned tell nothing."""
        found: dict[str, set[tuple[str | None, ...]]] = {}
        for row in map(original_of, rows):
            try:
                values = self._values(row)
            except BadRow:
                continue
            found.setdefault(_key(row), set()).add(tuple(values.values()))
        return {
            key: sorted(some, key=lambda one: [(value is not None, value or "") for value in one])
            for key, some in found.items()
        }

    def under_others(
        self, rows: Sequence[Preference], identities: Identities, *, seed: int, overflow: Overflow | None = None
    ) -> dict[str, list[Preference]]:
        """Rows under an identity that is not theirs, in their order.

        Args:
            rows: conditioned ones, of `condition`.
            identities: those of the table.
            seed: fixes who else each row is taken for; with the row's content, whatever other rows there are.
            overflow: as in `condition`; without a word, and rows that have no room keep their whole prompt.

        Returns:
            `random`: under another identity of the table, drawn with equal chances, never their own; left out where a
            row has no other. `missing`: under none, that is with `absent` for every value, and where that is not set,
            with the bare prompt.
        """
        if not self.active:
            return {}
        originals = [original_of(row) for row in rows]
        bare = [(row, dict.fromkeys(self._templates[_key(row)].columns)) for row in originals]
        missing = [_as_conditioned(row, row.prompt) for row in originals]
        found = {"missing": missing if self.absent is None else self._fitted(bare, overflow)[0]}
        places = {key: {one: place for place, one in enumerate(known)} for key, known in identities.items()}
        others = [self._other(row, identities, places, seed) for row in originals]
        if all(other is not None for other in others):
            drawn = [(row, other) for row, other in zip(originals, others, strict=True) if other is not None]
            found["random"] = self._fitted(drawn, overflow)[0]
        return {name: list(some) for name, some in found.items()}

    def _other(
        self, row: Preference, identities: Identities, places: Mapping[str, Mapping[Any, int]], seed: int
    ) -> Values | None:
        values, key = self._values(row), _key(row)
        known = identities.get(key, ())
        own = places.get(key, {}).get(tuple(values.values()))
        others = len(known) - (own is not None)
        if not others:
            return None
        drawn = int(fraction(seed, "identity", row_key(row)) * others)
        return dict(zip(values, known[drawn + (own is not None and drawn >= own)], strict=True))

    # -- one row --------------------------------------------------------------------------------------------------

    def _values(self, row: Preference) -> dict[str, str | None]:
        """The row's values, escaped.

        Raises:
            BadRow: its prompt has no template, or it lacks a value and nothing may stand for it.
        """
        key = _key(row)
        if key not in self._templates:
            raise _no_template(row)
        values = {name: _value(row, name) for name in self._templates[key].columns}
        if self.absent is None and None in values.values():
            name = next(name for name, value in values.items() if value is None)
            fix = "Fill the cell, or say with conditioning.absent what stands for it."
            raise BadRow(name, f"the row has no value, and conditioning.{key} shows it", fix)
        return {name: None if value is None else self._markers.escape(value) for name, value in values.items()}

    def _conditioned(self, row: Preference, values: Values, cut: int = 0) -> Conditioned:
        """A row under some values, with so many characters of its prompt cut on the left."""
        prompt = shortened(row.prompt, cut)
        parts = []
        for literal, name in self._templates[_key(row)].parts:
            parts.append(Part(literal, False))
            if name == PROMPT:
                parts.append(Part(str(prompt), False))
            elif name:
                value = values[name]
                parts.append(Part(self.absent or "", False) if value is None else Part(value, True))
        text = self._markers.join(parts)
        return _as_conditioned(row, text if isinstance(prompt, str) else with_system(prompt, text.strip()))

    def _fitted(
        self, asked: Sequence[tuple[Preference, Values]], overflow: Overflow | None
    ) -> tuple[list[Conditioned], dict[int, int | None]]:
        """Rows under values, and by number how much had to be cut of a prompt; None where no cut makes it fit."""
        rows = [self._conditioned(row, values) for row, values in asked]
        if overflow is None or not rows:
            return rows, {}
        first = {number: over for number, over in enumerate(_overflows(overflow, rows)) if over > 0}
        cuts, left = dict[int, int | None](), dict(first)
        tried = dict.fromkeys(first, 0)
        while left:
            for number, over in list(left.items()):
                row, values = asked[number]
                # A token is a character or more; how many it is here, the cut before this one has shown.
                gained = first[number] - over
                step = math.ceil(over * tried[number] / gained) if gained > 0 else max(over, tried[number], 1)
                most = length(row.prompt) - 1
                if tried[number] >= most:
                    cuts[number] = None
                    del left[number]
                    continue
                cuts[number] = tried[number] = min(tried[number] + step, most)
                rows[number] = self._conditioned(row, values, tried[number])
            numbers = list(left)
            over_now = _overflows(overflow, [rows[number] for number in numbers])
            left = {number: over for number, over in zip(numbers, over_now, strict=True) if over > 0}
        for number in [number for number, cut in cuts.items() if cut is None]:
            rows[number] = self._conditioned(*asked[number])
        return rows, cuts


def _key(row: Preference) -> str:
    """Which template is for a row."""
    return "template" if isinstance(row.prompt, str) else "system"


def _check_fields(templates: Mapping[str, Template]) -> None:
    if "template" in templates and PROMPT not in templates["template"].names:
        found = "the template does not say where the prompt goes"
        raise InputError(found, where="conditioning.template", fix="Put {prompt} into it.")
    if "system" in templates and PROMPT in templates["system"].names:
        raise InputError(
            "a system message has no {prompt}: that stands in the messages below it",
            where="conditioning.system",
            fix="Take it out; prompts of text have conditioning.template.",
        )


def _no_template(row: Preference) -> BadRow:
    kind, other = ("text", "system") if isinstance(row.prompt, str) else ("messages", "template")
    found = f"the prompt is {kind}, and only conditioning.{other} is set"
    return BadRow(PROMPT, found, f"Set conditioning.{_key(row)} too.")


def _no_room(values: Values, row: Preference) -> Problem:
    name = max(values, key=lambda name: len(values[name] or ""), default=PROMPT)
    size = f" (this value has {len(values[name] or '')} characters)" if name in values else ""
    found = f"what stands for the person leaves the prompt no room{size}"
    fix = "Shorten it, or raise data.max_prompt_length within the model's context."
    return Problem(row.place, name, found, fix, row.user)


def _value(row: Preference, name: str) -> str | None:
    """A row's value for a field as text; None where it has none."""
    cell: Any = getattr(row, name) if name in IDS else row.columns.get(name)
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return None
    if isinstance(cell, bool) or not isinstance(cell, str | int | float):
        raise BadRow(name, f"the cell holds {excerpt(cell)}, not text or a number", "It is to stand in a prompt.")
    text = str(cell)
    if not text.strip():
        return None
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise BadRow(name, "the cell holds a lone surrogate, which is no text", "Half of a pair was cut off.") from None
    # Names have one line: what would begin another one is left out of them.
    return " ".join(line for line in text.splitlines() if line) if name in IDS else text


def _as_conditioned(row: Preference, prompt: Text) -> Conditioned:
    held = {one.name: getattr(row, one.name) for one in fields(Preference)}
    return Conditioned(**{**held, "prompt": prompt, "base": None, "base_finished": True}, original=row)


def _overflows(overflow: Overflow, rows: Sequence[Preference]) -> list[int]:
    try:
        return list(overflow(rows))
    except InputError:
        return [_overflow_of(overflow, row) for row in rows]


def _overflow_of(overflow: Overflow, row: Preference) -> int:
    try:
        return overflow([row])[0]
    except InputError:
        # What cannot be turned into tokens at all is found, and reported, where that is done.
        return 0
