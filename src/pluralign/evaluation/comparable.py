"""Whether two evaluations were measured by the same yardstick: the same base, held-out rows and probes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pluralign.evaluation.results import Evaluation, measure_of
from pluralign.preferences.people import shown

_NAMES = 5
_JUDGED_BY = ("against", "annotator", "orders", "max_prompts", "generation")


def reasons_against(a: Evaluation, b: Evaluation, shared: Sequence[str]) -> list[str]:
    """Why differences of two evaluations would not be those of their runs; empty where nothing speaks against it.

    Args:
        a: of the first run.
        b: of the second.
        shared: people that both have.
    """
    reasons = [
        f"the {word}s differ: {_base(a, key)} and {_base(b, key)}"
        for word, key in (("base", "fingerprint"), ("tokenizer", "tokenizer_fingerprint"))
        if a.base.get(key) != b.base.get(key)
    ]
    same_base = not reasons
    checks: dict[str, Callable[[str], bool]] = {
        "held-out rows": lambda person: _other_rows(a, b, person, same_base=same_base),
        "probes": lambda person: _other_probes(a.people[person], b.people[person], same_base=same_base),
    }
    for what, differ in checks.items():
        if others := [person for person in shared if differ(person)]:
            reasons.append(f"the {what} differ for {len(others)} of {len(shared)} people ({named(others)})")
    return reasons


def remarks_on(a: Evaluation, b: Evaluation, shared: Sequence[str]) -> list[str]:
    """What else differs in how two evaluations were measured, and which figures it touches."""
    return [*_of_judges(a, b), *_of_answers(a, b, shared)]


def _of_judges(a: Evaluation, b: Evaluation) -> list[str]:
    one, other = a.win_rate or {}, b.win_rate or {}
    changes = _changes({key: one.get(key) for key in _JUDGED_BY}, {key: other.get(key) for key in _JUDGED_BY}, set())
    if not (one and other and changes):
        return []
    return [f"win rates were found in other ways ({', '.join(key for key, *_ in changes)}): they do not compare runs"]


def _of_answers(a: Evaluation, b: Evaluation, shared: Sequence[str]) -> list[str]:
    if not any(_part(run.people[person], "behaviour") for run in (a, b) for person in shared):
        return []
    changed = [
        f"{key} {one!r} and {other!r}"
        for key, one, other in (
            *_changes(a.base.get("generation"), b.base.get("generation"), {"batch_size"}),
            *_changes(a.base.get("settings"), b.base.get("settings"), {"probes", "max_probes", "cross_table"}),
        )
    ]
    if not changed and any(_samples(a, person) != _samples(b, person) for person in shared):
        changed = ["the prompts, a sample by the seed"]
    if not changed:
        return []
    return [f"answers were made in other ways ({', '.join(changed)}): so much of behaviour is not the runs'"]


def named(people: Sequence[str]) -> str:
    """Some ids on one line, the first few of many."""
    more = f" and {len(people) - _NAMES} more" if len(people) > _NAMES else ""
    return f"{', '.join(shown(person, 40) for person in people[:_NAMES])}{more}"


def _other_rows(a: Evaluation, b: Evaluation, person: str, *, same_base: bool) -> bool:
    one, other = a.people[person], b.people[person]
    if isinstance(one.get("held_out"), str) and isinstance(other.get("held_out"), str):
        return bool(one["held_out"] != other["held_out"])
    # Files that do not say which rows they are of: then what follows from the rows, whatever was trained, is the same.
    if measure_of(one, "pairs.n") != measure_of(other, "pairs.n"):
        return True
    if same_base and _differ(one, other, "pairs.base_ranking_accuracy", of="pairs.n"):
        return True
    sampled_alike = a.base.get("seed") == b.base.get("seed") and _limit(a) == _limit(b)
    return sampled_alike and _samples(a, person) != _samples(b, person) and bool(_samples(a, person))


def _other_probes(one: Mapping[str, Any], other: Mapping[str, Any], *, same_base: bool) -> bool:
    if not (_part(one, "retention") and _part(other, "retention")):
        return False
    count = "retention.measures.base_sum.all.n"
    if measure_of(one, count) != measure_of(other, count):
        return True
    return same_base and _differ(one, other, "retention.base_accuracy", of=count)


def _differ(one: Mapping[str, Any], other: Mapping[str, Any], measure: str, *, of: str) -> bool:
    """Whether a share of so many items differs by more than rounding, which may turn over one that is near a tie."""
    first, second, count = measure_of(one, measure), measure_of(other, measure), measure_of(one, of) or 0.0
    if first is None or second is None:
        return first is not second
    return abs(first - second) * count > max(1.5, count / 50)


def _samples(run: Evaluation, person: str) -> list[Any]:
    behaviour = _part(run.people[person], "behaviour") or {}
    samples = behaviour.get("samples")
    return [one.get("chosen") for one in samples if isinstance(one, Mapping)] if isinstance(samples, list) else []


def _limit(run: Evaluation) -> float | None:
    return measure_of(run.base, "settings.max_prompts")


def _part(results: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    part = results.get(name)
    return part if isinstance(part, Mapping) else None


def _changes(one: Any, other: Any, leave_out: set[str]) -> list[tuple[str, Any, Any]]:
    if not (isinstance(one, Mapping) and isinstance(other, Mapping)):
        return []
    keys = [key for key in {**one, **other} if key not in leave_out]
    return [(key, one.get(key), other.get(key)) for key in keys if one.get(key) != other.get(key)]


def _base(run: Evaluation, key: str) -> str:
    print_of = run.base.get(key)
    return f"{shown(str(run.base.get('model')))} ({print_of[:12] if isinstance(print_of, str) else 'unknown'})"
