"""The numbers of a report in sentences: how many people, how well each is served, what was kept, who is worst off."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Literal, NamedTuple

from pluralign.evaluation.statistics import bootstrap_interval
from pluralign.reporting.gather import Person, Run
from pluralign.reporting.glance import FEWEST
from pluralign.reporting.measures import ACCURACY, KEPT, WIN_RATE

CHANCE = 0.5
_MOST_LISTED = 2
"""Values of other runs that a sentence lists."""
_CRITERIA: tuple[tuple[str, str, str, Callable[[list[float]], float]], ...] = (
    ("agrees with people most often", "agree with people most often", ACCURACY, fmean),
    ("wins against the base most often", "win against the base most often", WIN_RATE, fmean),
    ("serves the worst off best", "serve the worst off best", ACCURACY, min),
    ("keeps most of what the base knew", "keep most of what the base knew", KEPT, fmean),
)
"""What runs are ranked by: said of one, said of several, the measure, and how people's values become one."""


class Part(NamedTuple):
    """A piece of a sentence: plain words, a figure, or the name of a person or run."""

    text: str
    kind: Literal["", "figure", "name"] = ""


Sentence = list[Part]


@dataclass
class Headline:
    """What stands above everything else.

    Attributes:
        title: the one sentence.
        more: sentences below it.
    """

    title: Sentence
    more: list[Sentence]


def headline(
    runs: Sequence[Run], label: Callable[[str], str], name: Callable[[Run], str], *, comparable: bool = True
) -> Headline:
    """Sentences from the numbers of one run, or of several beside each other.

    Args:
        runs: at least one.
        label: what the page calls a person.
        name: what it calls a run.
        comparable: whether the runs are of one table and base: only then one of them can be ahead.
    """
    if len(runs) == 1:
        return _of_one(runs[0], label)
    apart = [Part(f"{_number(len(runs))} runs on different data or bases, beside each other.")]
    title = _comparison(runs, name) if comparable else apart
    more = [[Part(f"{name(run)}: ", "name"), *_figures(run, label)] for run in runs]
    return Headline(title, more)


def percent(share: float) -> str:
    """A share in whole percent; with a decimal where rounding would say all or none."""
    whole = f"{100 * share:.0f}%"
    if whole in ("0%", "100%") and share not in (0.0, 1.0):
        whole = f"{min(max(100 * share, 0.1), 99.9):.1f}%"
    return whole


def as_text(sentence: Iterable[Part]) -> str:
    """A sentence without its marks."""
    return "".join(part.text for part in sentence)


def _of_one(run: Run, label: Callable[[str], str]) -> Headline:
    judged = _having(run, ACCURACY)
    if not judged:
        return Headline([Part(f"{_count(len(run.people))} measured, nobody on held-out pairs.")], _some(_left_out(run)))
    people = list(judged.values())
    if len(people) == 1:
        (user,) = judged
        title = [
            Part("One person, "),
            Part(label(user), "name"),
            Part(": the adapter judges "),
            _share(people[0], ACCURACY),
        ]
        title.append(Part(f" of {people[0].pairs} held-out pairs as the person did and "))
        return Headline([*title, *_kept(run), Part(".")], _some(_confidence(people), _left_out(run)))
    title = [Part(_count(len(people)), "figure"), Part(": the median adapter judges "), _middle(judged, ACCURACY)]
    title += [
        Part(" of held-out pairs as its person did and "),
        *_kept(run),
        *_worst_in_short(judged, label),
        Part("."),
    ]
    return Headline(title, _some(_worst(judged, label), _confidence(people), _won(run), _left_out(run)))


def _comparison(runs: Sequence[Run], name: Callable[[Run], str]) -> Sentence:
    """Which run is ahead in what; those that share a first place are named together."""
    ahead: dict[tuple[str, ...], list[str]] = {}
    for one, many, key, reduce in _CRITERIA:
        found = [(run, [person.values[key] for person in _having(run, key).values()]) for run in runs]
        ranked = sorted(((reduce(numbers), run) for run, numbers in found if numbers), key=lambda item: -item[0])
        values = [(value, name(run)) for value, run in ranked]
        if len(values) < 2:
            continue
        first = tuple(run for value, run in values if round(value, 3) == round(values[0][0], 3))
        best, *others = _told_apart([value for value, _ in values])
        figures = f"{best} against {_spread(others)}{_doubt(key, reduce, ranked[: len(first) + 1])}" if others else best
        ahead.setdefault(first, []).append(f"{one if len(first) == 1 else many} ({figures})")
    sentence: Sentence = []
    for first, praise in ahead.items():
        sentence += [Part("; " if sentence else f"{_number(len(runs))} runs: "), Part(_listed(first), "name")]
        sentence.append(Part(f" {_listed(praise)}"))
    return [*sentence, Part(".")] if sentence else [Part(f"{_number(len(runs))} runs without a measure in common.")]


def _doubt(key: str, reduce: Callable[[list[float]], float], ranked: Sequence[tuple[float, Run]]) -> str:
    """What is to be said of a run that is ahead by no more than chance may make; nothing where it is by more.

    Means differ if the 95% interval of the paired difference leaves out 0, the worst people if their own do not meet.
    """
    (_, ahead), (_, behind) = ranked[-2:]
    if reduce is min:
        (_, worst), (_, other) = (next(iter(_having(run, key).items())) for run in (ahead, behind))
        intervals = [person.intervals.get(key) for person in (worst, other)]
        may_be_chance = None in intervals or intervals[0][0] <= intervals[1][1]  # type: ignore[index]
    else:
        there = _having(behind, key)
        apart = [
            person.values[key] - there[user].values[key]
            for user, person in _having(ahead, key).items()
            if user in there
        ]
        if len(apart) < FEWEST:
            return ", too few people to tell"
        interval = bootstrap_interval(apart)
        may_be_chance = interval is None or interval[0] <= 0
    return ", which may be chance" if may_be_chance else ""


def _spread(values: list[str]) -> str:
    """The others' values, highest first; of many their ends."""
    return _listed(values) if len(values) <= _MOST_LISTED else f"{values[-1]} to {values[0]}"


def _told_apart(values: list[float]) -> list[str]:
    """Different values as text, with a decimal where whole percent would be the same."""
    texts = list(dict.fromkeys(map(percent, values)))
    exact = list(dict.fromkeys(f"{100 * value:.1f}%" for value in values))
    return texts if len(texts) == len(exact) else exact


def _figures(run: Run, label: Callable[[str], str]) -> Sentence:
    """One run among several."""
    judged, kept = _having(run, ACCURACY), _having(run, KEPT)
    if not judged:
        return [Part(f"{_count(len(run.people))}, nobody measured on held-out pairs.")]
    sentence = [Part(f"{_count(len(judged))}, median accuracy "), _middle(judged, ACCURACY)]
    sentence += [Part(", median kept "), _middle(kept, KEPT)] if kept else []
    more = _some(_worst(judged, label), _won(run), _left_out(run))
    return [*sentence, Part("."), *(part for one in more for part in (Part(" "), *one))]


def _worst_in_short(judged: dict[str, Person], label: Callable[[str], str]) -> Sentence:
    # Worst first, so of equal accuracy the first has kept least.
    user, person = next(iter(judged.items()))
    if not _is_one_accuracy(judged):
        return [Part("; worst off is "), Part(label(user), "name"), Part(" with "), _share(person, ACCURACY)]
    kept = [other.values[KEPT] for other in judged.values() if KEPT in other.values]
    if len(set(kept)) < 2:
        return [Part("; nobody is worse off than another")]
    return [
        Part("; all have one accuracy, and "),
        Part(label(user), "name"),
        Part(" kept least, "),
        _share(person, KEPT),
    ]


def _worst(judged: dict[str, Person], label: Callable[[str], str]) -> Sentence:
    """Who is worst off, on how much evidence, and how many share that place; nothing where nobody is."""
    (user, person), *others = judged.items()
    if _is_one_accuracy(judged):
        return []
    sentence = [Part(label(user), "name"), Part(" is served worst: "), _share(person, ACCURACY)]
    sentence.append(Part(f" of {person.pairs} pairs{_between(person)}"))
    if KEPT in person.values:
        sentence += [Part(", and "), _share(person, KEPT), Part(" kept")]
    if same := sum(other.values[ACCURACY] == person.values[ACCURACY] for _, other in others):
        sentence.append(Part(f"; {same:,} more {'has' if same == 1 else 'have'} the same accuracy"))
    return [*sentence, Part(".")]


def _is_one_accuracy(judged: dict[str, Person]) -> bool:
    return len({person.values[ACCURACY] for person in judged.values()}) < 2


def _confidence(people: Sequence[Person]) -> Sentence:
    """For how many it is sure that their adapter judges better than by chance."""
    intervals = [person.intervals[ACCURACY] for person in people if ACCURACY in person.intervals]
    if not intervals:
        return []
    if len(people) == 1:
        return [Part(f"The accuracy's 95% interval is {_range(intervals[0])}.")]
    sure = sum(low > CHANCE for low, _ in intervals)
    against = sum(high < CHANCE for _, high in intervals)
    sentence = [
        Part("For "),
        Part(f"{sure:,} of {len(intervals):,}", "figure"),
        Part(" the 95% interval of the accuracy lies above one half, which is chance"),
    ]
    if against:
        sentence += [Part("; for "), Part(f"{against:,}", "figure"), Part(" below")]
    return [*sentence, Part(".")]


def _won(run: Run) -> Sentence:
    """How often the written answers are preferred to the base's, where a judge was asked."""
    judged = _having(run, WIN_RATE)
    if not judged:
        return []
    return [
        Part("Of comparisons with the base's answers the median person's win "),
        _middle(judged, WIN_RATE),
        Part("."),
    ]


def _left_out(run: Run) -> Sentence:
    """Who has no figure, and why."""
    parts = []
    if skipped := len(run.evaluation.skipped):
        parts.append(f"{_count(skipped, ' more')} could not be trained to the end, or not be measured.")
    if run.unmeasured:
        has = "has" if run.unmeasured == 1 else "have"
        parts.append(f"{_count(run.unmeasured, ' more')} {has} an adapter and {has} not been measured.")
    if unjudged := len(run.people) - len(_having(run, ACCURACY)):
        parts.append(f"{_count(unjudged, ' more')} {'has' if unjudged == 1 else 'have'} no held-out pairs.")
    return [Part(" ".join(parts))] if parts else []


def _kept(run: Run) -> Sentence:
    kept = _having(run, KEPT)
    if not kept:
        return [Part("what it kept was not measured")]
    return [Part("keeps "), _middle(kept, KEPT), Part(" of what the base knew")]


def _having(run: Run, key: str) -> dict[str, Person]:
    """Who has a value, worst first."""
    return {user: person for user, person in run.people.items() if key in person.values}


def _share(person: Person, key: str) -> Part:
    return Part(percent(person.values[key]), "figure")


def _middle(people: Mapping[str, Person], key: str) -> Part:
    return Part(percent(median(person.values[key] for person in people.values())), "figure")


def _between(person: Person) -> str:
    interval = person.intervals.get(ACCURACY)
    return f" (95% interval {_range(interval)})" if interval else ""


def _range(interval: tuple[float, float]) -> str:
    return f"{percent(interval[0])} to {percent(interval[1])}"


def _some(*sentences: Sentence) -> list[Sentence]:
    return [sentence for sentence in sentences if sentence]


def _count(people: int, more: str = "") -> str:
    return f"{people:,}{more} {'person' if people == 1 else 'people'}"


def _number(count: int) -> str:
    return ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight")[count]


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
