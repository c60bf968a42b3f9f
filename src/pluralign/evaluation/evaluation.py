"""The evaluation of a population: the base measured once, then each person's policy in turn."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pluralign.config import EvaluationConfig, GenerationConfig
from pluralign.evaluation.asked import Asked, check_questions
from pluralign.evaluation.behaviour import behaviour
from pluralign.evaluation.distribution import load_opinions
from pluralign.evaluation.drift import BaseLogits, Drift, drift
from pluralign.evaluation.identities import Listening
from pluralign.evaluation.pairs import cross_plan, cross_results, drift_results, pair_results, scored_pairs
from pluralign.evaluation.people import Person, gather
from pluralign.evaluation.policies import Policies, of_one_shape, opened_policies
from pluralign.evaluation.probes import load_probes, world_of
from pluralign.evaluation.results import Evaluation, by_group, summarize
from pluralign.evaluation.retention import Answered, answered, retention
from pluralign.evaluation.statistics import mean
from pluralign.evaluation.text_quality import spoken
from pluralign.models.anchoring import Anchored
from pluralign.models.base import Base
from pluralign.models.cache import Cache
from pluralign.models.encoding import Encoded, Encoder
from pluralign.models.generation import Generated, generate
from pluralign.models.references import base_responses, reference_logps
from pluralign.models.rows import Layout
from pluralign.models.scoring import Forward, Ids, Request, request_row, score_owned
from pluralign.progress import progress_bar
from pluralign.world import World


def evaluate_people(
    base: Base,
    adapters: Mapping[str, Path],
    held_out: Sequence[Anchored],
    *,
    per: str,
    settings: EvaluationConfig,
    generation: GenerationConfig,
    encoder: Encoder,
    cache: Cache,
    layout: Layout,
    seed: int = 0,
    skipped: Mapping[str, str] | None = None,
    world: World | None = None,
    only: Collection[str] | None = None,
    other_identities: Mapping[str, Sequence[Anchored]] | None = None,
    done: Callable[[str], None] = lambda part: None,
) -> Evaluation:
    """Measure every person's policy against the base.

    The work of one person is one pass over the distinct texts of own pairs, cross pairs and probe options, one pass
    over the base's responses (with the base beside it, unless an earlier person had the same prompts), one generation,
    and one pass over what was said, with the base beside it; adapters of one shape go through the same batches. What is
    of the base alone is computed once for all, and cached.

    Args:
        base: with no adapter attached, and so it is left.
        adapters: owner (user, group, or `_all`) -> folder of the adapter, or of the whole model with `kind: full`.
        held_out: held-out rows of everybody with their reference log-probs; rows without a pair count as prompts only.
        per: `parameters.per` of the run.
        settings: what is measured.
        generation: how base and people answer; as the base responses of the run were made, they come from the cache.
        encoder: of the run.
        cache: of base responses and reference log-probs.
        layout: of `choose_layout`.
        seed: fixes samples of probes, prompts and people, and sampling.
        skipped: people without an adapter, with the reason; they are reported.
        world: judges answers to its prompts; by default the one that `settings.probes` names, if any.
        only: whose policies are measured, on others' pairs too; by default everybody's.
        other_identities: where prompts are conditioned, `held_out` as the model would meet them under somebody else's
            identity (`random`) and under none (`missing`), each in the order of `held_out`; see `Listening`.
        done: told the name of every part when it is done: `base`, then, some people at a time, `adapters`, `scores`,
            `drift`, `answers` and `knowledge`.

    Returns:
        The evaluation, not yet written. A person whose adapter cannot be loaded is in `skipped`; the others go on.

    Raises:
        InputError: the probes cannot be used.
    """
    sets = load_probes(settings.probes, max_probes=settings.max_probes, seed=seed)
    answers = load_opinions(settings.distribution)
    check_questions(sets, encoder)
    rows = _referenced(base, held_out, cache, layout)
    people, missing = gather(adapters, rows, per=per, max_prompts=settings.max_prompts, seed=seed)
    wanted = set(people if only is None else only)
    run = _Run(
        base=base,
        settings=settings,
        generation=generation,
        encoder=encoder,
        cache=cache,
        forward=Forward.of(base, layout),
        seed=seed,
        world=world or next((found for found in map(world_of, _names(settings)) if found), None),
        asked=Asked.of(base, encoder, settings, sets, answers, held_out),
        people=people,
        measured={name: one for name, one in people.items() if name in wanted},
        cross=_cross_plan(people, settings, seed=seed, only=wanted),
        listening=_listening(other_identities, adapters, per, lambda some: _referenced(base, some, cache, layout)),
        done=done,
    )
    run.asked.check(run.measured)
    results, failed = run.measure()
    return _evaluation(run, results, {**missing, **(skipped or {}), **failed})


@dataclass
class _Run:
    """Everything that stays the same from person to person.

    Attributes:
        people: everybody, also those whose pairs only others are tried on.
        measured: those whose policies are measured.
        cross: person -> whose pairs their policy is tried on.
        listening: pairs under other identities; None where they are not asked for.
        answers: prompt -> the base's answer.
        base_logps: prompt -> log-prob of that answer under the base.
        own_words: person -> prompts with what the base says to them.
        base_scores: log-prob under the base of every option of probes and survey questions.
        done: told what is done.
    """

    base: Base
    settings: EvaluationConfig
    generation: GenerationConfig
    encoder: Encoder
    cache: Cache
    forward: Forward
    seed: int
    world: World | None
    asked: Asked
    people: dict[str, Person]
    measured: dict[str, Person]
    cross: dict[str, list[str]]
    listening: Listening | None
    done: Callable[[str], None]
    answers: dict[Ids, Generated] = field(init=False)
    base_logps: dict[Ids, float] = field(init=False)
    own_words: dict[str, list[Request]] = field(init=False)
    base_scores: dict[Request, float] = field(init=False)

    def measure(self) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
        """Results by person, and who could not be measured."""
        self.answers = self._base_answers()
        self.base_logps = self._base_logps()
        self.own_words = self._base_rows()
        self.base_scores = self._base_scores()
        self.done("base")
        by_folder: dict[Path, list[Person]] = {}
        for person in self.measured.values():
            by_folder.setdefault(person.folder, []).append(person)
        results: dict[str, dict[str, Any]] = {}
        failed: dict[str, str] = {}
        kept: dict[Request, Any] = {}
        with progress_bar() as progress:
            task = progress.add_task("evaluating", total=len(self.measured))
            for folders in of_one_shape(self.base, by_folder):
                with opened_policies(self.base, folders) as (policies, broken):
                    self.done("adapters")
                    served = {number: by_folder[folder] for number, folder in enumerate(folders)}
                    for number, reason in broken.items():
                        failed |= {person.id: reason for person in served.pop(number)}
                    results |= self._measure_policies(policies, served, BaseLogits(policies.base_model, kept=kept))
                progress.advance(task, sum(len(by_folder[folder]) for folder in folders))
        # In the order of the adapters, whoever shares one.
        measured = {name: results[name] for name in self.measured if name in results}
        return measured, {name: failed[name] for name in self.measured if name in failed}

    # -- the base, once -----------------------------------------------------------------------------------------

    def _base_answers(self) -> dict[Ids, Generated]:
        prompts = {question.prompt: None for person in self.measured.values() for question in person.questions}
        if not self.settings.generate or not prompts:
            return {}
        made = base_responses(
            self.base, [list(prompt) for prompt in prompts], self.generation, self.cache, seed=self.seed
        )
        return dict(zip(prompts, made, strict=True))

    def _base_logps(self) -> dict[Ids, float]:
        rows = [request_row(prompt, [_spoken(prompt, answer)[1]]) for prompt, answer in self.answers.items()]
        found = reference_logps(self.base, rows, self.cache, layout=self.forward.layout) if rows else []
        return {prompt: logps["o0"] for prompt, logps in zip(self.answers, found, strict=True)}

    def _base_rows(self) -> dict[str, list[Request]]:
        """Person -> prompts with what the base says to them: its answers; without generation, those that rows bring."""
        return {name: [*map(_request, self._base_encoded(person))] for name, person in self.measured.items()}

    def _base_encoded(self, person: Person) -> list[Encoded]:
        if not self.settings.generate:
            return [row.encoded for row in person.rows if row.encoded.response_ids.get("base")]
        spoken = [(question.row, self.answers[question.prompt]) for question in person.questions]
        rows = [
            # An empty text is an answer that ended at once, whatever special tokens filled it up.
            replace(row, chosen=None, rejected=None, base=said.text, base_finished=said.finished or not said.text)
            for row, said in spoken
        ]
        return self.encoder.encode_many(rows, ("base",))

    def _base_scores(self) -> dict[Request, float]:
        """Log-prob of every option of probes and survey questions."""
        layout = self.forward.layout
        people = list(self.measured.values())
        return self.asked.base_scores(people, lambda rows: reference_logps(self.base, rows, self.cache, layout=layout))

    # -- one policy ---------------------------------------------------------------------------------------------

    def _measure_policies(
        self, policies: Policies, served: Mapping[int, Sequence[Person]], logits: BaseLogits
    ) -> dict[str, dict[str, Any]]:
        """Results of the people whom each policy serves; what people of one policy share is computed once."""
        scores = score_owned(
            policies.model,
            {number: self._requests(sharing) for number, sharing in served.items()},
            self.forward,
            policies.rows_of,
        )
        self.done("scores")
        own_words = {
            number: {request: None for person in sharing for request in self.own_words[person.id]}
            for number, sharing in served.items()
        }
        drifts = drift(policies.model, own_words, logits, self.forward, policies.rows_of)
        self.done("drift")
        answers = self._answers(policies, served)
        # Nobody else says the same: the base's side of it is not worth keeping.
        said = drift(
            policies.model,
            {number: map(_spoken, some, some.values()) for number, some in answers.items()},
            BaseLogits(policies.base_model, limit=0),
            self.forward,
            policies.rows_of,
        )
        self.done("answers")
        told = {number: self.asked.told(policies, number) for number in served}
        self.done("knowledge")
        if self.listening:
            self.listening.hear(served, scores)
        return {
            person.id: {
                "adapter": person.folder.name,
                "group": person.group,
                "held_out": person.held_out,
                "pairs": pair_results(scored_pairs(person.pairs, scores[number]), seed=self.seed),
                "cross": self._cross(person, scores[number]),
                "base_responses": drift_results([drifts[number][request] for request in self.own_words[person.id]]),
                "retention": self._retention(person, scores[number]),
                "knowledge": told[number],
                "distribution": self.asked.distribution(person, scores[number], self.base_scores),
                "behaviour": self._behaviour(person, answers.get(number, {}), said.get(number, {})),
            }
            for number, sharing in served.items()
            for person in sharing
        }

    def _requests(self, sharing: Sequence[Person]) -> dict[Request, None]:
        """What one policy must score for the people whom it serves."""
        requests: dict[Request, None] = {}
        for person in sharing:
            for other in self.cross[person.id] or [person.id]:
                requests.update(
                    dict.fromkeys(request for pair in self.people[other].pairs for request in pair.requests)
                )
            if self.listening:
                requests.update(dict.fromkeys(self.listening.requests(person.id)))
            requests.update(dict.fromkeys(self.asked.requests(person)))
        return requests

    def _answers(self, policies: Policies, served: Mapping[int, Sequence[Person]]) -> dict[int, dict[Ids, Generated]]:
        """Policy -> prompt -> answer, each distinct one once."""
        if not self.settings.generate:
            return {}
        asked = [
            (number, prompt)
            for number, sharing in served.items()
            for prompt in dict.fromkeys(question.prompt for person in sharing for question in person.questions)
        ]
        made = generate(
            policies.model,
            self.base.tokenizer,
            [list(prompt) for _, prompt in asked],
            self.generation,
            seed=self.seed,
            description="answers",
            around=lambda some: policies.rows_of([asked[index][0] for index in some]),
        )
        found: dict[int, dict[Ids, Generated]] = {}
        for (number, prompt), answer in zip(asked, made, strict=True):
            found.setdefault(number, {})[prompt] = answer
        return found

    def _cross(self, person: Person, scores: Mapping[Request, float]) -> dict[str, Any] | None:
        others = self.cross[person.id]
        if not others:
            return None
        table = {other: cross_results(scored_pairs(self.people[other].pairs, scores)) for other in others}
        accuracies = [cell["accuracy"] for other, cell in table.items() if other != person.id]
        return {"others_accuracy": mean(accuracies), "people": table}

    def _retention(self, person: Person, scores: Mapping[Request, float]) -> dict[str, Any] | None:
        if not self.asked.book.sets:
            return None
        found: dict[str, list[Answered]] = {}
        for prefix, questions in self.asked.probes(person).items():
            found |= answered(questions, self.base_scores, scores, prefix)
        return retention(found)

    def _behaviour(
        self, person: Person, answers: Mapping[Ids, Generated], drifts: Mapping[Request, Drift]
    ) -> dict[str, Any] | None:
        if not self.settings.generate or not person.questions:
            return None
        prompts = [question.prompt for question in person.questions]
        by_person = [answers[prompt] for prompt in prompts]
        return behaviour(
            person.questions,
            [self.answers[prompt] for prompt in prompts],
            by_person,
            self.world,
            base_logps=[self.base_logps[prompt] for prompt in prompts],
            drifts=[drifts[_spoken(*one)] for one in zip(prompts, by_person, strict=True)],
        )


def _cross_plan(
    people: Mapping[str, Person], settings: EvaluationConfig, *, seed: int, only: Collection[str]
) -> dict[str, list[str]]:
    pairs = {name: one.pairs for name, one in people.items()}
    return cross_plan(pairs, limit=settings.cross_table, seed=seed, only=only)


def _listening(
    rows: Mapping[str, Sequence[Anchored]] | None,
    adapters: Mapping[str, Path],
    per: str,
    referenced: Callable[[Sequence[Anchored]], list[Anchored]],
) -> Listening | None:
    """Rows under other identities, with their reference log-probs; None where they are not asked for."""
    if rows is None:
        return None
    return Listening.of({name: referenced(some) for name, some in rows.items()}, adapters, per=per)


def _evaluation(run: _Run, results: dict[str, dict[str, Any]], reasons: dict[str, str]) -> Evaluation:
    """Everything that was measured, over people and groups, too."""
    return Evaluation(
        base=_base_section(run),
        people=results,
        groups=by_group(results),
        summary=summarize(results, reasons),
        skipped=reasons,
        identities=run.listening.results(seed=run.seed) if run.listening else None,
    )


def _base_section(run: _Run) -> dict[str, Any]:
    return {
        "model": run.base.name,
        "fingerprint": run.base.fingerprint,
        "tokenizer_fingerprint": run.base.tokenizer_fingerprint,
        "seed": run.seed,
        "settings": asdict(run.settings),
        "generation": asdict(run.generation),
        "layout": run.forward.layout,
        "world": run.world.seed if run.world else None,
        "held_out": {
            "rows": sum(len(person.rows) for person in run.people.values()),
            "cut": sum(bool(row.encoded.cut) for person in run.people.values() for row in person.rows),
        },
        **run.asked.facts(),
    }


def _referenced(base: Base, rows: Sequence[Anchored], cache: Cache, layout: Layout) -> list[Anchored]:
    """Rows with the reference log-probs of their pairs, also where training asked for none."""
    lacking = [
        row for row in rows if not {"chosen", "rejected"} & row.encoded.response_ids.keys() <= row.reference.keys()
    ]
    found = reference_logps(base, [row.encoded for row in lacking], cache, layout=layout) if lacking else []
    filled = {id(row): replace(row, reference=logps) for row, logps in zip(lacking, found, strict=True)}
    return [filled.get(id(row), row) for row in rows]


def _names(settings: EvaluationConfig) -> list[str]:
    return [settings.probes] if isinstance(settings.probes, str) else list(settings.probes or [])


def _spoken(prompt: Ids, answer: Generated) -> Request:
    return prompt, tuple(spoken(answer))


def _request(row: Encoded) -> Request:
    return tuple(row.prompt_ids), tuple(row.response_ids["base"])
