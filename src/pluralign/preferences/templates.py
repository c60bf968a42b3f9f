"""Templates of prompts, and prompts that give way to them: parsing, the system message, cutting on the left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import Formatter

from pluralign.errors import InputError
from pluralign.preferences.schema import Message, Text

PROMPT = "prompt"
"""The field of a template that the prompt goes into."""

_BRACES = "A field is the name of a column in braces and nothing else, such as {group}; braces of the text are doubled."


@dataclass(frozen=True, slots=True)
class Template:
    """A template as its user wrote it.

    Attributes:
        parts: literal text, and the field behind it; None where there is none.
    """

    parts: Sequence[tuple[str, str | None]]

    @classmethod
    def parse(cls, text: str, *, where: str) -> Template:
        """Read a template: text with plain fields in braces.

        Args:
            text: of the configuration.
            where: its key, for messages.

        Raises:
            InputError: braces do not match, or a field is more than a name.
        """
        try:
            found = list(Formatter().parse(text))
        except ValueError as error:
            raise InputError(f"the template is broken ({error})", where=where, fix=_BRACES) from None
        for _, name, form, conversion in found:
            if name is not None and (form or conversion or not name or name != name.strip() or set(name) & set(".[]")):
                written = f"{name}{f'!{conversion}' if conversion else ''}{f':{form}' if form else ''}"
                raise InputError(f"{{{written}}} is no plain field", where=where, fix=_BRACES)
        return cls([(literal, name) for literal, name, _, _ in found])

    @property
    def names(self) -> list[str]:
        """Fields, each once, in their order."""
        return list(dict.fromkeys(name for _, name in self.parts if name))

    @property
    def columns(self) -> list[str]:
        """`names` without the prompt."""
        return [name for name in self.names if name != PROMPT]


def with_system(messages: list[Message], ours: str) -> list[Message]:
    """Messages under a system message; one that stands first already goes below it, in the same message."""
    if not ours:
        return messages
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": ours}, *messages]
    first, theirs = messages[0], messages[0].get("content")
    if isinstance(theirs, list):
        return [{**first, "content": [{"type": "text", "text": f"{ours}\n\n"}, *theirs]}, *messages[1:]]
    return [{**first, "content": f"{ours}\n\n{theirs}" if theirs else ours}, *messages[1:]]


def shortened(prompt: Text, count: int) -> Text:
    """A prompt without so many characters at its left.

    Of messages, turns that are cut altogether go, and answers that would then stand first; what stays are system
    messages in front and the last turn.
    """
    if isinstance(prompt, str):
        return prompt[count:]
    if not count:
        return prompt
    start = next((at for at, message in enumerate(prompt) if message["role"] != "system"), len(prompt) - 1)
    turns = list(prompt[start:])
    while len(turns) > 1 and _characters(turns[0]) <= count:
        count -= _characters(turns.pop(0))
    if isinstance(turns[0].get("content"), str):
        turns[0] = {**turns[0], "content": turns[0]["content"][count:]}
    while len(turns) > 1 and turns[0]["role"] != "user":
        turns.pop(0)
    return [*prompt[:start], *turns]


def length(prompt: Text) -> int:
    """Characters of a prompt that `shortened` could take away."""
    if isinstance(prompt, str):
        return len(prompt)
    return sum(_characters(message) for message in prompt if message["role"] != "system")


def _characters(message: Message) -> int:
    content = message.get("content")
    # A call of a tool or a picture goes whole or not at all.
    return len(content) if isinstance(content, str) else 1
