"""The evaluation of a population: the base measured once, then each person's policy in turn."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pluralign.config import EvaluationConfig, GenerationConfig
from pluralign.errors import InputError, PluralignError
from pluralign.evaluation.behaviour import behaviour
from pluralign.evaluation.drift import BaseLogits, drift
from pluralign.evaluation.pairs import cross_plan, cross_results, drift_results, pair_results, scored_pairs
from pluralign.evaluation.people import Person, gather
from pluralign.evaluation.policies import Policy, opened_policy
from pluralign.evaluation.probes import ProbeSet, load_probes, world_of
from pluralign.evaluation.results import Evaluation, by_group, summarize
from pluralign.evaluation.retention import BASE, OWN, Answered, ProbeBook, ProbeQuestion, answered, retention
from pluralign.evaluation.statistics import mean
from pluralign.models.anchoring import Anchored
from pluralign.models.base import Base
from pluralign.models.cache import Cache
from pluralign.models.encoding import Encoded, Encoder
from pluralign.models.generation import Generated, generate
from pluralign.models.references import base_responses, reference_logps
from pluralign.models.rows import Layout
from pluralign.models.scoring import Forward, Ids, Request, score
from pluralign.progress import progress_bar
from pluralign.world import World

SHOWN_PROBLEMS = 10


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
) -> Evaluation:
    """Measure every person's policy against the base.

    The work of one person is one pass over the distinct texts of own pairs, cross pairs and probe options, one pass
    over the base's responses (with the base beside it, unless an earlier person had the same prompts), and one
    generation. What is of the base alone is computed once for all, and cached.

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

    Returns:
        The evaluation, not yet written. A person whose adapter cannot be loaded is in `skipped`; the others go on.

    Raises:
        InputError: the probes cannot be used.
    """
    sets = load_probes(settings.probes, max_probes=settings.max_probes, seed=seed)
    check_questions(sets, encoder)
    rows = _referenced(base, held_out, cache, layout)
    people, missing = gather(adapters, rows, per=per, max_prompts=settings.max_prompts, seed=seed)
    run = _Run(
        base=base,
        settings=settings,
        generation=generation,
        encoder=encoder,
        cache=cache,
        forward=Forward.of(base, layout),
        seed=seed,
        world=world or next((found for found in map(world_of, _names(settings)) if found), None),
        book=_book(base, encoder, sets, held_out),
        people=people,
        cross=cross_plan({name: one.pairs for name, one in people.items()}, limit=settings.cross_table, seed=seed),
    )
    results, failed = run.measure()
    reasons = {
        **(skipped or {}),
        **{name: why for name, why in missing.items() if name not in (skipped or {})},
        **failed,
    }
    return Evaluation(
        base=_base_section(run, sets),
        people=results,
        groups=by_group(results),
        summary=summarize(results, reasons),
        skipped=reasons,
    )


@dataclass
class _Run:
    """Everything that stays the same from person to person.

    Attributes:
        cross: person -> whose pairs their policy is tried on.
        answers: prompt -> the base's answer.
        own_words: person -> prompts with what the base says to them.
        base_scores: log-prob of every probe's options under the base.
    """

    base: Base
    settings: EvaluationConfig
    generation: GenerationConfig
    encoder: Encoder
    cache: Cache
    forward: Forward
    seed: int
    world: World | None
    book: ProbeBook
    people: dict[str, Person]
    cross: dict[str, list[str]]
    answers: dict[Ids, Generated] = field(init=False)
    own_words: dict[str, list[Request]] = field(init=False)
    base_scores: dict[Request, float] = field(init=False)

    def measure(self) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
        """Results by person, and who could not be measured."""
        self.answers = self._base_answers()
        self.own_words = self._base_rows()
        self.base_scores = self._base_probe_scores()
        by_folder: dict[Path, list[Person]] = {}
        for person in self.people.values():
            by_folder.setdefault(person.folder, []).append(person)
        results: dict[str, dict[str, Any]] = {}
        failed: dict[str, str] = {}
        kept: dict[Request, Any] = {}
        with progress_bar() as progress:
            task = progress.add_task("evaluating", total=len(self.people))
            for folder, sharing in by_folder.items():
                try:
                    with opened_policy(self.base, folder) as policy:
                        logits = BaseLogits(policy.base_model, kept=kept)
                        results |= self._measure_policy(policy, sharing, logits)
                except PluralignError as error:
                    failed |= {person.id: str(error) for person in sharing}
                progress.advance(task, len(sharing))
        # In the order of the adapters, whoever shares one.
        return {name: results[name] for name in self.people if name in results}, failed

    # -- the base, once -----------------------------------------------------------------------------------------

    def _base_answers(self) -> dict[Ids, Generated]:
        prompts = {question.prompt: None for person in self.people.values() for question in person.questions}
        if not self.settings.generate or not prompts:
            return {}
        made = base_responses(
            self.base, [list(prompt) for prompt in prompts], self.generation, self.cache, seed=self.seed
        )
        return dict(zip(prompts, made, strict=True))

    def _base_rows(self) -> dict[str, list[Request]]:
        """Person -> prompts with what the base says to them: its answers; without generation, those that rows bring."""
        return {name: [*map(_request, self._base_encoded(person))] for name, person in self.people.items()}

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

    def _base_probe_scores(self) -> dict[Request, float]:
        """Log-prob of every option behind every manner that is asked for."""
        # People of one manner share the very list.
        parts = {id(part): part for name in self.people for part in self._questions(name).values()}
        questions = [question for part in parts.values() for question in part]
        rows = [
            Encoded(list(one.prompt), {f"o{number}": list(option) for number, option in enumerate(one.options)})
            for one in questions
        ]
        found = reference_logps(self.base, rows, self.cache, layout=self.forward.layout) if rows else []
        return {
            request: logps[f"o{number}"]
            for one, logps in zip(questions, found, strict=True)
            for number, request in enumerate(one.requests)
        }

    # -- one policy ---------------------------------------------------------------------------------------------

    def _questions(self, name: str) -> dict[str, list[ProbeQuestion]]:
        return {BASE: self.book.behind_base(), OWN: self.book.behind_own(self.people[name].manner)}

    def _measure_policy(
        self, policy: Policy, sharing: Sequence[Person], logits: BaseLogits
    ) -> dict[str, dict[str, Any]]:
        """Results of the people whom one policy serves; what they share is computed once."""
        requests: dict[Request, None] = {}
        for person in sharing:
            for other in self.cross[person.id] or [person.id]:
                requests.update(
                    dict.fromkeys(request for pair in self.people[other].pairs for request in pair.requests)
                )
            for questions in self._questions(person.id).values():
                requests.update(dict.fromkeys(request for question in questions for request in question.requests))
        scores = score(policy.model, requests, self.forward)
        own_words = {request: None for person in sharing for request in self.own_words[person.id]}
        drifts = drift(policy.model, own_words, logits, self.forward)
        answers = self._answers(policy, sharing)
        return {
            person.id: {
                "adapter": person.folder.name,
                "group": person.group,
                "pairs": pair_results(scored_pairs(person.pairs, scores), seed=self.seed),
                "cross": self._cross(person, scores),
                "base_responses": drift_results([drifts[request] for request in self.own_words[person.id]]),
                "retention": self._retention(person, scores),
                "behaviour": self._behaviour(person, answers),
            }
            for person in sharing
        }

    def _answers(self, policy: Policy, sharing: Sequence[Person]) -> dict[Ids, Generated]:
        prompts = {question.prompt: None for person in sharing for question in person.questions}
        if not self.settings.generate or not prompts:
            return {}
        tokens = [list(prompt) for prompt in prompts]
        made = generate(
            policy.model, self.base.tokenizer, tokens, self.generation, seed=self.seed, description="answers"
        )
        return dict(zip(prompts, made, strict=True))

    def _cross(self, person: Person, scores: Mapping[Request, float]) -> dict[str, Any] | None:
        others = self.cross[person.id]
        if not others:
            return None
        table = {other: cross_results(scored_pairs(self.people[other].pairs, scores)) for other in others}
        accuracies = [cell["accuracy"] for other, cell in table.items() if other != person.id]
        return {"others_accuracy": mean(accuracies), "people": table}

    def _retention(self, person: Person, scores: Mapping[Request, float]) -> dict[str, Any] | None:
        if not self.book.sets:
            return None
        found: dict[str, list[Answered]] = {}
        for prefix, questions in self._questions(person.id).items():
            found |= answered(questions, self.base_scores, scores, prefix)
        return retention(found)

    def _behaviour(self, person: Person, answers: Mapping[Ids, Generated]) -> dict[str, Any] | None:
        if not self.settings.generate or not person.questions:
            return None
        by_base = [self.answers[question.prompt] for question in person.questions]
        by_person = [answers[question.prompt] for question in person.questions]
        return behaviour(person.questions, by_base, by_person, self.world)


def _base_section(run: _Run, sets: Sequence[ProbeSet]) -> dict[str, Any]:
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
        "probes": [
            {
                "source": found.name,
                "used": len(found.probes),
                "available": found.available,
                "too_long": sum(place.startswith(f"{found.name}: ") for place in run.book.too_long),
                "problems": len(found.problems),
                "first_problems": [str(problem) for problem in found.problems[:SHOWN_PROBLEMS]],
            }
            for found in sets
        ],
    }


def check_questions(sets: Sequence[ProbeSet], encoder: Encoder) -> None:
    """Find out, before the long work, whether every question can be put to the model.

    Raises:
        InputError: a question is messages, and the tokenizer has no chat template, or one that refuses them.
    """
    for probe in (probe for found in sets for probe in found.probes if not isinstance(probe.question, str)):
        try:
            encoder.prompt_ids(probe.question)
        except InputError as error:
            raise InputError(f"the question cannot be asked ({error.found})", where=str(probe.place)) from None


def _book(base: Base, encoder: Encoder, sets: Sequence[ProbeSet], held_out: Sequence[Anchored]) -> ProbeBook:
    messages = encoder.chat_template == "always" or any(not isinstance(row.preference.prompt, str) for row in held_out)
    # Without limits of its own: half a question has no answer, so a probe that does not fit is left out and counted.
    whole = Encoder(
        base.tokenizer,
        max_prompt_length=sys.maxsize,
        max_response_length=sys.maxsize,
        context_length=None,
        chat_template=encoder.chat_template,
    )
    return ProbeBook(sets, base.tokenizer, whole.prompts_ids, messages, encoder.context_length)


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


def _request(row: Encoded) -> Request:
    return tuple(row.prompt_ids), tuple(row.response_ids["base"])
