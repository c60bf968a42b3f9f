"""`pluralign chat`: what is typed, what is shown, and the talk, with stand-ins for those who answer."""

import io
import re
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from pluralign.chat import asking, lines
from pluralign.chat.screen import Columns, printable, wrapped
from pluralign.chat.talk import Interrupts, Talk
from pluralign.errors import InputError

RED = "\x1b[31mred"
words = st.text(st.one_of(st.sampled_from("ab  \n日é"), st.characters()), max_size=80)


# ---- what is shown ----


@given(st.text())
def test_nothing_but_line_breaks_reaches_a_terminal(text):
    shown = printable(text)
    assert all(character.isprintable() or character in "\n\u200c\u200d" for character in shown)
    assert printable(shown) == shown


def test_what_is_shown_of_control_characters_spaces_and_emoji():
    assert printable("a\x1b[2Jb\x07\r\nc\td\u202e\xa0e") == "a\\x1b[2Jb\\x07\nc   d\\u202e e"
    assert printable("👩\u200d🚀 é 日本") == "👩\u200d🚀 é 日本"


@given(words, st.integers(4, 30), st.integers(0, 80))
def test_lines_fit_lose_no_word_and_only_the_last_one_changes(text, width, cut):
    text = printable(text)
    whole, part = wrapped(text, width), wrapped(text[:cut], width)
    assert all(cell_len(line) <= width for line in whole)
    assert "".join(whole).replace(" ", "") == re.sub("[ \n]", "", text)
    assert whole[: len(part) - 1] == part[:-1]


class Paper:
    """A terminal that knows line breaks and carriage returns, and nothing else."""

    def __init__(self):
        self.rows = [""]

    def write(self, text):
        for piece in re.findall(r"\r|\n|[^\r\n]+", text):
            if piece == "\n":
                self.rows.append("")
            elif piece != "\r":
                assert cell_len(piece) >= cell_len(self.rows[-1])
                self.rows[-1] = piece


@given(words, words, st.lists(st.booleans(), max_size=60), st.integers(45, 90))
def test_columns_end_as_the_whole_texts_however_they_grew(left, right, order, width):
    texts, seen, paper = [left, right], [0, 0], Paper()
    columns = Columns(["base", "ann"], paper.write, width)
    for second in order:
        seen[second] += 3
        said = [text[:end] for text, end in zip(texts, seen, strict=True)]
        columns.grow(said, [end >= len(text) for text, end in zip(texts, seen, strict=True)])
    columns.grow(texts, [True, True])
    rows = [[cell.rstrip() for cell in row.split(" │ ")] for row in paper.rows[2:-1]]
    for number, text in enumerate(texts):
        expected = [line.rstrip() for line in wrapped(printable(text), columns.width)]
        # A text may hold the line between columns itself.
        if "│" not in left + right:
            assert [row[number] for row in rows][: len(expected)] == expected
    assert max(map(cell_len, paper.rows)) < width


# ---- what is typed ----


def piped(content):
    found, source = [], lines.PipedLines(io.BytesIO(content))
    while (line := source.read()) is not None:
        found.append(line)
    return found


def test_a_pipe_is_read_line_by_line():
    assert [line.text for line in piped("one\r\n\nzwölf\nend".encode())] == ["one", "", "zwölf", "end"]
    assert piped(b"") == []


def test_bytes_that_are_no_utf8_are_replaced_and_said():
    (line,) = piped(b"caf\xe9 \xff\xfe!\n")
    assert line.text == "caf\ufffd \ufffd\ufffd!"
    assert line.notices == ["bytes of the line that are no UTF-8 were replaced: 3"]


def test_a_line_of_any_length_is_cut_and_said():
    first, second = piped(b"x" * 3_000_000 + b"the end\nnext")
    assert len(first.text) == lines.MOST and first.text.endswith("xthe end")
    assert first.notices == ["the line is too long, and its last 100000 characters are taken"]
    assert second == lines.Line("next")
    (cut,) = piped(b"\xc3\xa9" * 1_000_001)
    assert cut.text == "é" * lines.MOST and len(cut.notices) == 1


# ---- a talk, with stand-ins for those who answer ----


class Echo:
    """Answers with the line, and notes what it was asked."""

    def __init__(self, apart=False, during=lambda: None):
        self.apart, self.during = apart, during
        self.taken, self.seen = [], []

    def take(self, folder):
        self.taken.append(folder)
        if folder is not None and folder.name == "broken":
            raise InputError("it is broken")

    @property
    def together(self):
        if not self.taken or self.taken[-1] is None:
            return [[0]]
        return [[0], [1]] if self.apart else [[0, 1]]

    def answer(self, members, prompts, grow, stopped):
        self.during()
        self.seen += prompts
        said = [
            f"{'ab'[number]}{len(prompt)}" + "!" * stopped() for number, prompt in zip(members, prompts, strict=True)
        ]
        grow(said, [True] * len(said))
        return said


class Layout:
    """Stands for tokens with the talk itself."""

    remembers = True

    def asked(self, talk, line):
        return asking.Asked([*(turn["content"] for turn in talk), line], 0, 0)


class Given:
    """Lines that are given, as if somebody typed them."""

    def __init__(self, *texts, terminal=False):
        self.texts, self.terminal = list(texts), terminal

    def read(self):
        text = self.texts.pop(0) if self.texts else None
        if text is KeyboardInterrupt:
            raise text
        return None if text is None else lines.Line(text)


def talk(*texts, speakers=None, people=("ann", "bob", "broken"), terminal=False, skipped=None):
    made = Talk(
        {name: Path(name) for name in people},
        speakers or Echo(),
        Layout(),
        Given(*texts, terminal=terminal),
        run="runs/x",
        skipped=skipped,
    )
    made.greet("nano", next(iter(people), None))
    made.run()
    return made


def test_base_and_person_have_the_talk_with_answers_of_their_own(capsys):
    echo = Echo()
    talk("one", "two", speakers=echo)
    assert echo.seen == [["one"], ["one"], ["one", "a1", "two"], ["one", "b1", "two"]]
    assert capsys.readouterr().out == "base: a1\nann: b1\nbase: a3\nann: b3\n"


def test_whoever_is_taken_takes_up_the_talk_as_the_base_had_it(capsys):
    echo = Echo(apart=True)
    made = talk("one", "/person bob", "two", "/base", "three", "/reset", "four", speakers=echo)
    assert echo.seen[2:4] == [["one", "a1", "two"], ["one", "a1", "two"]]
    assert echo.seen[4:] == [["one", "a1", "two", "a3", "three"], ["four"]]
    assert [folder and folder.name for folder in echo.taken] == ["ann", "bob", None]
    assert made.person is None
    assert capsys.readouterr().err == "(bob is beside the base)\n(the base is alone)\n(the talk begins anew)\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/person bo", "runs/x: nobody has the id 'bo'. Did you mean 'bob'?"),
        ("/person", "ann answers beside the base. /person NAME takes another"),
        ("/person broken", "(the base is alone)\n(it is broken)"),
        ("/peopl", "no command /peopl. Did you mean /people? /help lists them"),
        ("/\x1b[2J", "no command /\\x1b[2J. /help lists them"),
    ],
)
def test_what_cannot_be_done_is_said_and_the_talk_goes_on(line, said, capsys):
    talk(line, "one")
    output = capsys.readouterr()
    assert said in output.err and "base: a1\n" in output.out


def test_commands_show_people_and_themselves(capsys):
    talk("/people", "/help", "//one", "  ", "/quit", "two", skipped={"ed": "no\nrows"})
    output = capsys.readouterr().out
    assert output.startswith("* ann\n  bob\n  broken\n- ed: no\\nrows\n/person  NAME: ")
    assert output.endswith("base: a1\nann: b1\n") and output.count("base:") == 1
    talk("/people", people=[f"p{number}" for number in range(60)])
    assert "and 10 more" in capsys.readouterr().out


def test_an_interrupt_stops_an_answer_and_not_the_talk(capsys):
    echo = Echo(apart=True, during=lambda: signal.raise_signal(signal.SIGINT))
    before = signal.getsignal(signal.SIGINT)
    talk("one", "two", speakers=echo, terminal=True)
    output = capsys.readouterr()
    # The person was not asked any more; what was said stays in the talk.
    assert echo.seen == [["one"], ["one", "a1!", "two"]]
    assert output.err.count("(stopped)") == 2
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_where_nobody_answers_drops_the_line_on_a_terminal_alone(capsys):
    talk(KeyboardInterrupt, "one", terminal=True)
    assert "base: a1" in capsys.readouterr().out
    with pytest.raises(KeyboardInterrupt):
        talk(KeyboardInterrupt, "one")
    with Interrupts(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_completions_are_commands_and_names_in_any_case():
    made = talk(people=["Ann", "anton", "bob", "a\nb"])
    assert made.completions("/pe") == ["/person ", "/people"]
    assert made.completions("/person AN") == ["/person Ann", "/person anton"]
    assert made.completions("/person  a\\n") == ["/person a\\nb"]
    assert made.completions("hello") == made.completions("") == []


def test_names_that_no_terminal_takes_are_typed_as_they_are_shown(capsys):
    made = talk("/person \\x1b[31mred", people=["ann", RED])
    assert made.user == RED and made.person.name == "\\x1b[31mred"


def test_a_run_without_people_has_its_base(capsys):
    talk("one", people=[])
    output = capsys.readouterr()
    assert output.out == "base: a1\n" and "nobody has an adapter" in output.err
