"""A judge behind an OpenAI-compatible HTTP endpoint, asked about two responses at a time, in both orders."""

from __future__ import annotations

import json
import os
import threading
import uuid
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from pluralign.annotation import EndpointConfig
from pluralign.annotators.http import ChatClient, Clock, NoAnswerError, Reply, StoppedError
from pluralign.annotators.judging_prompts import JudgingPrompts, parse_answer
from pluralign.annotators.protocol import AnnotatorError, Request, Verdict
from pluralign.errors import InputError
from pluralign.storage import check_place, sha256_of_json, write_bytes

KIND = "judge_answers"
"""Folder of the cache with what judges said."""

_MANY = 16
"""Answers of a batch that are no accident where none of them can be understood."""


@dataclass(slots=True)
class Counts:
    """What a judge was asked and how it answered, since its annotator was made.

    Attributes:
        requests: that were sent, failed ones too.
        from_cache: questions whose answer was there already, of an earlier run or for another row.
        retried: requests of those sent that were made again.
        unparsable: answers that say neither A nor B nor a tie; their verdicts abstain.
        disagreements: pairs that the judge decided otherwise when they were swapped; they count as ties.
        prompt_tokens: that were sent; None where the endpoint never said.
        completion_tokens: that came back; the same.
    """

    requests: int = 0
    from_cache: int = 0
    retried: int = 0
    unparsable: int = 0
    disagreements: int = 0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two responses by number, and what is asked: the question as they stand, and swapped. Equal ones need none."""

    first: int
    second: int
    questions: tuple[str, ...]


class EndpointAnnotator:
    """A judge that is asked which of two responses a person would prefer.

    Each pair is asked about twice, with the responses swapped. Answers that agree name the winner; answers that differ,
    or say tie, are a tie, so a judge that prefers a place decides nothing. Two equal responses are a tie, and nobody is
    asked. Of more than two responses all pairs are asked about, and a score is the number of pairs that a response won
    and half of those it tied. Where an answer cannot be understood the verdict abstains and quotes it, also where other
    pairs of the request were: scores out of different numbers of pairs cannot be compared.

    Answers are kept by the address, the model, the template, the length of the answer and the whole question, each as
    soon as it is there: neither a later run nor one that goes on after a kill pays for it again. Questions are kept as
    hashes only.

    Args:
        config: of the endpoint.
        cache_dir: where answers are kept, in `judge_answers/`.
        both_orders: whether each pair is asked about twice; else once, as it stands, for callers that swap it.
        clock: time and chance; a test gives its own.

    Raises:
        InputError: a key of the configuration, the template, the profiles or the cache cannot be used.
    """

    def __init__(
        self, config: EndpointConfig, *, cache_dir: Path, both_orders: bool = True, clock: Clock | None = None
    ) -> None:
        self._config, self._both_orders = config, both_orders
        self._client = ChatClient(config, clock or Clock())
        self._prompts = JudgingPrompts.of_files(config.template, config.profiles)
        facts = {"model": config.model, "temperature": 0, "max_tokens": config.max_tokens}
        section = sha256_of_json({"url": self._client.url, "template": self._prompts.template, **facts})[:32]
        self._kept = _KeptAnswers(Path(cache_dir).expanduser() / KIND / section)
        self._understood = any(parse_answer(answer) for answer in self._kept)
        self._counts = Counts()
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """What errors and files call it."""
        return f"endpoint {self._config.model}"

    @property
    def counts(self) -> Counts:
        """What was asked and answered so far; a copy."""
        own = self._counts
        return Counts(
            requests=self._client.sent,
            from_cache=own.from_cache,
            retried=self._client.retried,
            unparsable=own.unparsable,
            disagreements=own.disagreements,
            prompt_tokens=own.prompt_tokens,
            completion_tokens=own.completion_tokens,
        )

    def check(self, requests: Sequence[Request]) -> None:
        """Find out now, and not after a part of them was paid for, that some requests cannot be asked about.

        Raises:
            InputError: nothing is known of a person.
        """
        for request in requests:
            self._pairs(request)

    def annotate(self, requests: Sequence[Request]) -> list[Verdict]:
        """A verdict for every request, in their order; see the class.

        Raises:
            InputError: nothing is known of a person; nothing was sent.
            AnnotatorError: the endpoint refused, failed too often, or may be asked no more; or of all answers none can
                be understood. Those that came are kept, and asking for the same again goes on from there.
        """
        pairs = [self._pairs(request) for request in requests]
        asked = [
            (question, request.row) for request, some in zip(requests, pairs, strict=True) for question in _of(some)
        ]
        wanted: dict[str, str] = {}
        for question, row in asked:
            if question not in self._kept:
                wanted.setdefault(question, row)
        self._counts.from_cache += len(asked) - len(wanted)
        self._ask(wanted)
        self._check_understood([question for question, _ in asked])
        return [self._verdict(request, some) for request, some in zip(requests, pairs, strict=True)]

    def _pairs(self, request: Request) -> list[_Pair]:
        found = []
        for first, second in combinations(range(len(request.responses)), 2):
            questions: tuple[str, ...] = ()
            # Made for equal responses too: an unknown person is an error whatever is asked.
            orders = ((first, second), (second, first))
            every = tuple(self._prompts.question(request, *order) for order in orders[: 1 + self._both_orders])
            if request.responses[first] != request.responses[second]:
                questions = every
            found.append(_Pair(first, second, questions))
        return found

    def _ask(self, wanted: Mapping[str, str]) -> None:
        """Get and keep the answers to questions; each has the row that errors name."""
        todo, stop, failures = deque(wanted.items()), threading.Event(), deque[tuple[BaseException, str]]()

        def work() -> None:
            while todo and not stop.is_set():
                try:
                    question, row = todo.popleft()
                except IndexError:
                    return
                try:
                    self._keep(question, self._client.ask(question, stop))
                except StoppedError:
                    return
                except BaseException as error:  # noqa: BLE001, the thread that started this one raises it
                    failures.append((error, row))
                    stop.set()

        # Not an executor: its threads are waited for when the process ends, and after Ctrl-C a request that stalls
        # would hold it until its timeout.
        threads = [
            threading.Thread(target=work, daemon=True) for _ in range(min(self._config.requests_at_once, len(wanted)))
        ]
        try:
            for thread in threads:
                thread.start()
            # After a failure too: what is on its way has been paid for.
            for thread in threads:
                thread.join()
        except BaseException:
            stop.set()
            raise
        if failures:
            raise self._failure(*failures[0], wanted) from None

    def _keep(self, question: str, reply: Reply) -> None:
        with self._lock:
            counts = self._counts
            if reply.prompt_tokens is not None:
                counts.prompt_tokens = (counts.prompt_tokens or 0) + reply.prompt_tokens
            if reply.completion_tokens is not None:
                counts.completion_tokens = (counts.completion_tokens or 0) + reply.completion_tokens
        self._kept.put(question, reply.text)

    def _failure(self, error: BaseException, row: str, wanted: Mapping[str, str]) -> BaseException:
        left = sum(question not in self._kept for question in wanted)
        on = f"{left} of {len(wanted)} questions are open; what was answered is kept in {self._kept.folder}, and the "
        on += "same run goes on from there."
        if isinstance(error, NoAnswerError):
            return AnnotatorError(self.name, error.found, row=row, fix=f"{error.fix} {on}".lstrip())
        if isinstance(error, OSError):
            found = f"an answer cannot be kept ({error.strerror or error}), and would have to be paid for again"
            return AnnotatorError(self.name, found, row=row, fix=on)
        return error

    def _check_understood(self, questions: Sequence[str]) -> None:
        """Stop where a judge is not understood at all: more of its answers would be paid for, and say nothing.

        Raises:
            AnnotatorError: of several answers none can be parsed, or of a few, and none ever could.
        """
        answers = [self._kept[question] for question in questions]
        unparsable = sum(parse_answer(answer) is None for answer in answers)
        self._counts.unparsable += unparsable
        # A judge that was understood before may fail on the few rows of a last batch: the run has to get past them.
        if unparsable < len(answers):
            self._understood = True
        elif answers and (len(answers) >= _MANY or not self._understood):
            raise AnnotatorError(
                self.name,
                f"none of {len(answers)} answers says A, B or TIE; one is {self._client.quoted(answers[0])}",
                fix="Change annotator.endpoint.template, or where answers are cut raise annotator.endpoint.max_tokens "
                f"({self._config.max_tokens}). What came is kept; to ask the same again, remove {self._kept.folder}.",
            )

    def _verdict(self, request: Request, pairs: Sequence[_Pair]) -> Verdict:
        scores, remarks = [0.0] * len(request.responses), []
        for pair in pairs:
            answers = [self._kept[question] for question in pair.questions]
            said = [parse_answer(answer) for answer in answers]
            if None in said:
                quoted = self._client.quoted(answers[said.index(None)])
                return Verdict(abstained=True, reason=f"unparsable answer {quoted}")
            # The second question, where there is one, has them swapped.
            first, second = said in (["first", "second"], ["first"]), said in (["second", "first"], ["second"])
            scores[pair.first] += 1.0 if first else 0.0 if second else 0.5
            scores[pair.second] += 1.0 if second else 0.0 if first else 0.5
            if set(said) - {"tie"} and not (first or second):
                self._counts.disagreements += 1
                which = f" of responses {pair.first + 1} and {pair.second + 1}" if len(pairs) > 1 else ""
                remarks.append(f"the answer changes with the order{which}")
        return Verdict(tuple(scores), tie=len(set(scores)) == 1, reason="; ".join(remarks) or None)


class _KeptAnswers:
    """Answers on disk, by the hash of their question.

    A folder of files `answers-<id>.jsonl`, each appended to by one annotator only: a line that a kill cut short is the
    last one of its file for good. A line is `{"key": ..., "answer": ..., "sum": ...}`.

    Args:
        folder: where they are; made with the first answer.

    Raises:
        InputError: it cannot be read or written to: what is paid for has to be kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: Path | None = None
        self._lock = threading.Lock()
        check_place(folder / "answers")
        self._answers: dict[str, str] = {}
        for path in sorted(folder.glob("answers-*.jsonl")):
            self._read(path)

    def __iter__(self) -> Iterator[str]:
        return iter(self._answers.values())

    def __contains__(self, question: str) -> bool:
        return sha256_of_json(question) in self._answers

    def __getitem__(self, question: str) -> str:
        return self._answers[sha256_of_json(question)]

    def put(self, question: str, answer: str) -> None:
        """Keep an answer; it is on the disk when this returns.

        Raises:
            OSError: it could not be written.
        """
        key = sha256_of_json(question)
        line = json.dumps({"key": key, "answer": answer, "sum": _sum(key, answer)}).encode("ascii") + b"\n"
        with self._lock:
            try:
                if self._file is None:
                    self._file = self.folder / f"answers-{uuid.uuid4().hex}.jsonl"
                    write_bytes(self._file, b"")
                with open(self._file, "ab") as file:
                    file.write(line)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError:
                # It may end in half a line; whatever comes after that one goes elsewhere.
                self._file = None
                raise
            self._answers[key] = answer

    def _read(self, path: Path) -> None:
        try:
            *lines, _half = path.read_bytes().split(b"\n")
        except OSError as error:
            raise InputError(f"cannot be read ({error.strerror})", where=str(path)) from None
        damaged = 0
        for line in lines:
            try:
                entry = json.loads(line)
                key, answer = entry["key"], entry["answer"]
                whole = entry["sum"] == _sum(key, answer)
            except (ValueError, KeyError, TypeError):
                whole = False
            if whole:
                self._answers.setdefault(key, answer)
            damaged += not whole
        if damaged:
            warnings.warn(f"{path} holds {damaged} damaged line(s): their questions are asked again", stacklevel=2)


def _sum(key: str, answer: str) -> str:
    return sha256_of_json([key, answer])[:16]


def _of(pairs: Sequence[_Pair]) -> Iterator[str]:
    return (question for pair in pairs for question in pair.questions)
