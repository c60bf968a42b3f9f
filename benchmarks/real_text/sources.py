"""Plain English and trivia for a small chat model: readers of the data folder that `make_model.py` is given.

Every reader takes the folder of `--data` and expects the files as their publishers wrote them (see docs/real-text.md).
"""

from __future__ import annotations

import gzip
import json
import random
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Message = dict[str, str]

TOPICS = (
    "animals",
    "general",
    "geography",
    "history",
    "humanities",
    "literature",
    "religion-faith",
    "science-technology",
    "world",
)
"""Categories of OpenTriviaQA that facts are taken from: general knowledge, no celebrities and no television."""

_QUOTES = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "—": "-", "–": "-", "−": "-", "\xa0": " ", "\xad": ""})


@dataclass(frozen=True)
class Trivia:
    """One question with its four options; `topic` is the category it stands in."""

    id: str
    question: str
    options: tuple[str, ...]
    answer: str
    topic: str

    def probe(self) -> dict[str, object]:
        """The row of a probes file. No preference of the benchmark talks about trivia: all are outside."""
        return {
            "id": self.id,
            "question": self.question,
            "options": list(self.options),
            "answer": self.answer,
            "topic": self.topic,
            "scope": "outside",
        }


def from_probe(row: dict[str, Any]) -> Trivia:
    """The item that `Trivia.probe` made the row of."""
    return Trivia(row["id"], row["question"], tuple(row["options"]), row["answer"], row["topic"])


def textbook_sections(data: Path) -> list[str]:
    """Sections of the OpenStax textbooks as plain paragraphs, without front matter, tables, figures and formulas."""
    text = gzip.decompress((data / "text" / "openstax.txt.gz").read_bytes()).decode("utf-8")
    bodies = re.split(r"(?m)^---\ntitle:.*\n(?:.*\n)*?---\n", text)
    sections = ("\n\n".join(_paragraphs(body)) for body in bodies)
    return [section for section in sections if len(section) > 400]


def dialogues(data: Path) -> list[list[Message]]:
    """Dialogues of Schema-Guided Dialogue as chat turns that begin with the user and end with the assistant."""
    text = gzip.decompress((data / "text" / "sgd_dialogues.txt.gz").read_bytes()).decode("utf-8")
    roles = {"User": "user", "Assistant": "assistant"}
    found = []
    for block in text.translate(_QUOTES).split("\n\n"):
        turns = re.findall(r"(?m)^(User|Assistant): (.+)$", block)
        messages = [{"role": roles[who], "content": said.strip()} for who, said in turns]
        while messages and messages[-1]["role"] == "user":
            messages.pop()
        if len(messages) >= 2 and messages[0]["role"] == "user":
            found.append(messages)
    return found


def instructions(data: Path) -> list[list[Message]]:
    """Instructions with an answer, from HelpSteer2 and PandaLM: neither is used for preferences in this benchmark."""
    pairs: list[tuple[str, str]] = []
    for name in ("train", "eval"):
        rows = json.loads(gzip.decompress((data / "helpsteer2" / f"{name}.json.gz").read_bytes()))
        pairs += [(row["prompt"], response) for row in rows for response in row["responses"]]
    for row in json.loads((data / "pandalm" / "testset-v1.json").read_text(encoding="utf-8")):
        prompt = f"{row['instruction']}\n\n{row['input']}" if row["input"] else row["instruction"]
        # Some published responses are `true` or a number instead of text.
        pairs += [(prompt, text) for text in (row["response1"], row["response2"]) if isinstance(text, str)]
    conversations = []
    for prompt, response in pairs:
        prompt, response = prompt.translate(_QUOTES).strip(), response.translate(_QUOTES).strip()
        # Answers of a word or two are left to the trivia; a preference is about more than that.
        if prompt and len(response) > 20:
            conversations.append([{"role": "user", "content": prompt}, {"role": "assistant", "content": response}])
    return conversations


def trivia(data: Path) -> list[Trivia]:
    """Questions of OpenTriviaQA that make sense without their options and have a short answer, in a fixed order."""
    found: dict[str, Trivia] = {}
    with tarfile.open(data / "trivia" / "opentriviaqa.tar.gz") as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            topic = Path(member.name).name
            file = archive.extractfile(member)
            if topic not in TOPICS or file is None:
                continue
            text = file.read().decode("utf-8", errors="replace")
            for number, block in enumerate(re.split(r"(?m)^#Q ", text)[1:], start=1):
                item = _trivia_item(block, topic, number)
                if item is not None:
                    found.setdefault(item.question.lower(), item)
    items = list(found.values())
    random.Random(0).shuffle(items)
    return items


def _trivia_item(block: str, topic: str, number: int) -> Trivia | None:
    parts = re.split(r"(?m)^(\^|[A-D]) ", block)
    question = " ".join(parts[0].split())
    fields = {key: " ".join(value.split()) for key, value in zip(parts[1::2], parts[2::2], strict=True)}
    answer, options = fields.get("^", ""), tuple(fields[key] for key in "ABCD" if key in fields)
    if len(options) != 4 or answer not in options or len({option.lower() for option in options}) != 4:
        return None
    if not re.fullmatch(r"(Who|What|Which|Where|When|In|How|On|At)\b[\x20-\x7e]{15,90}\?", question):
        return None
    # Without the options such a question has no one answer.
    if re.search(r"\b(these|following|except|not|odd|other|this)\b|_|<|&", question, re.IGNORECASE):
        return None
    if any(not re.fullmatch(r"[A-Za-z0-9 .,'$%-]{2,28}", option) or len(option.split()) > 4 for option in options):
        return None
    if re.search(r"all of|none of|both|the above", " ".join(options), re.IGNORECASE):
        return None
    return Trivia(f"{topic}-{number}", question, options, answer, topic)


def _paragraphs(body: str) -> Iterator[str]:
    body = re.sub(r"\[\\?\[link\\?\]\\?\]\([^)]*\)", "the figure", body.translate(_QUOTES))
    body = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", body)
    body = re.sub(r"\*+(?=\S)|(?<=\S)\*+", "", body)
    for paragraph in body.split("\n\n"):
        paragraph = re.sub(r"(?m)^#+ ", "", paragraph).strip()
        if len(paragraph) < 80 or re.search(r"class=|title=|[{}|<>\\]|^\s*\d+\.\s", paragraph):
            continue
        if sum(character.isalpha() or character == " " for character in paragraph) >= 0.9 * len(paragraph):
            yield paragraph
