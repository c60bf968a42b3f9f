"""`pluralign chat` on a run of a tiny model: who answers, what is asked; on a pipe and on a terminal."""

import fcntl
import io
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import textwrap
from pathlib import Path

import pytest
import torch

from pluralign.chat import asking, chat, speakers
from pluralign.chat.screen import printable
from pluralign.chat_config import ChatConfig
from pluralign.cli import main
from pluralign.config import (
    ConditioningConfig,
    DataConfig,
    GenerationConfig,
    ParametersConfig,
    TrainConfig,
)
from pluralign.errors import InputError
from pluralign.evaluation.policies import opened_policies
from pluralign.models import generate, load_base
from pluralign.models.adapters import detach_adapter, new_adapter, save_adapter
from pluralign.models.anchoring import encoder_of
from pluralign.preferences import folder_name
from pluralign.resolve import as_yaml
from pluralign.training.index import write_index

USERS = ["ann", "Ben Ü", "\x1b[31mred"]
SETTINGS = GenerationConfig(max_new_tokens=12)


@pytest.fixture
def run(make_base, tmp_path):
    """A function that leaves a run of three people whose adapters are noise."""

    def make(**changes):
        base = make_base()
        with torch.no_grad():
            # Nobody ends an answer early.
            base.model.get_output_embeddings().weight[base.tokenizer.eos_token_id] = 0
        base.model.save_pretrained(tmp_path / "base")
        if changes.pop("plain", False):
            base.tokenizer.chat_template = None
        base.tokenizer.save_pretrained(tmp_path / "base")
        settings = {"data": DataConfig(max_prompt_length=128), "parameters": ParametersConfig(rank=2), **changes}
        config = TrainConfig(model=str(tmp_path / "base"), device="cpu", output_dir=str(tmp_path / "run"), **settings)
        base = load_base(config)
        for number, user in enumerate(USERS):
            policy = new_adapter(base, config.parameters, seed=number)
            torch.manual_seed(number)
            for name, weights in policy.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(weights, std=0.5)
            save_adapter(policy, tmp_path / "run" / "adapters" / folder_name(user), base=base, user=user)
            detach_adapter(policy)
        write_index(config.output_dir, {user: folder_name(user) for user in USERS}, {"ed": "no rows"})
        (tmp_path / "run" / "config.yaml").write_text(as_yaml(config))
        return config

    return make


def folders_of(config):
    return [Path(config.output_dir) / "adapters" / folder_name(user) for user in USERS]


def both(made, prompts, stopped=lambda: False):
    """Everybody's answers, and how they grew."""
    said, grown = [], []
    for members in made.together:
        some = [prompts[number] for number in members]
        said += made.answer(members, some, lambda texts, done: grown.append((texts, done)), stopped)
    return said, grown


def test_answers_are_those_of_generate_and_grow_in_the_same_forwards(run, count_forwards):
    base = load_base(run())
    prompts = [list(b"Why is it so?"), list(b"Who?")]
    (alone,) = generate(base.model, base.tokenizer, prompts[:1], SETTINGS)
    folders = folders_of(run())
    with opened_policies(base, folders) as (policies, _):
        of_people = generate(policies.model, base.tokenizer, [prompts[1]] * 3, SETTINGS, around=policies.rows_of)
    with speakers.Speakers(base, SETTINGS) as made:
        assert both(made, prompts)[0] == [alone.text]
        forwards = count_forwards(base.model)
        for folder, expected in zip(folders, of_people, strict=True):
            made.take(folder)
            said, grown = both(made, prompts)
            assert said == [alone.text, expected.text] and alone.text != expected.text
            assert len(grown) == SETTINGS.max_new_tokens + 1 and grown[-1] == (said, [True, True])
            assert all(text.startswith(one) for texts, _ in grown for text, one in zip(said, texts, strict=True))
        assert forwards == [2] * 3 * SETTINGS.max_new_tokens
    (again,) = generate(base.model, base.tokenizer, prompts[:1], SETTINGS)
    assert again == alone


def test_what_no_bank_takes_answers_after_the_base(run):
    config = run()
    base, (folder, *_) = load_base(config), folders_of(config)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "use_rslora": True}))
    prompts = [list(b"Why?"), list(b"Why?")]
    with speakers.Speakers(base, SETTINGS) as made:
        (alone,), _ = both(made, prompts)
        made.take(folder)
        assert made.together == [[0], [1]]
        said, _ = both(made, prompts)
        assert said[0] == alone != said[1]
        made.take(None)
        assert both(made, prompts)[0] == [alone]


def test_a_fully_trained_model_answers_after_the_base(run, make_base, tmp_path):
    base = load_base(run())
    other = make_base(seed=1)
    other.model.save_pretrained(tmp_path / "model")
    other.tokenizer.save_pretrained(tmp_path / "model")
    prompts = [list(b"Why?"), list(b"Why?")]
    expected = [
        one.text
        for model in (base.model, other.model)
        for one in generate(model, base.tokenizer, prompts[:1], SETTINGS)
    ]
    with speakers.Speakers(base, SETTINGS) as made:
        made.take(tmp_path / "model")
        assert both(made, prompts)[0] == expected and expected[0] != expected[1]


def test_an_answer_stops_when_it_is_enough_and_samples_differ(run):
    config = run()
    base = load_base(config)
    prompts = [list(b"Why?"), list(b"Why?")]
    with speakers.Speakers(base, GenerationConfig(max_new_tokens=12, do_sample=True, top_k=50), seed=3) as made:
        made.take(folders_of(config)[0])
        state = torch.get_rng_state()
        first, second = both(made, prompts)[0], both(made, prompts)[0]
        assert first != second and torch.equal(state, torch.get_rng_state())
        calls = []
        said, grown = both(made, prompts, stopped=lambda: bool(calls.append(0)) or len(calls) == 3)
        assert len(grown) == 4 and grown[-1] == (said, [True, True])


def test_a_folder_that_is_broken_leaves_the_base_alone(run):
    config = run()
    base, (folder, other, _) = load_base(config), folders_of(config)
    (folder / "adapter_model.safetensors").unlink()
    with speakers.Speakers(base, SETTINGS) as made:
        made.take(other)
        with pytest.raises(InputError, match=re.escape(str(folder))):
            made.take(folder)
        assert made.together == [[0]]


def test_a_talk_that_has_no_room_loses_its_beginning(run):
    config = run(data=DataConfig(max_prompt_length=16))
    base = load_base(config)
    made = asking.Asking(base, config, ChatConfig(generation=GenerationConfig(max_new_tokens=100)))
    turns = [
        {"role": role, "content": f"{role[0]}{number}" * 8} for number in range(6) for role in ("user", "assistant")
    ]
    short = made.asked(turns[:2], "Why?")
    # The run's limits are of its training.
    assert base.tokenizer.decode(short.tokens).startswith("<|user|>u0") and short.cut == short.line_cut == 0
    long = made.asked(turns, "Why?")
    text = base.tokenizer.decode(long.tokens)
    assert len(long.tokens) <= 156 and text.startswith("<|user|>") and text.endswith("<|user|>Why?<eos><|assistant|>")
    assert long.cut > 0 == long.line_cut
    flood = made.asked(turns, "x" * 5000 + "end")
    assert 0 < len(flood.tokens) <= 156 and "xend<eos>" in base.tokenizer.decode(flood.tokens)
    bare = asking.Asking(base, config, ChatConfig(history=False)).asked(turns, "Why?")
    assert base.tokenizer.decode(bare.tokens) == "<|user|>Why?<eos><|assistant|>"
    assert flood.line_cut == flood.cut - sum(len(turn["content"]) for turn in turns) > 4000


@pytest.mark.parametrize(
    ("conditioning", "keys", "named"),
    [
        ({}, {"group": "law"}, "--group: the run does not condition prompts"),
        ({"system": "{user_info}"}, {}, r"\{user_info\} into prompts, and it is not given\. Give --user_info"),
        ({"system": "{age}"}, {}, "A talk cannot give it"),
        ({"system": "{user_info}"}, {"user_info": "x", "group": "y"}, "--group: the run puts nothing of it"),
        ({"template": "{group}{prompt}"}, {"group": "law"}, "lines are messages, .* of text only"),
        ({"system": "{group}"}, {"group": "law", "plain": True}, "lines are text, .* of messages only"),
    ],
)
def test_values_that_do_not_belong_or_are_lacking_are_named(run, conditioning, keys, named):
    config = run(conditioning=ConditioningConfig(**conditioning))
    with pytest.raises(InputError, match=named):
        asking.Asking(load_base(config), config, ChatConfig(**keys))


def test_lines_are_conditioned_as_the_runs_prompts(run):
    config = run(conditioning=ConditioningConfig(system="{user_info}"))
    base = load_base(config)
    made = asking.Asking(base, config, ChatConfig(user_info="I keep bees.<eos>"))
    text = base.tokenizer.decode(made.asked([], "Why?").tokens)
    assert text == "<|system|>I keep bees.< eos><eos><|user|>Why?<eos><|assistant|>"
    tight = asking.Asking(base, config, ChatConfig(user_info="bees " * 60))
    with pytest.raises(InputError, match="leaves it no room"):
        tight.asked([], "Why?")


def test_printf_hello_and_a_pipe(run, monkeypatch, capsys):
    config = run(plain=True)
    base = load_base(config)
    ids = encoder_of(base, config.data).prompt_ids("hello")
    (expected,) = generate(base.model, base.tokenizer, [ids], SETTINGS)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hello\n/person Ben \xc3\x9c\nhello"), "utf-8"))
    chat(ChatConfig(run=config.output_dir, device="cpu", generation=SETTINGS))
    output = capsys.readouterr()
    assert output.out.count(f"base: {printable(expected.text)}\n") == 2
    assert "\nann: " in output.out and "\nBen Ü: " in output.out
    assert "(each line is asked by itself)" in output.err
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b""), "utf-8"))
    for keys, named in (({"user": "an"}, "Did you mean 'ann'"), ({"run": "absent"}, "absent: there is no config.yaml")):
        with pytest.raises(InputError, match=named):
            chat(ChatConfig(**{"run": config.output_dir, "device": "cpu", **keys}))


def test_without_a_run_the_nano_model_answers_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"What is the gem of Rarvun?\n"), "utf-8"))
    assert main(["chat", "--device", "cpu"]) == 0
    output = capsys.readouterr()
    assert output.out.startswith("base: ") and "turquoise" in output.out
    assert "no run in runs/train or runs/demo (`pluralign demo` makes one): nobody has an adapter" in output.err
    assert main(["chat", "x"]) == 2
    assert "x: there is no config.yaml" in capsys.readouterr().err


# ---- a terminal ----

SCRIPT = """
import fcntl, sys, termios, time
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from pluralign.chat import chat, speakers
from pluralign.chat_config import ChatConfig
from pluralign.config import GenerationConfig
enough = speakers._Stopped.__call__
said = 0
def unhurried(self, input_ids, scores, **other):
    global said
    said += 1
    # A long answer does not end by itself: the interrupt finds it under way, however slow either side is.
    while said % 20 == 0 and not self._stopped():
        time.sleep(0.01)
    return enough(self, input_ids, scores, **other)
speakers._Stopped.__call__ = unhurried
chat(ChatConfig(run=sys.argv[1], device="cpu", generation=GenerationConfig(max_new_tokens=int(sys.argv[2]))))
print("LEFT", flush=True)
"""


class Terminal:
    """A program on a pseudo-terminal."""

    def __init__(self, *arguments, width=100):
        self.end, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 30, width, 0, 0))
        environment = {**os.environ, "TERM": "xterm", "LC_ALL": "C.UTF-8", "INPUTRC": os.devnull}
        self.program = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *arguments],
            **dict.fromkeys(("stdin", "stdout", "stderr"), other),
            start_new_session=True,
            env={key: value for key, value in environment.items() if key not in ("COLUMNS", "LINES")},
        )
        os.close(other)
        self.seen = b""

    def send(self, content):
        os.write(self.end, content)

    def until(self, pattern, seconds=240):
        """What comes up to and with a pattern."""
        while not (found := re.search(pattern, self.seen)):
            assert select.select([self.end], [], [], seconds)[0], self.seen
            try:
                self.seen += os.read(self.end, 65536)
            except OSError:
                raise AssertionError(f"it has ended: {self.seen!r}") from None
        head, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return head

    def close(self):
        os.close(self.end)
        self.program.kill()
        self.program.wait()


@pytest.fixture
def terminal(run):
    """A function that opens a talk on a terminal; all are closed at the end."""
    opened = []

    def make(tokens, **keys):
        opened.append(Terminal(run().output_dir, str(tokens), **keys))
        opened[-1].until(rb"/help says.*\n")
        opened[-1].until(rb"> ")
        return opened[-1]

    yield make
    for one in opened:
        one.close()


@pytest.mark.slow
def test_on_a_terminal_answers_grow_names_are_completed_and_interrupts_stop(terminal):
    there = terminal(150)
    there.send(b"hello\n")
    there.until("base +│ ann".encode())
    there.until(b"\r[^\n]+\r")
    there.send(b"\x03")
    there.until(rb"\(stopped\)")
    there.until(rb"> ")
    # Between the prompt and its first look at the keys Python notes a Ctrl-C, and acts when the line has come: with the
    # line's end it is the same in either case.
    there.send(b"\x03\n")
    there.until(rb"/quit or Ctrl-D leaves")
    there.send(b"/person be\t\n")
    there.until("Ben Ü is beside the base".encode())
    there.until(rb"> ")
    there.send(b"caf\xff\n")
    there.until(rb"no UTF-8 were replaced: 1")
    said = there.until("base +│ Ben Ü".encode()) + there.until(b"\r[^\n]+\r")
    assert not re.search(rb"[\x00-\x06\x0b\x0c\x0e-\x1a\x1c-\x1f]", said)
    there.send(b"\x03")
    there.until(rb"\(stopped\)")
    there.until(rb"> ")
    there.send(b"\x04")
    there.until(rb"LEFT")
    assert there.program.wait(timeout=240) == 0


@pytest.mark.slow
def test_a_narrow_terminal_gets_answers_below_each_other(terminal):
    there = terminal(5, width=30)
    there.send(b"hello\n")
    there.until(rb"base: [^\n]*\nann: ")
    there.until(rb"> ")
    there.send(b"/quit\n")
    there.until(rb"LEFT")


@pytest.mark.slow
def test_a_reader_who_has_seen_enough_is_no_error(run):
    code = textwrap.dedent(SCRIPT).replace("fcntl.ioctl(0, termios.TIOCSCTTY, 0)", "")
    command = [sys.executable, "-c", code, run().output_dir, "5"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        program.stdout.close()
        program.stdin.write(b"hello\n" * 3)
        program.stdin.close()
        error = program.stderr.read().decode()
    assert "Traceback" not in error and "BrokenPipe" not in error, error
