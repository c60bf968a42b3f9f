"""`pluralign winrate`: people's own answers before an annotator, beside the base's or another run's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pluralign.annotation import AnnotatorConfig
from pluralign.annotators import Annotator, AnnotatorError, Request, Verdict, annotator_of
from pluralign.evaluation.answering import Answering
from pluralign.evaluation.contest import BASE, Asked, Contest, contest_of
from pluralign.evaluation.kept_answers import Answer, KeptAnswers
from pluralign.evaluation.results import Evaluation, by_group, summarize
from pluralign.evaluation.win_rates import Judged, WinRates, win_rates
from pluralign.preferences import text_key
from pluralign.preferences.keys import fraction
from pluralign.resolve import flat
from pluralign.storage import check_place, sha256_of_json
from pluralign.training.online.files import VerdictLog
from pluralign.training.online.labelling import annotate_requests, said_of
from pluralign.training.runs import WIN_RATES, RunFolder
from pluralign.winrate_config import WinRateConfig

ANSWERS = "answers.jsonl"
_HOW_IT_IS_ASKED = (
    "batch_size",
    "missing",
    *(
        f"endpoint.{key}"
        for key in ("key_variable", "requests_at_once", "requests_per_minute", "retries", "timeout", "max_requests")
    ),
)
"""Keys of an annotator that change nothing of what it says."""
_FOLDERS = ("reward", "taste", "answers", "endpoint.template", "endpoint.profiles")
"""Keys of an annotator that name files, whose content may change."""


def winrate(config: WinRateConfig) -> Evaluation:
    """Let both sides answer and the annotator compare, and write `winrate/base.json` or the like.

    What is answered and what is said of it is kept as it comes, in `winrate/` of the last run: the same call goes on
    where it was stopped, and asks for nothing twice.

    Args:
        config: the runs, the prompts, who compares.

    Returns:
        What was written.

    Raises:
        InputError: a run, its data or the annotator cannot be used, or runs are not of the same yardstick.
        AnnotatorError: the annotator gave up. Figures of what it had said by then are written.
    """
    contest = contest_of(config)
    folder = RunFolder(contest.side.run)
    place = Path(config.output or folder.path / WIN_RATES / _file_name(contest))
    check_place(place)
    with folder.locked("pluralign winrate"):
        run = replace(contest.side.trained, output_dir=str(folder.path), device=config.device)
        annotator = annotator_of(config.annotator, run, both_orders=False)
        facts = _facts(annotator, config.annotator)
        log = _log(folder.path / WIN_RATES / f"verdicts-{sha256_of_json(facts)[:12]}.jsonl", config)
        answering = Answering(KeptAnswers(folder.path / WIN_RATES / ANSWERS), config.device)
        answers = answering.answers(contest)
        contest.skipped |= answering.failed
        comparisons = [_Comparison.of(*one, config=config) for one in answers]
        requests = [request for one in comparisons for request in one.requests]

        def written() -> Evaluation:
            found = _evaluation(contest, comparisons, log, config)
            found.win_rate = {**_head(contest, config, facts), **(found.win_rate or {})}
            found.write(place)
            return found

        try:
            annotate_requests(annotator, requests, log, batch_size=config.annotator.batch_size)
        except AnnotatorError:
            if any(log.get(request) for request in requests):
                written()
            raise
        return written()


@dataclass(frozen=True)
class _Comparison:
    """Two answers to a prompt, and how the annotator is asked about them.

    Attributes:
        asked: the prompt.
        answer: of the side whose win rate it is.
        against: the other one.
        stands_first: for each time that it is asked, whether the answer stands first.
    """

    asked: Asked
    answer: Answer
    against: Answer
    stands_first: tuple[bool, ...]

    @classmethod
    def of(cls, asked: Asked, answer: Answer, against: Answer, *, config: WinRateConfig) -> _Comparison:
        orders: tuple[bool, ...] = (True, False)
        if config.orders == "random":
            orders = (fraction(config.seed, "order", asked.id) < 1 / 2,)
        return cls(asked, answer, against, orders)

    @property
    def requests(self) -> list[Request]:
        row, texts = self.asked.row, (self.answer.text, self.against.text)
        return [
            Request(row.prompt, texts if first else texts[::-1], row.user, f"{self.asked.id}-{1 if first else 2}")
            for first in self.stands_first
        ]

    def judged(self, log: VerdictLog) -> Judged | None:
        """What was said; None where the annotator has not been asked of it all yet."""
        said = [said_of(request, log) for request in self.requests]
        if any(verdict is None for verdict in said):
            return None
        verdicts = tuple(
            (first, None if verdict is None else _won(verdict, first=first))
            for first, verdict in zip(self.stands_first, said, strict=True)
        )
        lengths = len(self.answer.text), len(self.against.text)
        return Judged(verdicts, *lengths, same=self.answer.text == self.against.text)


def _won(verdict: Verdict, *, first: bool) -> float | None:
    """1 where the answer won, standing first or second, 1/2 where neither did, 0 where the other one did."""
    if verdict.abstained:
        return None
    places = [0.0, 0.0] if verdict.tie else verdict.places()
    if places[0] == places[1]:
        return 0.5
    return float((places[0] > places[1]) == first)


def _evaluation(
    contest: Contest, comparisons: Sequence[_Comparison], log: VerdictLog, config: WinRateConfig
) -> Evaluation:
    judged: dict[str, list[Judged]] = {}
    prompts: dict[str, list[str]] = {}
    unanswered = 0
    for one in comparisons:
        said, person = one.judged(log), one.asked.person
        prompts.setdefault(person, []).append(text_key(one.asked.row.prompt))
        judged.setdefault(person, []).extend([said] if said else [])
        unanswered += said is None
    rates: WinRates = win_rates(judged, length_control=config.length_control != "none", seed=config.seed)
    groups, side = contest.group, contest.side
    rows = {one.person: one.row for one in contest.asked}
    people: dict[str, dict[str, Any]] = {
        person: {
            "adapter": Path(str(side.folder(rows[person]))).name,
            "group": groups[person],
            "held_out": sha256_of_json(sorted(prompts[person])),
            "win_rate": found,
        }
        for person, found in rates.people.items()
    }
    return Evaluation(
        base={"model": side.trained.model, "fingerprint": side.base, "seed": side.trained.seed},
        people=people,
        groups=by_group(people),
        summary=summarize(people, contest.skipped),
        skipped=contest.skipped,
        win_rate={"unanswered": unanswered, **rates.everybody},
    )


def _head(contest: Contest, config: WinRateConfig, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What was compared, and how."""
    return {
        "run": str(contest.side.run),
        "against": contest.against.name,
        "annotator": dict(facts),
        "orders": config.orders,
        "max_prompts": config.max_prompts,
        "generation": asdict(contest.side.trained.base_responses.greedy()),
        "different": contest.different,
    }


def _facts(annotator: Annotator, config: AnnotatorConfig) -> dict[str, Any]:
    """What tells this annotator from others: a verdict of one is none of another's."""
    given, usual = flat(asdict(config)), flat(asdict(AnnotatorConfig()))
    facts = {key: value for key, value in given.items() if value != usual[key] and key not in _HOW_IT_IS_ASKED}
    files = {key: _stamps(facts[key]) for key in _FOLDERS if key in facts}
    return {"name": annotator.name, **facts, **({"files": files} if any(files.values()) else {})}


def _stamps(places: str | Sequence[str]) -> list[list[Any]]:
    """Size and time of change of every file of a place; a model of a hub has none."""
    found = []
    for place in [places] if isinstance(places, str) else places:
        path = Path(place).expanduser()
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        found += [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.is_file()]
    return found


def _log(path: Path, config: WinRateConfig) -> VerdictLog:
    if config.ask_again:
        path.unlink(missing_ok=True)
    return VerdictLog(path)


def _file_name(contest: Contest) -> str:
    against = contest.against
    return f"{BASE}.json" if against.adapters is None else f"run-{against.run.resolve().name}.json"
