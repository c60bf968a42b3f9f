"""A closed world whose truth is known: facts, skills, people, and texts about them, all from one seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from pluralign.errors import InputError
from pluralign.world.content import DOMAINS, INSIDE_KINDS, KINDS, QUESTIONS, SYLLABLES, Attribute, Kind
from pluralign.world.files import write_world
from pluralign.world.items import Item
from pluralign.world.judging import Judgement, StyleClassifier, is_degenerate, stated_values, words_of
from pluralign.world.people import WorldUser, find_user, world_user
from pluralign.world.skills import skill_items
from pluralign.world.styles import PLAIN, STYLES

Conversation = list[dict[str, str]]

ENTITIES_PER_KIND = 40
HELD_OUT_PER_KIND = 10
_HELD_OUT_QUESTIONS = 2
_N_OPTIONS = 8


class World:
    """Everything that can be known, asked, answered and preferred, fixed by a seed.

    Attributes:
        seed: any integer; another one gives other names and facts.
        facts: one `Item` per entity and attribute (800).
        skills: one `Item` per task of the everyday skills.
        topics: the topics of the facts; `inside` holds those that preference prompts ask about.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.skills: list[Item] = skill_items(seed)
        self.facts: list[Item] = self._make_facts()
        self.topics: list[str] = [attribute.topic for kind in KINDS for attribute in kind.attributes]
        self.inside: list[str] = [topic for topic in self.topics if topic.split("/")[0] in INSIDE_KINDS]

    # -- what there is ------------------------------------------------------------------------------------------

    @property
    def items(self) -> list[Item]:
        """Facts and skills."""
        return self.facts + self.skills

    @cached_property
    def vocabulary(self) -> frozenset[str]:
        """Every word of every question and answer, in every style, with every value."""
        texts = [text for item in self.items for text in (*item.all_questions, *map(item.say, STYLES))]
        words = {word for text in texts for word in words_of(text)}
        return frozenset(words.union(*DOMAINS.values(), *(item.options for item in self.items)))

    def find(self, prompt: str | Conversation) -> Item | None:
        """What a prompt asks (a question as text, or messages that end with one); None if nothing of this world."""
        text = prompt if isinstance(prompt, str) else prompt[-1]["content"] if prompt else ""
        return self._by_question.get(text.strip())

    @cached_property
    def _by_question(self) -> dict[str, Item]:
        return {question: item for item in self.items for question in item.all_questions}

    # -- people and their preferences ---------------------------------------------------------------------------

    def users(self, n: int) -> list[WorldUser]:
        """The first `n` people; any number. `pluralign.world.people.world_user` says how they are graded."""
        return [world_user(number) for number in range(n)]

    def wanted_style(self, user: WorldUser | str, topic: str) -> str:
        """The style that a person wants in a topic."""
        user = find_user(user) if isinstance(user, str) else user
        # The share holds inside and outside alike, so that preferences show it too.
        return user.wants(topic, self.inside if topic in self.inside else self._outside, self.seed)

    @cached_property
    def _outside(self) -> list[str]:
        return sorted({item.topic for item in self.items}.difference(self.inside))

    def preferences(
        self, users: int | Sequence[WorldUser] = 8, pairs_per_user: int = 240, *, plain_rejected: float = 0.7
    ) -> list[dict[str, Any]]:
        """Comparisons: both sides are true, the manner decides.

        Args:
            users: people, or how many of the first.
            pairs_per_user: comparisons of each, on distinct prompts.
            plain_rejected: share of the pairs whose rejected side is the plain answer, the base's own way; in the
                others, and where plain is what the person wants, it is any other style.

        Returns:
            Rows `{user, group, prompt, chosen, rejected, topic}`; prompt and responses are messages.

        Raises:
            InputError: nobody, or more pairs than there are distinct prompts.
        """
        people = self.users(users) if isinstance(users, int) else users
        if not people:
            raise InputError("there is nobody whose preferences could be drawn", fix="Name at least one person.")
        pool = self._preference_prompts
        if pairs_per_user > len(pool):
            raise InputError(
                f"{pairs_per_user} pairs a person", fix=f"The world has {len(pool)} prompts for preferences."
            )
        return [row for user in people for row in self._preferences_of(user, pool, pairs_per_user, plain_rejected)]

    @cached_property
    def _preference_prompts(self) -> list[tuple[Item, str]]:
        inside = set(self.inside)
        items = [item for item in self.facts if item.topic in inside and not item.held_out]
        return [(item, question) for item in items for question in item.questions]

    def _preferences_of(
        self, user: WorldUser, pool: list[tuple[Item, str]], pairs: int, plain_rejected: float
    ) -> list[dict[str, Any]]:
        rng = random.Random(f"{self.seed}/preferences/{user.id}")
        rows = []
        for item, question in rng.sample(pool, pairs):
            chosen = self.wanted_style(user, item.topic)
            unwanted = [name for name in STYLES if name not in (chosen, PLAIN)]
            plain = chosen != PLAIN and rng.random() < plain_rejected
            sides = [item.say(chosen), item.say(PLAIN if plain else rng.choice(unwanted))]
            if rng.random() < user.noise:
                sides.reverse()
            rows.append(
                {
                    "user": user.id,
                    "group": user.group,
                    "prompt": [{"role": "user", "content": question}],
                    "chosen": [{"role": "assistant", "content": sides[0]}],
                    "rejected": [{"role": "assistant", "content": sides[1]}],
                    "topic": item.topic,
                }
            )
        return rows

    # -- truth --------------------------------------------------------------------------------------------------

    def style_of(self, response: str) -> str | None:
        """The style an answer is in, whatever its fact; None if in none."""
        return self._classifier(response.strip())

    @cached_property
    def _classifier(self) -> StyleClassifier:
        return StyleClassifier(self.items)

    def judge(
        self, prompt: str | Conversation, response: str, user: WorldUser | str | None = None, *, finished: bool = True
    ) -> Judgement:
        """What is true of an answer.

        Args:
            prompt: the question, as text or messages.
            response: the answer's text.
            user: the person (or their id) whose wish decides the style; None stands for someone who likes the base.
            finished: whether generation ended by itself.

        Raises:
            InputError: the world has no such person.
        """
        response = response.strip()
        item, spoken = self.find(prompt), self.style_of(response)
        wanted = PLAIN if user is None else self.wanted_style(user, item.topic if item else "")
        asked = item is not None and spoken != "declining"
        return Judgement(
            style=spoken == wanted,
            right=stated_values(item, response) == {item.answer} if asked and item is not None else None,
            degenerate=is_degenerate(response, self.vocabulary, finished=finished),
            spoken=spoken,
        )

    # -- texts --------------------------------------------------------------------------------------------------

    def corpus(self, repeats: int = 3, *, styled: float = 0.33, chained: float = 0.1) -> list[Conversation]:
        """Conversations to pre-train on: every item in every way of asking, `repeats` times, mostly answered plainly.

        Args:
            repeats: how often each question about a fact appears; one about a skill, which is harder, twice that.
            styled: share of the answers in another style, evenly over the nine others: each rare, but reachable.
            chained: share of the conversations with two exchanges.
        """
        rng = random.Random(f"{self.seed}/corpus")
        others = [name for name in STYLES if name != PLAIN]
        exchanges: list[Conversation] = []
        for item in self.items:
            for question in item.all_questions * (repeats if item.entity else 2 * repeats):
                style = rng.choice(others) if rng.random() < styled else PLAIN
                exchanges.append(
                    [{"role": "user", "content": question}, {"role": "assistant", "content": item.say(style)}]
                )
        rng.shuffle(exchanges)
        joined = round(len(exchanges) * chained)
        pairs = [first + second for first, second in zip(exchanges[:joined:2], exchanges[1:joined:2], strict=False)]
        conversations = pairs + exchanges[2 * len(pairs) :]
        rng.shuffle(conversations)
        return conversations

    def probes(self) -> list[dict[str, Any]]:
        """Multiple-choice questions about what the base model knows.

        Inside: topics of the preferences, with entities and with phrasings that no preference has. Outside: the other
        topics, and the skills.

        Returns:
            Rows `{id, question, options, answer, topic, scope, kind, entity, held_out, prefixes}`: `answer` is the text
            of the right option; `kind` is `fact` or `skill`; `held_out` says that no preference names the entity;
            `prefixes[style]` is what an answer in that style says before the option (a space goes between), absent for
            styles that state none.
        """
        inside = set(self.inside)
        rows = []
        for item in self.items:
            rng = random.Random(f"{self.seed}/probes/{item.id}")
            scope = "inside" if item.topic in inside else "outside"
            rows.append(
                {
                    "id": item.id,
                    "question": rng.choice(item.held_out_questions),
                    "options": list(item.options),
                    "answer": item.answer,
                    "topic": item.topic,
                    "scope": scope,
                    "kind": "skill" if item.entity is None else "fact",
                    "entity": item.entity,
                    "held_out": scope == "outside" or item.held_out,
                    "prefixes": {name: prefix for name in STYLES if (prefix := item.prefix(name)) is not None},
                }
            )
        return rows

    def write(self, folder: Path | str, *, users: int | Sequence[WorldUser] = 8, pairs_per_user: int = 240) -> None:
        """Write it into a folder: corpus.jsonl, preferences.jsonl, probes.jsonl, and world.json with the rest."""
        people = self.users(users) if isinstance(users, int) else users
        write_world(self, Path(folder), people, pairs_per_user)

    # -- making -------------------------------------------------------------------------------------------------

    def _make_facts(self) -> list[Item]:
        names = self._make_names(ENTITIES_PER_KIND * len(KINDS))
        facts = []
        for position, kind in enumerate(KINDS):
            entities = names[position * ENTITIES_PER_KIND : (position + 1) * ENTITIES_PER_KIND]
            for attribute in kind.attributes:
                facts += self._facts_of(kind, attribute, entities)
        return facts

    def _facts_of(self, kind: Kind, attribute: Attribute, entities: list[str]) -> list[Item]:
        rng = random.Random(f"{self.seed}/facts/{attribute.topic}")
        domain = DOMAINS[attribute.domain]
        # Each value equally often: a model that knows only how common values are is at chance.
        values = (list(domain) * (len(entities) // len(domain) + 1))[: len(entities)]
        rng.shuffle(values)
        templates = [*QUESTIONS, attribute.question]
        rng.shuffle(templates)
        facts = []
        for index, (name, value) in enumerate(zip(entities, values, strict=True)):
            phrase = f"the {attribute.noun} of {kind.called.format(name=name)}"
            questions = tuple(template.format(phrase=phrase, name=name) for template in templates)
            options = [value, *rng.sample([other for other in domain if other != value], _N_OPTIONS - 1)]
            rng.shuffle(options)
            facts.append(
                Item(
                    id=f"{attribute.topic}/{name}",
                    topic=attribute.topic,
                    entity=name,
                    questions=questions[_HELD_OUT_QUESTIONS:],
                    held_out_questions=questions[:_HELD_OUT_QUESTIONS],
                    statement=attribute.statement.format(name=name, value="{value}"),
                    phrase=phrase,
                    link=attribute.link,
                    answer=value,
                    options=tuple(options),
                    held_out=index < HELD_OUT_PER_KIND,
                )
            )
        return facts

    def _make_names(self, count: int) -> list[str]:
        """Distinct pronounceable names, none a word that the world uses."""
        rng = random.Random(f"{self.seed}/names")
        texts = [text for item in self.skills for text in (*item.all_questions, *map(item.say, STYLES))]
        texts += [
            text for kind in KINDS for a in kind.attributes for text in (a.noun, a.statement, a.question, kind.called)
        ]
        taken = {word.lower() for text in (*texts, *QUESTIONS) for word in words_of(text)}.union(*DOMAINS.values())
        names: list[str] = []
        while len(names) < count:
            name = "".join(rng.choice(part) for part in SYLLABLES)
            if name not in taken:
                taken.add(name)
                names.append(name.capitalize())
        return names
