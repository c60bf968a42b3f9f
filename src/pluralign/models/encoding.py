"""From text or messages to tokens: prompt and responses tokenized apart and joined, cut where they are too long."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from jinja2.exceptions import TemplateError

from pluralign.errors import InputError
from pluralign.preferences.schema import Message, Preference, Text

BRANCHES = ("chosen", "rejected", "base")
_SENTINEL = "plain words"


@dataclass(slots=True)
class Encoded:
    """Tokens of one example.

    Attributes:
        prompt_ids: at least one token.
        response_ids: branch name -> at least one token; branches that the row lacks are not there.
        cut: tokens removed for want of room, by "prompt" or branch name; only where there are any.
    """

    prompt_ids: list[int]
    response_ids: dict[str, list[int]]
    cut: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Rendered:
    """One example as text, ready for the tokenizer; `templated` where the chat template laid it out."""

    prompt: str
    responses: dict[str, str]
    templated: bool


class Encoder:
    """Turns preferences into tokens as one tokenizer and one model take them.

    Plain text: the tokens that the tokenizer itself puts at the front (BOS, where it adds one), the prompt, the
    response, one end-of-sequence token. Messages: the chat template's text up to and with the generation prompt, and
    what it adds for the response, up to the token that ends a turn; the template alone decides on BOS. A response that
    was cut, here or when it was generated, has no end token: the base's own, and one whose row says so in a column
    `chosen_finished` or `rejected_finished`. Such a response stays behind the generation prompt as it is.

    Args:
        tokenizer: with an end-of-sequence token.
        max_prompt_length: tokens a prompt may have; a longer one loses its beginning, less the BOS at the front.
        max_response_length: tokens a response may have, its end token included; a longer one loses its end.
        context_length: positions of the model, or None where it has no limit. A prompt and its longest response share
            them (positions restart after the prompt for each response). Where they do not fit, a prompt of more than
            half is cut further, and then the response.
        chat_template: `always` lays plain text out as one user turn and one assistant turn.

    Raises:
        InputError: the limits leave no room for a prompt and a response, or `always` meets no chat template.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        max_prompt_length: int,
        max_response_length: int,
        context_length: int | None,
        chat_template: Literal["messages", "always"] = "messages",
    ) -> None:
        for key, value in (("max_prompt_length", max_prompt_length), ("max_response_length", max_response_length)):
            if value < 1:
                raise InputError(f"data.{key} is {value}", fix="It must be at least 1.")
        if chat_template == "always" and not tokenizer.chat_template:
            raise InputError(
                "data.chat_template is 'always', and the tokenizer has no chat template",
                fix="Use 'messages', or a model with a chat template.",
            )
        self.tokenizer = tokenizer
        self.max_prompt_length, self.max_response_length = max_prompt_length, max_response_length
        self.context_length, self.chat_template = context_length, chat_template
        self._prefix = _added_prefix(tokenizer)
        if context_length is not None and context_length < len(self._prefix) + 2:
            raise InputError(
                f"the model has {context_length} positions, which leaves no room for a prompt and a response",
                fix="Use a model with a longer context.",
            )

    def prompt_ids(self, prompt: Text) -> list[int]:
        """Tokens of a prompt up to and with the generation prompt, cut on the left.

        Raises:
            InputError: there is no chat template for messages, or no token is left.
        """
        return self.prompts_ids([prompt])[0]

    def prompts_ids(self, prompts: Sequence[Text]) -> list[list[int]]:
        """`prompt_ids` of many prompts, tokenized together."""
        templated = [self._is_templated(prompt) for prompt in prompts]
        texts = [
            self._head(_messages(prompt, "user"), "") if chat else str(prompt)
            for prompt, chat in zip(prompts, templated, strict=True)
        ]
        tokens = self._tokenize(texts)
        room = self.max_prompt_length
        if self.context_length is not None:
            room = min(room, self.context_length - 1)
        return [
            self._cut_prompt(self._with_prefix(tokens[text], chat, ""), room)
            for text, chat in zip(texts, templated, strict=True)
        ]

    def encode(self, preference: Preference, branches: Sequence[str] = BRANCHES) -> Encoded:
        """Tokens of one preference; branches that it lacks are left out.

        Raises:
            InputError: naming the row's place: no chat template for messages, a template that cannot lay them out, a
                prompt or a response without a token.
        """
        return self.encode_many([preference], branches)[0]

    def encode_many(self, preferences: Iterable[Preference], branches: Sequence[str] = BRANCHES) -> list[Encoded]:
        """`encode` of many preferences, each distinct text tokenized once, all together."""
        rows = list(preferences)
        rendered = [self._render(row, branches) for row in rows]
        tokens = self._tokenize([text for one in rendered for text in (one.prompt, *one.responses.values())])
        return [self._assemble(row, one, tokens) for row, one in zip(rows, rendered, strict=True)]

    def _render(self, row: Preference, branches: Sequence[str]) -> _Rendered:
        place = str(row.place)
        responses = {name: text for name, text in row.responses.items() if name in branches}
        if not self._is_templated(row.prompt):
            messages = sorted(name for name, text in responses.items() if not isinstance(text, str))
            if messages:
                raise InputError(
                    f"the prompt is text and {', '.join(messages)} is messages",
                    where=place,
                    fix="Give the prompt as messages too.",
                )
            return _Rendered(str(row.prompt), {name: str(text) for name, text in responses.items()}, templated=False)
        prompt = _messages(row.prompt, "user")
        head = self._head(prompt, place)
        return _Rendered(
            head,
            {
                name: self._turn(prompt, head, name, text, place, generated=_finished(row, name) is not None)
                for name, text in responses.items()
            },
            templated=True,
        )

    def _turn(
        self, prompt: list[Message], head: str, branch: str, response: Text, place: str, *, generated: bool
    ) -> str:
        """What the template adds to the generation prompt for a response, without what ends the turn."""
        # What a model itself said after the generation prompt stays as it said it.
        if generated and isinstance(response, str):
            return response
        full = self._apply(prompt + _messages(response, "assistant"), place, add_generation_prompt=False)
        if not full.startswith(head):
            raise InputError(
                f"the chat template's generation prompt ({head[-40:]!r}) is not how it begins a finished answer",
                where=f"{place}, column {branch!r}",
                fix="Give the rows as text, or the tokenizer a template whose generation prompt opens every answer.",
            )
        turn, ending = full[len(head) :], self._turn_ending[0]
        return turn.removesuffix(ending) if turn.endswith(ending) else turn.rstrip()

    def _assemble(self, row: Preference, rendered: _Rendered, tokens: dict[str, list[int]]) -> Encoded:
        place = str(row.place)
        prompt = self._with_prefix(tokens[rendered.prompt], rendered.templated, place)
        end = self._turn_ending[1] if rendered.templated else [self.tokenizer.eos_token_id]
        responses: dict[str, list[int]] = {}
        for name, text in rendered.responses.items():
            body = tokens[text]
            cut = _finished(row, name) is False
            responses[name] = list(body) if cut or body[-len(end) :] == end else body + end
            if not responses[name]:
                raise InputError("the response has no token", where=f"{place}, column {name!r}")
        return self._fit(prompt, responses)

    def _fit(self, prompt: list[int], responses: dict[str, list[int]]) -> Encoded:
        """Cut to the limits; where prompt and longest response do not fit together, what is over a half gives way."""
        prompt_room, response_room = self.max_prompt_length, self.max_response_length
        if self.context_length is not None:
            kept_for_prompt = min(len(prompt), prompt_room, max(self.context_length // 2, len(self._prefix) + 1))
            response_room = min(response_room, self.context_length - kept_for_prompt)
        kept = {name: tokens[:response_room] for name, tokens in responses.items()}
        if self.context_length is not None:
            longest = max((len(tokens) for tokens in kept.values()), default=1)
            prompt_room = min(prompt_room, self.context_length - longest)
        kept_prompt = self._cut_prompt(prompt, prompt_room)
        removed = {"prompt": len(prompt) - len(kept_prompt)}
        removed |= {name: len(tokens) - len(kept[name]) for name, tokens in responses.items()}
        return Encoded(kept_prompt, kept, {name: count for name, count in removed.items() if count})

    def _cut_prompt(self, tokens: list[int], room: int) -> list[int]:
        """The end of a prompt, with the BOS that stood at its front."""
        if len(tokens) <= room:
            return tokens
        front = self._front(tokens)
        if room <= len(front):
            return tokens[-room:]
        return front + tokens[len(tokens) - (room - len(front)) :]

    def _front(self, tokens: list[int]) -> list[int]:
        if self._prefix and tokens[: len(self._prefix)] == self._prefix:
            return self._prefix
        return tokens[:1] if tokens[0] == self.tokenizer.bos_token_id else []

    def _with_prefix(self, tokens: list[int], templated: bool, place: str) -> list[int]:
        ids = tokens if templated else self._prefix + tokens
        if not ids:
            raise InputError(
                "the prompt has no token",
                where=f"{place}, column 'prompt'" if place else "prompt",
                fix="Something must stand there to predict from.",
            )
        return ids

    def _tokenize(self, texts: Iterable[str]) -> dict[str, list[int]]:
        distinct = list(dict.fromkeys(texts))
        if not distinct:
            return {}
        # verbose: the tokenizer warns of lengths above its own limit, and lengths are counted and cut here.
        ids = self.tokenizer(distinct, add_special_tokens=False, return_attention_mask=False, verbose=False)[
            "input_ids"
        ]
        return dict(zip(distinct, ids, strict=True))

    def _is_templated(self, prompt: Text) -> bool:
        return self.chat_template == "always" or not isinstance(prompt, str)

    def _head(self, prompt: list[Message], place: str) -> str:
        return self._apply(prompt, place, add_generation_prompt=True)

    def _apply(self, messages: list[Message], place: str, *, add_generation_prompt: bool) -> str:
        if not self.tokenizer.chat_template:
            raise InputError(
                "the row has messages, and the tokenizer has no chat template",
                where=place,
                fix="Give prompt and responses as text, or use a model with a chat template.",
            )
        try:
            text = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        # A template meets whatever a row holds: its own complaints and Python's about odd values.
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise InputError(f"the chat template refuses the messages ({error})", where=place) from None
        return str(text)

    @cached_property
    def _turn_ending(self) -> tuple[str, list[int]]:
        """What ends an assistant's turn: as the template writes it, and the tokens that stand for it.

        The tokens go up to the first special one (`<|im_end|>`, `<end_of_turn>`, EOS itself); a template that has none
        there gets EOS.
        """
        turns = [{"role": "user", "content": _SENTINEL}, {"role": "assistant", "content": _SENTINEL}]
        full = self._apply(turns, "", add_generation_prompt=False)
        text = full.rpartition(_SENTINEL)[2]
        ids = self._tokenize([text])[text] if text else []
        special = {self.tokenizer.eos_token_id, *self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder}
        for index, token in enumerate(ids):
            if token in special:
                return text, ids[: index + 1]
        return text, [self.tokenizer.eos_token_id]


def _finished(row: Preference, branch: str) -> bool | None:
    """Whether a response that a model generated ended by itself; None for one that nobody says was generated."""
    if branch == "base":
        return row.base_finished
    found = row.columns.get(f"{branch}_finished")
    return None if found is None else found is not False


def _messages(text: Text, role: str) -> list[Message]:
    return [{"role": role, "content": text}] if isinstance(text, str) else list(text)


def _added_prefix(tokenizer: Any) -> list[int]:
    """Tokens that the tokenizer puts before a plain text (usually BOS, or none); what it puts behind is left out."""
    plain = tokenizer(_SENTINEL, add_special_tokens=False)["input_ids"]
    whole = tokenizer(_SENTINEL)["input_ids"]
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return list(whole[:start])
    return []
