"""From a talk to the tokens that a model is asked with: laid out and conditioned as the run's prompts, cut for room."""

from __future__ import annotations

import math
import sys
from typing import NamedTuple

from pluralign.answers import CONDITIONS
from pluralign.chat_config import ChatConfig
from pluralign.config import TrainConfig
from pluralign.errors import InputError
from pluralign.models import Base, Encoder, context_length
from pluralign.preferences import Message, Place, Preference, Text
from pluralign.preferences.conditioning import Conditioner
from pluralign.preferences.templates import length, shortened

NANO = "nano"
"""The model in the package has learned questions of a single turn."""


class Asked(NamedTuple):
    """A talk as tokens.

    Attributes:
        tokens: up to and with the generation prompt.
        cut: characters that had no room, from the beginning of the talk on.
        line_cut: how many of them are of the last line itself.
    """

    tokens: list[int]
    cut: int
    line_cut: int


class Asking:
    """Lays talks out.

    Args:
        base: whose tokenizer, chat template and context they are for.
        trained: the run's configuration: what it puts into prompts of the person.
        config: values for that, and whether lines are taken as they are.

    Attributes:
        turns: whether lines are turns of the chat template.
        remembers: whether they are asked with the talk before them.

    Raises:
        InputError: a value has no place in the run's prompts, or one that they need is not given.
    """

    def __init__(self, base: Base, trained: TrainConfig, config: ChatConfig) -> None:
        self.turns = bool(base.tokenizer.chat_template) and not config.plain
        history = trained.model != NANO if config.history is None else config.history
        self.remembers = self.turns and history
        self._given = {name: value for name in CONDITIONS if (value := getattr(config, name)) is not None}
        self._conditioner = Conditioner.of(trained.conditioning, base.tokenizer)
        self._check(absent=trained.conditioning.absent)
        # Without limits of its own: what has no room is cut here, where whole turns can go.
        self._encoder = Encoder(
            base.tokenizer,
            max_prompt_length=sys.maxsize,
            max_response_length=sys.maxsize,
            context_length=None,
            chat_template=trained.data.chat_template,
        )
        context = context_length(base.model)
        wanted = config.generation.max_new_tokens
        self._room = sys.maxsize if context is None else context - min(wanted, context // 2)

    def asked(self, talk: list[Message], line: str) -> Asked:
        """The tokens of a talk with a new line behind it.

        Raises:
            InputError: what the run puts into prompts leaves the line no room, or the chat template refuses the talk.
        """
        before = talk if self.remembers else []
        prompt: Text = [*before, {"role": "user", "content": line}] if self.turns else line
        earlier = length(prompt) - len(line)
        cut = 0
        while True:
            tokens = self._tokens(shortened(prompt, cut))
            over = len(tokens) - self._room
            if over <= 0:
                return Asked(tokens, cut, max(0, cut - earlier))
            left = length(prompt) - cut
            if left <= 1:
                found = f"what stands before every line leaves it no room ({len(tokens)} tokens of {self._room})"
                raise InputError(found, fix="Shorten what the prompt says of the person, or generation.max_new_tokens.")
            cut += min(left - 1, max(1, math.ceil(over * left / len(tokens))))

    def _tokens(self, prompt: Text) -> list[int]:
        rows = [_row(prompt)]
        if self._conditioner.active:
            rows = self._conditioner.prompts(rows, self._given)
        return self._encoder.encode_many(rows, branches=())[0].prompt_ids

    def _check(self, *, absent: str | None) -> None:
        if not self._conditioner.active:
            for name in self._given:
                raise InputError("the run does not condition prompts", where=f"--{name}", fix="Leave it out.")
            return
        row = _row([{"role": "user", "content": "?"}] if self.turns else "?")
        if not self._conditioner.covers(row):
            kinds = ("messages", "text") if self.turns else ("text", "messages")
            found = "lines are {}, and the run conditions prompts of {} only".format(*kinds)
            raise InputError(found, fix="With --plain lines are text, and without it messages.")
        needed = self._conditioner.needed([row])
        for name in self._given:
            if name not in needed:
                raise InputError("the run puts nothing of it into prompts", where=f"--{name}", fix="Leave it out.")
        for name in needed:
            if absent is None and not self._given.get(name, "").strip():
                fix = f"Give --{name}." if name in CONDITIONS else "A talk cannot give it."
                raise InputError(f"the run puts {{{name}}} into prompts, and it is not given", fix=fix)


def _row(prompt: Text) -> Preference:
    return Preference(prompt, None, None, place=Place("the line", 1))
