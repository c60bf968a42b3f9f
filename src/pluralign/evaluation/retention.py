"""What a person's adapter still knows of what the base knew: options of probes ranked by likelihood."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pluralign.evaluation.probes import Probe, ProbeSet, as_messages
from pluralign.evaluation.statistics import share, wilson_interval
from pluralign.models.scoring import Ids, Request
from pluralign.preferences.schema import Text

BASE, OWN = "base", "own"
"""Whose words stand before an option: the base's, or the person's."""
SUM, PER_CHARACTER = "sum", "per_character"
MEASURES = tuple(f"{prefix}_{score}" for prefix in (BASE, OWN) for score in (SUM, PER_CHARACTER))
HEADLINE = f"{BASE}_{SUM}"
"""The measure that `kept` is taken from: every probe has it."""

PromptsIds = Callable[[Sequence[Text]], list[list[int]]]


@dataclass(frozen=True, slots=True)
class ProbeQuestion:
    """A probe in tokens, behind one person's or the base's prefix.

    Attributes:
        probe: the probe.
        source: name of its file.
        prompt: tokens that all options share: the prompt and the start of the answer.
        options: tokens of each option, none empty.
        characters: length of each option's text.
    """

    probe: Probe
    source: str
    prompt: Ids
    options: tuple[Ids, ...]
    characters: tuple[int, ...]

    @property
    def requests(self) -> list[Request]:
        """Prompt and option, for each option."""
        return [(self.prompt, option) for option in self.options]

    def right(self, scores: Mapping[Request, float]) -> dict[str, bool]:
        """Whether the right option is the likeliest, by its sum and per character; what is no number is never right."""
        sums = [scores[request] for request in self.requests]
        per_character = [value / count for value, count in zip(sums, self.characters, strict=True)]
        return {SUM: _is_best(sums, self.probe.answer), PER_CHARACTER: _is_best(per_character, self.probe.answer)}


@dataclass
class ProbeBook:
    """All probes of a run, put into tokens once per manner of answering.

    Attributes:
        sets: the probes by source.
        tokenizer: of the base.
        prompts_ids: from prompts to their tokens, as for training.
        messages: whether the preferences' prompts are messages; then a question becomes a user's turn.
        context_length: tokens that prompt and option may have together; None is no limit.
    """

    sets: Sequence[ProbeSet]
    tokenizer: Any
    prompts_ids: PromptsIds
    messages: bool
    context_length: int | None = None
    too_long: set[str] = field(default_factory=set)
    _asked: dict[str | None, list[ProbeQuestion]] = field(default_factory=dict)

    def behind_base(self) -> list[ProbeQuestion]:
        """Every probe behind the base's prefix."""
        if None not in self._asked:
            self._asked[None] = self._questions(lambda probe: (probe.prefix or "", probe.prefix is None))
        return self._asked[None]

    def behind_own(self, keys: Iterable[str]) -> list[ProbeQuestion]:
        """The probes that know the manner of a person, behind that manner's prefix.

        Args:
            keys: names of the person's manner, as their id, style or group; the first that any probe knows is taken.
        """
        manner = next((key for key in keys if key in self._manners), None)
        if manner is None:
            return []
        if manner not in self._asked:
            self._asked[manner] = self._questions(
                lambda probe: (probe.prefixes[manner], False) if manner in probe.prefixes else None
            )
        return self._asked[manner]

    @cached_property
    def _manners(self) -> frozenset[str]:
        return frozenset(name for _, probe in self._all() for name in probe.prefixes)

    def _all(self) -> Iterable[tuple[str, Probe]]:
        return ((found.name, probe) for found in self.sets for probe in found.probes)

    def _questions(self, prefix_of: Callable[[Probe], tuple[str, bool] | None]) -> list[ProbeQuestion]:
        asked = [self._asked_as(source, probe, prefix_of(probe)) for source, probe in self._all()]
        drafts = [draft for draft in asked if draft is not None]
        texts = {text for draft in drafts for text in (draft.prefix, *draft.answers)}
        tokens = self._tokenized(sorted(texts))
        prompts = self.prompts_ids([draft.question for draft in drafts])
        questions = [_question(draft, prompt, tokens) for draft, prompt in zip(drafts, prompts, strict=True)]
        return [question for question in questions if self._fits(question)]

    def _asked_as(self, source: str, probe: Probe, prefix: tuple[str, bool] | None) -> _Draft | None:
        if prefix is None:
            return None
        words, bare = prefix
        question = probe.question
        if isinstance(question, str) and self.messages:
            question = as_messages(question)
        elif isinstance(question, str) and bare:
            # Without a template nothing tells a model that an answer is due.
            question, words = f"Question: {question}\nAnswer:", " "
        return _Draft(probe, source, question, words, tuple(_joined(words, option) for option in probe.options))

    def _fits(self, question: ProbeQuestion) -> bool:
        longest = len(question.prompt) + max(map(len, question.options))
        if self.context_length is None or longest <= self.context_length:
            return True
        self.too_long.add(f"{question.source}: {question.probe.id}")
        return False

    def _tokenized(self, texts: Sequence[str]) -> dict[str, list[int]]:
        if not texts:
            return {}
        found = self.tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
        return dict(zip(texts, found["input_ids"], strict=True))


@dataclass(frozen=True, slots=True)
class _Draft:
    """A probe as text: what is asked, whose words come before the option, and both joined for every option."""

    probe: Probe
    source: str
    question: Text
    prefix: str
    answers: tuple[str, ...]


def _question(draft: _Draft, prompt: Sequence[int], tokens: Mapping[str, list[int]]) -> ProbeQuestion:
    options = [tokens[text] for text in draft.answers]
    # Prefix and option are tokenized as one text, as a model would write them; what all options then share goes to the
    # prompt, up to the prefix's end. A token across that border stays with the option, and each keeps one of its own.
    common = _common_start([tokens[draft.prefix], *options]) if draft.prefix.strip() else 0
    common = min(common, min(map(len, options)) - 1)
    ends = tuple(tuple(option[common:]) for option in options)
    return ProbeQuestion(
        draft.probe, draft.source, (*prompt, *options[0][:common]), ends, tuple(map(len, draft.probe.options))
    )


@dataclass(frozen=True, slots=True)
class Answered:
    """One probe by one measure: whether the base and whether the person has it right."""

    probe: Probe
    source: str
    base: bool
    person: bool


def answered(
    questions: Sequence[ProbeQuestion], base: Mapping[Request, float], person: Mapping[Request, float], prefix: str
) -> dict[str, list[Answered]]:
    """Each measure of one prefix (`base` or `own`) -> what came of every probe.

    Args:
        questions: the probes in tokens.
        base: log-prob of each option under the base.
        person: the same under the person's adapter.
        prefix: whose prefix the questions carry.
    """
    found: dict[str, list[Answered]] = {f"{prefix}_{SUM}": [], f"{prefix}_{PER_CHARACTER}": []}
    for question in questions:
        base_right, person_right = question.right(base), question.right(person)
        for measure in (SUM, PER_CHARACTER):
            item = Answered(question.probe, question.source, base_right[measure], person_right[measure])
            found[f"{prefix}_{measure}"].append(item)
    return found


def retention(found: Mapping[str, Sequence[Answered]]) -> dict[str, Any]:
    """The `retention` of one person, as in `evaluation.json`.

    Args:
        found: measure -> what came of every probe.
    """
    headline = found.get(HEADLINE, ())
    overall = {measure: tally(found.get(measure, ())) for measure in MEASURES}
    return {
        "kept": overall[HEADLINE]["kept"],
        "kept_own": overall[f"{OWN}_{SUM}"]["kept"],
        "accuracy": overall[HEADLINE]["accuracy"],
        "base_accuracy": overall[HEADLINE]["base_accuracy"],
        "measures": {
            measure: {
                "all": overall[measure],
                "inside": tally(item for item in found.get(measure, ()) if item.probe.scope == "inside"),
                "outside": tally(item for item in found.get(measure, ()) if item.probe.scope == "outside"),
            }
            for measure in MEASURES
        },
        "topics": _by(headline, lambda item: item.probe.topic),
        "sources": _by(headline, lambda item: item.source),
    }


def tally(items: Iterable[Answered]) -> dict[str, Any]:
    """Counts and shares over some probes: `n`, `base_right`, `base_accuracy`, `accuracy`, `kept` and its interval."""
    items = list(items)
    known = [item for item in items if item.base]
    kept = sum(item.person for item in known)
    return {
        "n": len(items),
        "base_right": len(known),
        "base_accuracy": share(item.base for item in items),
        "accuracy": share(item.person for item in items),
        "kept": kept / len(known) if known else None,
        "kept_interval": wilson_interval(kept, len(known)),
    }


def _by(items: Iterable[Answered], key: Callable[[Answered], str]) -> dict[str, dict[str, Any]]:
    parts: dict[str, list[Answered]] = {}
    for item in items:
        parts.setdefault(key(item), []).append(item)
    return {name: tally(part) for name, part in sorted(parts.items())}


def _is_best(values: Sequence[float], answer: int) -> bool:
    others = [value for index, value in enumerate(values) if index != answer and not math.isnan(value)]
    # A tie is no knowledge: the right option must be above all others.
    return not math.isnan(values[answer]) and all(values[answer] > value for value in others)


def _joined(prefix: str, option: str) -> str:
    return f"{prefix} {option}" if prefix and not prefix[-1].isspace() else f"{prefix}{option}"


def _common_start(sequences: Sequence[Sequence[int]]) -> int:
    length = 0
    for tokens in zip(*sequences, strict=False):
        if len(set(tokens)) > 1:
            break
        length += 1
    return length
