"""Rows to preferences: which columns hold the prompt, the two sides, the person; TRL's formats, text or messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pluralign.errors import InputError
from pluralign.preferences.reading import Row, Table
from pluralign.preferences.schema import BadRow, Message, Place, Preference, Preferences, Text, excerpt

KNOWN = frozenset({"prompt", "chosen", "rejected", "base", "base_finished", "user", "group"})
"""Columns that become fields of a `Preference`; `completion`, `label`, `messages` do so where they are the layout."""

Messages = list[Message]

EQUAL_SIDES = "chosen and rejected are equal"

_ANCHORED = "ref_chosen_logps"
"""Column of anchored tables, which hold completions of unpaired preferences as pairs with one side."""

_EXPECTED = (
    "Expected one of: prompt, chosen, rejected; chosen, rejected that begin with the same prompt; "
    "prompt, completion, with label (true or false) or without; messages; prompt, base; "
    "or a published format (hh, dsp, personas, helpsteer2, pandalm)."
)


def to_preferences(table: Table) -> Preferences:
    """Read a table whose columns have the names above; every other column is carried through in `columns`.

    The table is used up: a row of many thousands of people is not held twice.

    Raises:
        InputError: the columns that are needed are not there.
    """
    read = _layout(table)
    preferences = Preferences([], list(table.problems), name=table.name)
    read_identity = _identity_reader(table.columns)
    ids: dict[str | None, str | None] = {}
    table.rows.reverse()
    while table.rows:
        number, row = table.rows.pop()
        place = Place(table.name, number)
        user = None
        try:
            user, group = read_identity(row)
            preference = read(row)
        except BadRow as bad:
            bad.user = bad.user or user
            preferences.problems.append(bad.at(place))
            continue
        # Every row of a person brought a text of its own.
        preference.user, preference.group = ids.setdefault(user, user), ids.setdefault(group, group)
        preference.place = place
        preferences.rows.append(preference)
    preferences.problems.sort(key=lambda problem: problem.place.row)
    return preferences


def read_prompt(row: Row) -> Text:
    """The prompt of a row, whatever else is in it.

    Raises:
        BadRow: there is none, it is empty, or it is neither text nor messages.
    """
    prompt = _text(row, "prompt")
    if prompt is None:
        raise BadRow("prompt", "the row has no prompt", _EMPTY)
    _check_prompt(prompt)
    return prompt


def _layout(table: Table) -> Callable[[Row], Preference]:
    columns = table.columns
    if {"chosen", "rejected"} <= columns:
        needed, used = frozenset({"chosen", "rejected"}), KNOWN
        has_prompt, single = "prompt" in columns, _ANCHORED in columns
        return lambda row: _read_pair(row, needed, used, has_prompt, single)
    if {"prompt", "completion"} <= columns:
        if "label" in columns and _holds_verdicts(table):
            return _read_labelled
        return lambda row: _read_single(row, "completion")
    if "messages" in columns:
        return _read_conversation
    if "prompt" in columns and ("chosen" in columns or "base" in columns):
        return lambda row: _read_single(row, "chosen")
    raise InputError(_missing(columns), where=table.name, fix=_EXPECTED)


def _missing(columns: set[str]) -> str:
    listed = ", ".join(sorted(excerpt(name) for name in columns)[:12])
    found = f"the columns are {listed}: no preferences among them"
    if len(columns) == 1 and any(mark in next(iter(columns)) for mark in ";\t|"):
        found += " (is its separator a comma?)"
    return found


def _read_pair(row: Row, needed: frozenset[str], used: frozenset[str], has_prompt: bool, single: bool) -> Preference:
    prompt = _text(row, "prompt") if has_prompt else None
    chosen, rejected, base = _text(row, "chosen"), _text(row, "rejected"), _base(row)
    if chosen is None and rejected is None:
        if base is None:
            raise BadRow("chosen", "the row has no response", _EMPTY)
    elif (chosen is None or rejected is None) and not single:
        absent = "chosen" if chosen is None else "rejected"
        raise BadRow(absent, "the pair has one side only", f"Give the {absent} response too, or leave the row out.")
    elif chosen == rejected:
        raise BadRow("rejected", EQUAL_SIDES, "Nothing can be learned from such a pair: leave it out.")
    if prompt is None and has_prompt:
        raise BadRow("prompt", "the row has no prompt", _EMPTY)
    if not (isinstance(prompt, str) and isinstance(chosen, str | None) and isinstance(rejected, str | None)):
        prompt, chosen, rejected = _conversational(prompt, chosen, rejected)
    return _preference(row, prompt, chosen, rejected, base, used)


def _read_single(row: Row, column: str) -> Preference:
    prompt, chosen, base = read_prompt(row), _text(row, column), _base(row)
    if chosen is None and base is None:
        raise BadRow(column, "the row has no response", _EMPTY)
    if not (isinstance(prompt, str) and isinstance(chosen, str | None)):
        prompt, chosen = _as_turns(prompt, "user"), chosen and _as_turns(chosen, "assistant")
    return _preference(row, prompt, chosen, None, base, KNOWN | {column})


def _read_labelled(row: Row) -> Preference:
    """A completion with a verdict (TRL's unpaired preferences): a good one is chosen, a bad one rejected."""
    label = _label(row.get("label"))
    if label is None:
        found = "the row has no label" if row.get("label") is None else f"the label is {excerpt(row['label'])}"
        raise BadRow("label", found, "Give true for a good completion, false for a bad one.")
    preference = _read_single(row, "completion")
    preference.columns.pop("label", None)
    if not label:
        preference.chosen, preference.rejected = None, preference.chosen
    return preference


def _holds_verdicts(table: Table) -> bool:
    """Whether `label` says good or bad: true and false somewhere, or 0 and 1 everywhere.

    Labels of other kinds are a column like any other: completions of classes, all of them good ones.
    """
    cells = [cell for _, row in table.rows if (cell := row.get("label")) is not None]
    plain = any(isinstance(cell, bool) or (isinstance(cell, str) and cell in _WORDS) for cell in cells)
    return plain or (bool(cells) and all(_label(cell) is not None for cell in cells))


def _label(cell: Any) -> bool | None:
    """A verdict; None for anything else."""
    if isinstance(cell, str):
        return _VERDICTS.get(cell.strip())
    return bool(cell) if isinstance(cell, int | float) and cell in (0, 1) else None


def _read_conversation(row: Row) -> Preference:
    messages = _text(row, "messages")
    if not isinstance(messages, list):
        raise BadRow("messages", f"the cell holds {excerpt(messages)}, not a list of messages", _MESSAGES)
    if messages[-1]["role"] != "assistant":
        raise BadRow("messages", f"the last turn is of role {excerpt(messages[-1]['role'])}, not assistant", _EMPTY)
    if len(messages) == 1:
        raise BadRow("messages", "the conversation has no prompt before its only turn", _EMPTY)
    return _preference(row, messages[:-1], messages[-1:], None, _base(row), KNOWN | {"messages"})


def _preference(
    row: Row, prompt: Text, chosen: Text | None, rejected: Text | None, base: Text | None, used: frozenset[str]
) -> Preference:
    _check_prompt(prompt)
    if isinstance(prompt, list):
        for column, side in (("chosen", chosen), ("rejected", rejected), ("base", base)):
            if isinstance(side, list):
                _check_response(side, column)
    elif isinstance(base, list):
        raise BadRow("base", "the base response is messages, the prompt is text", _MESSAGES)
    columns = {name: cell for name, cell in row.items() if name not in used and cell is not None}
    finished = _finished(row["base_finished"]) if row.get("base_finished") is not None else True
    return Preference(prompt, chosen, rejected, base=base, base_finished=finished, columns=columns)


def _check_prompt(prompt: Text) -> None:
    if isinstance(prompt, list) and all(_is_blank(message) for message in prompt):
        raise BadRow("prompt", "no turn of the prompt has content", _EMPTY)


def _check_response(messages: Messages, column: str) -> None:
    role = messages[0]["role"]
    if role != "assistant":
        fix = "A prompt that the responses repeat is taken from them where there is no prompt column."
        raise BadRow(column, f"the response begins with a turn of role {excerpt(role)}", fix)
    if _is_blank(messages[-1]):
        raise BadRow(column, "the response is empty", _EMPTY)


def _is_blank(message: Message) -> bool:
    content = message["content"]
    return not (message.get("tool_calls") or content) or (isinstance(content, str) and content.isspace())


# Prompts that are not given apart, or not in the form of the responses


def _conversational(
    prompt: Text | None, chosen: Text | None, rejected: Text | None
) -> tuple[Text, Text | None, Text | None]:
    """The prompt apart from the sides, all in one form: text, or messages where any of them is messages."""
    if chosen is None or rejected is None:
        if prompt is None:
            raise BadRow("chosen", "the row has no prompt: without a pair there is none to take it from", _EMPTY)
        return prompt, chosen, rejected
    if prompt is None and isinstance(chosen, str) and isinstance(rejected, str):
        return _split_text(chosen, rejected)
    if prompt is not None and not (isinstance(prompt, str) and isinstance(chosen, list) and isinstance(rejected, list)):
        return _as_turns(prompt, "user"), _as_turns(chosen, "assistant"), _as_turns(rejected, "assistant")
    chosen, rejected = _as_turns(chosen, "assistant"), _as_turns(rejected, "assistant")
    shared, chosen, rejected = _split_messages(chosen, rejected)
    if prompt is not None and not shared:
        shared = _as_turns(prompt, "user")
    if not shared:
        raise BadRow("chosen", "no prompt is given, and chosen and rejected begin with no turn in common", _NO_PROMPT)
    return shared, chosen, rejected


def _split_text(chosen: str, rejected: str) -> tuple[str, str, str]:
    """The longest common prefix is the prompt; a space at its end goes with the responses, as in TRL."""
    length = _common_length(chosen, rejected)
    if length and chosen[length - 1] == " ":
        length -= 1
    prompt, chosen, rejected = chosen[:length], chosen[length:], rejected[length:]
    if not prompt or prompt.isspace():
        raise BadRow("chosen", "no prompt is given, and chosen and rejected do not begin alike", _NO_PROMPT)
    for column, side in (("chosen", chosen), ("rejected", rejected)):
        if not side or side.isspace():
            raise BadRow(column, "it is where the other side begins, so no response is left after the prompt", _EMPTY)
    return prompt, chosen, rejected


def _common_length(first: str, second: str) -> int:
    # Halving compares slices at C speed; character by character costs more than the rest of the loading.
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _split_messages(chosen: Messages, rejected: Messages) -> tuple[Messages, Messages, Messages]:
    """The common leading messages are the prompt; each side keeps at least its last message."""
    shared = 0
    for left, right in zip(chosen[:-1], rejected[:-1], strict=False):
        if left != right:
            break
        shared += 1
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _as_turns(text: Text, role: str) -> Messages:
    return [{"role": role, "content": text}] if isinstance(text, str) else text


# Cells

_NO_PROMPT = "Give the prompt in a column of its own, or begin both with it."
_EMPTY = "Fill the cell, or leave the row out."
_MESSAGES = 'Messages are a list of objects with a role and a content: [{"role": "user", "content": "..."}].'


def _text(row: Row, column: str) -> Text | None:
    """A cell of text or messages; None where it is missing."""
    cell = row.get(column)
    if isinstance(cell, str):
        if not cell or cell.isspace():
            raise BadRow(column, "the cell is empty", _EMPTY)
        if not cell.isascii():
            check_unicode(cell, column)
        return cell
    if cell is None:
        return None
    if not isinstance(cell, list):
        raise BadRow(column, f"the cell holds {excerpt(cell)}, not text", "Give text, or messages.")
    if not cell:
        raise BadRow(column, "the list of messages is empty", _EMPTY)
    return [_message(message, column, turn) for turn, message in enumerate(cell, 1)]


def _base(row: Row) -> Text | None:
    """What the base model said: kept as it said it, and it may have said nothing."""
    cell = row.get("base")
    if isinstance(cell, str) and (not cell or cell.isspace()):
        return cell
    return _text(row, "base")


def _message(message: Any, column: str, turn: int) -> Message:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise BadRow(column, f"message {turn} is {excerpt(message)}", _MESSAGES)
    content = message.get("content")
    if isinstance(content, str):
        if not content.isascii():
            check_unicode(content, column)
    elif content is None:
        if not message.get("tool_calls"):
            raise BadRow(column, f"message {turn} has no content", _MESSAGES)
    elif not isinstance(content, list):
        raise BadRow(column, f"message {turn} has the content {excerpt(content)}, not text", _MESSAGES)
    # Columnar formats give every message the keys of all: what is null there was never in the message.
    return {key: value for key, value in message.items() if value is not None or key == "content"}


def check_unicode(text: str, column: str, *, user: str | None = None) -> None:
    """Raise `BadRow` where a text has half a surrogate pair in it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        found = f"character {error.start + 1} is the lone surrogate U+{code:04X}, which is no text"
        raise BadRow(column, found, "Half of a pair was cut off where the text was made.", user=user) from None


def _identity_reader(columns: set[str]) -> Callable[[Row], tuple[str | None, str | None]]:
    if "group" in columns:
        has_user = "user" in columns
        return lambda row: _user_and_group(row, has_user=has_user)
    if "user" in columns:
        return lambda row: (_identity(row, "user"), None)
    return lambda row: (None, None)


def _user_and_group(row: Row, *, has_user: bool) -> tuple[str | None, str]:
    user = _identity(row, "user") if has_user else None
    try:
        return user, _identity(row, "group")
    except BadRow as bad:
        bad.user = bad.user or user  # whose row it is stays known, so that the person is reported with it
        raise


def _identity(row: Row, column: str) -> str:
    """An id: any text that is not empty; whole numbers are taken as their decimal text."""
    cell = row.get(column)
    if isinstance(cell, str) and cell:
        if not cell.isascii():
            check_unicode(cell, column, user=cell.encode("utf-8", "backslashreplace").decode())
        return cell
    if isinstance(cell, int) and not isinstance(cell, bool):
        return str(cell)
    if cell is None or cell == "":
        raise BadRow(column, "the id is empty" if cell == "" else f"the row names no {column}, others do", _EMPTY)
    raise BadRow(column, f"the id is {excerpt(cell)}, not text", "An id is text, or a whole number.")


_WORDS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_VERDICTS = {**_WORDS, "1": True, "0": False, "1.0": True, "0.0": False}


def _finished(cell: Any) -> bool:
    if isinstance(cell, bool):
        return cell
    if cell in (0, 1):
        return bool(cell)
    if isinstance(cell, str) and cell in _VERDICTS:
        return _VERDICTS[cell]
    raise BadRow("base_finished", f"the cell holds {excerpt(cell)}", "Give true or false.")
