"""What a judge is asked about two responses, and what its answer says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pluralign.annotators.protocol import Request
from pluralign.errors import InputError
from pluralign.fewshot.answers import plain_text
from pluralign.preferences.schema import Text
from pluralign.storage import read_json

Choice = Literal["first", "second", "tie"]
"""Which of the two responses of a question a judge takes."""

DEFAULT_TEMPLATE = """\
A person wrote the prompt below and got two responses to it. Say which of the two this person would prefer.

[The person]
{user}

[The prompt]
{prompt}

[Response A]
{first}

[Response B]
{second}

[End]
Would this person prefer response A or response B? Answer with one word and nothing else: A, B, or TIE if they would \
like both equally.
"""

_NOBODY = "Nobody in particular: judge for people in general."
_NEEDED = ("prompt", "first", "second")
_PLACEHOLDER = re.compile(r"\{(\w+)\}")

_MARKUP = str.maketrans("", "", "*_`\"'“”‘’[](){}<>#")
_LINE = re.compile(
    r"(?:(?:the |my )?(?:final )?(?:answer|verdict|choice|winner|preference|decision|judge?ment)(?: is)?\s*[:=]?\s*)?"
    r"(?:it ?i?s )?(?:(?:the )?(?:response|option|answer) )?"
    r"(?P<said>a tie|tie|a|b)"
    r"(?: is (?:the )?(?:better|best|preferred)(?: (?:response|one|option|answer))?(?: than (?:response )?[ab])?)?"
    r"(?:$|(?P<stop>[.!])(?=\s|$)|\s*[,:;–—-]+(?=\s|$))(?P<rest>.*)",
    re.IGNORECASE,
)
_NAMED = re.compile(r"\b(A|B|TIE)\b")
_CHOICES: dict[str, Choice] = {"a": "first", "b": "second", "tie": "tie", "a tie": "tie"}


@dataclass(frozen=True)
class JudgingPrompts:
    """The questions of a judge.

    Placeholders are filled in literally and once: braces in prompts, responses and profiles stand for themselves, and
    so do those of the template around anything but a single word.

    Attributes:
        template: with `{prompt}`, `{first}` and `{second}`, and `{user}` where the judge is told of the person.
        profiles: person -> a text about them; None where `{user}` is their id.
        source: file of the profiles, for messages.
    """

    template: str = DEFAULT_TEMPLATE
    profiles: Mapping[str, str] | None = None
    source: str = ""
    _parts: Sequence[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Text and names of placeholders take turns.
        object.__setattr__(self, "_parts", _PLACEHOLDER.split(self.template))

    @classmethod
    def of_files(cls, template: str, profiles: str) -> JudgingPrompts:
        """From files; empty names stand for the template above and the people's ids.

        Raises:
            InputError: a file cannot be read, the template lacks a placeholder or has one that nothing stands for, or
                a profile is no text.
        """
        text = _read_template(template) if template else DEFAULT_TEMPLATE
        if profiles and "{user}" not in text:
            raise InputError(
                "the template has no {user}, and annotator.endpoint.profiles is given",
                where=f"annotator.endpoint.template {template}",
                fix="Say where the profile goes, or give none.",
            )
        return cls(text, _read_profiles(profiles) if profiles else None, profiles)

    def question(self, request: Request, first: int, second: int) -> str:
        """What the judge is asked about two responses of a request.

        Half a surrogate pair is no character, and many servers refuse a request that holds one: U+FFFD stands for it.
        Everything else reaches the judge as it is.

        Args:
            request: whose prompt and person it is.
            first: number of the response that the judge knows as A.
            second: number of the one that it knows as B.

        Raises:
            InputError: nothing is known of the person.
        """
        values = {
            "prompt": readable(request.prompt),
            "first": request.responses[first],
            "second": request.responses[second],
            "user": self._profile(request),
        }
        parts = (values[part] if number % 2 else part for number, part in enumerate(self._parts))
        return "".join(map(_well_formed, parts))

    def _profile(self, request: Request) -> str:
        if request.user is None:
            return _NOBODY
        if self.profiles is None:
            return request.user
        if request.user not in self.profiles:
            raise InputError(
                f"there is no text about user {request.user!r}, who is asked for in row {request.row!r}",
                where=f"annotator.endpoint.profiles {self.source}",
                fix="Add one, or leave the person's rows out.",
            )
        return self.profiles[request.user]


def readable(text: Text) -> str:
    """A prompt as the judge reads it: messages below each other, with who said them where there are several."""
    if isinstance(text, str):
        return text
    said = [message for message in text if message.get("content") is not None]
    if len(said) == 1:
        return plain_text(said)
    return "\n\n".join(f"{message.get('role', 'user')}: {plain_text([message])}" for message in said)


def parse_answer(answer: str) -> Choice | None:
    """What a judge says: `A`, `B` or `TIE` on the first or the last line of its answer, or None.

    Small and capital letters, markup, and phrases as `Answer: A` or `Response B is better.` are understood; reasons may
    follow. Where the lines disagree, or a line names several (`A, B`), nothing is guessed. What a model thinks aloud
    before `</think>` is passed over.
    """
    said = answer.rpartition("</think>")[2].partition("<think>")[0]
    lines = [line.strip() for line in said.translate(_MARKUP).splitlines()]
    lines = [line for line in lines if line]
    found = {_parse_line(line) for line in (*lines[:1], *lines[-1:])} - {None}
    return found.pop() if len(found) == 1 else None


def _parse_line(line: str) -> Choice | None:
    match = _LINE.match(line)
    if match is None:
        return None
    choice = _CHOICES[match["said"].lower()]
    others = {_CHOICES[name.lower()] for name in _NAMED.findall(match["rest"])} - {choice}
    # A new sentence may say what is wrong with the other response; the same one may go on to take the choice back.
    return None if others and not match["stop"] else choice


def _read_template(path: str) -> str:
    where = f"annotator.endpoint.template {path}"
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"the file cannot be read ({error.strerror})", where=where) from None
    except UnicodeDecodeError as error:
        raise InputError(f"the file is not UTF-8 ({error})", where=where) from None
    known = (*_NEEDED, "user")
    fix = f"The placeholders are {', '.join(f'{{{name}}}' for name in known)}."
    names = _PLACEHOLDER.findall(text)
    for name in names:
        if name not in known:
            found = f"nothing stands for {{{name}}}"
            raise InputError(found, where=where, fix=f"{fix} A space inside the braces makes them plain text.")
    missing = [f"{{{name}}}" for name in _NEEDED if name not in names]
    if missing:
        raise InputError(f"{' and '.join(missing)} cannot be found", where=where, fix=fix)
    return text


def _read_profiles(path: str) -> dict[str, str]:
    where, fix = f"annotator.endpoint.profiles {path}", 'It is {"person": "a text about them", ...}.'
    try:
        profiles = read_json(path)
    except InputError as error:
        raise InputError(error.found, where=where, fix=fix) from None
    if not isinstance(profiles, dict):
        raise InputError("the file holds no object", where=where, fix=fix)
    for user, text in profiles.items():
        if not isinstance(text, str) or not text.strip():
            found = f"what is said of user {user!r} is {'empty' if isinstance(text, str) else 'no text'}"
            raise InputError(found, where=where, fix=fix)
    return profiles


def _well_formed(text: str) -> str:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
