"""From text and messages to tokens, with a tokenizer of one token a character: lengths can be read off the text."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from pluralign.errors import InputError
from pluralign.models.encoding import Encoder
from pluralign.preferences.schema import Place, Preference

GOLDEN = Path(__file__).parent.parent / "golden"
SPECIAL = ("<pad>", "<s>", "</s>", "<|start|>", "<|end|>")

CHATML = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
LLAMA = (
    "<s>{% for m in messages %}{% if m['role'] == 'assistant' %} {{ m['content'] | trim }}</s>"
    "{% else %}[{{ m['role'] }}] {{ m['content'] }} [/]{% endif %}{% endfor %}"
)
THINKING = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think></think>{% endif %}{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
REWRITING = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>{% endif %}")
UNMARKED = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
ALTERNATING = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('a user must begin') }}{% endif %}" + CHATML


def make_tokenizer(*, bos: bool = False, template: str | None = None, eos: str = "</s>") -> Any:
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *string.printable])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token=eos,
        pad_token="<pad>",
        additional_special_tokens=["<|start|>", "<|end|>"],
    )
    fast.chat_template = template
    return fast


def make_encoder(
    tokenizer: Any, prompt: int = 512, response: int = 512, context: int | None = None, **keys: Any
) -> Encoder:
    return Encoder(tokenizer, max_prompt_length=prompt, max_response_length=response, context_length=context, **keys)


def text(tokenizer: Any, ids: list[int]) -> str:
    return "".join(tokenizer.convert_ids_to_tokens(ids))


def user(content: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def assistant(content: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": content}]


def test_the_golden_pairs_get_the_tokens_that_trl_trained_on() -> None:
    golden = json.loads((GOLDEN / "dpo_trajectory.json").read_text())
    encoder = make_encoder(AutoTokenizer.from_pretrained(GOLDEN / "dpo_trajectory"), context=256)
    encoded = encoder.encode_many([Preference(**pair) for pair in golden["pairs"]])
    assert len(encoded) == 24
    for have, want in zip(encoded, golden["token_ids"], strict=True):
        assert have.prompt_ids == want["prompt_ids"]
        assert have.response_ids == {"chosen": want["chosen_ids"], "rejected": want["rejected_ids"]}
        assert have.cut == {}


@pytest.mark.parametrize("bos", [False, True])
def test_plain_text_has_the_tokenizers_own_bos_once_and_one_eos(bos: bool) -> None:
    tokenizer = make_tokenizer(bos=bos, template=CHATML)
    encoded = make_encoder(tokenizer).encode(Preference("Why?", " So.", "No", base="Oh"))
    assert text(tokenizer, encoded.prompt_ids) == ("<s>" if bos else "") + "Why?"
    assert {name: text(tokenizer, ids) for name, ids in encoded.response_ids.items()} == {
        "chosen": " So.</s>",
        "rejected": "No</s>",
        "base": "Oh</s>",
    }


def test_a_text_that_ends_with_eos_gets_no_second_one() -> None:
    tokenizer = make_tokenizer()
    encoded = make_encoder(tokenizer).encode(Preference("a", "b</s>", "c"))
    assert text(tokenizer, encoded.response_ids["chosen"]) == "b</s>"


def test_a_base_response_that_was_cut_has_no_eos() -> None:
    tokenizer = make_tokenizer(template=CHATML)
    encoder = make_encoder(tokenizer)
    plain = encoder.encode(Preference("a", "b", "c", base="and so", base_finished=False))
    chat = encoder.encode(Preference(user("a"), None, None, base="and so", base_finished=False))
    assert text(tokenizer, plain.response_ids["base"]) == text(tokenizer, chat.response_ids["base"]) == "and so"
    assert text(tokenizer, plain.response_ids["chosen"]) == "b</s>"


def test_only_the_branches_asked_for_that_are_there() -> None:
    encoder = make_encoder(make_tokenizer())
    assert set(encoder.encode(Preference("a", "b", None)).response_ids) == {"chosen"}
    assert set(encoder.encode(Preference("a", "b", "c", base="d"), ("rejected", "base")).response_ids) == {
        "rejected",
        "base",
    }
    assert encoder.encode(Preference("a", None, None)).response_ids == {}


@pytest.mark.parametrize(
    ("template", "eos", "prompt", "response"),
    [
        (CHATML, "<|end|>", "<|start|>user\nHi<|end|>\n<|start|>assistant\n", "Yo<|end|>"),
        # The turn ends with a special token that is not EOS: it is the one end, and what the model generates up to.
        (CHATML, "</s>", "<|start|>user\nHi<|end|>\n<|start|>assistant\n", "Yo<|end|>"),
        (LLAMA, "</s>", "<s>[user] Hi [/]", " Yo</s>"),
        (THINKING, "<|end|>", "<|start|>user\nHi<|end|>\n<|start|>assistant\n", "<think></think>Yo<|end|>"),
        (UNMARKED, "</s>", "user: Hi\nassistant: ", "Yo</s>"),
    ],
)
@pytest.mark.parametrize("bos", [False, True])
def test_messages_follow_the_template_up_to_the_one_token_that_ends_a_turn(
    template: str, eos: str, prompt: str, response: str, bos: bool
) -> None:
    tokenizer = make_tokenizer(bos=bos, template=template, eos=eos)
    encoder = make_encoder(tokenizer)
    encoded = encoder.encode(Preference(user("Hi"), assistant("Yo"), "Yo", base="Yo"))
    assert text(tokenizer, encoded.prompt_ids) == prompt
    assert encoder.prompt_ids(user("Hi")) == encoded.prompt_ids
    assert text(tokenizer, encoded.response_ids["chosen"]) == response
    assert encoded.response_ids["rejected"] == encoded.response_ids["chosen"]
    # What the model said itself goes in as it said it.
    assert text(tokenizer, encoded.response_ids["base"]) == "Yo" + response.rpartition("Yo")[2]


def test_conversations_keep_their_system_tool_and_earlier_turns() -> None:
    tokenizer = make_tokenizer(template=CHATML, eos="<|end|>")
    prompt = [
        {"role": "system", "content": "Be brief."},
        *user("2+2?"),
        *assistant("calc"),
        {"role": "tool", "content": "4"},
    ]
    encoded = make_encoder(tokenizer).encode(Preference(prompt, assistant("4"), assistant("5")))
    assert text(tokenizer, encoded.prompt_ids) == (
        "<|start|>system\nBe brief.<|end|>\n<|start|>user\n2+2?<|end|>\n<|start|>assistant\ncalc<|end|>\n"
        "<|start|>tool\n4<|end|>\n<|start|>assistant\n"
    )
    assert text(tokenizer, encoded.response_ids["rejected"]) == "5<|end|>"


def test_plain_text_takes_the_template_only_when_asked() -> None:
    tokenizer = make_tokenizer(template=CHATML, eos="<|end|>")
    rows = Preference("Hi", "Yo", "No"), Preference(user("Hi"), assistant("Yo"), assistant("No"))
    always = make_encoder(tokenizer, chat_template="always")
    assert always.encode(rows[0]) == always.encode(rows[1])
    assert always.prompt_ids("Hi") == always.prompt_ids(user("Hi"))
    assert text(tokenizer, make_encoder(tokenizer).encode(rows[0]).prompt_ids) == "Hi"


def test_long_texts_lose_the_beginning_of_the_prompt_and_the_end_of_the_response() -> None:
    tokenizer = make_tokenizer(bos=True)
    encoded = make_encoder(tokenizer, prompt=5, response=4).encode(
        Preference("0123456789", "abc", "abcd", base="abcdef")
    )
    assert text(tokenizer, encoded.prompt_ids) == "<s>6789"
    assert {name: text(tokenizer, ids) for name, ids in encoded.response_ids.items()} == {
        "chosen": "abc</s>",
        "rejected": "abcd",
        "base": "abcd",
    }
    assert encoded.cut == {"prompt": 6, "rejected": 1, "base": 3}


def test_a_templated_prompt_that_is_cut_keeps_its_bos() -> None:
    tokenizer = make_tokenizer(template=LLAMA)
    assert text(tokenizer, make_encoder(tokenizer, prompt=6).prompt_ids(user("Hi"))) == "<s>i [/]"


def test_the_prompt_makes_room_for_the_longest_response_and_keeps_half_of_the_context_at_least() -> None:
    tokenizer = make_tokenizer()
    encoder = make_encoder(tokenizer, context=10)
    short = encoder.encode(Preference("0123456789", "abc", "a"))
    assert (text(tokenizer, short.prompt_ids), text(tokenizer, short.response_ids["chosen"])) == ("456789", "abc</s>")
    both = encoder.encode(Preference("0123456789", "abcdefgh", "a"))
    assert (text(tokenizer, both.prompt_ids), text(tokenizer, both.response_ids["chosen"])) == ("56789", "abcde")
    assert both.cut == {"prompt": 5, "chosen": 4}
    long = encoder.encode(Preference("01", "abcdefghij", "a"))
    assert (text(tokenizer, long.prompt_ids), text(tokenizer, long.response_ids["chosen"])) == ("01", "abcdefgh")
    assert len(encoder.prompt_ids("0123456789abc")) == 9


@given(
    prompt=st.text(alphabet="ab", min_size=1, max_size=30),
    responses=st.lists(st.text(alphabet="cd", min_size=0, max_size=30), min_size=3, max_size=3),
    limits=st.tuples(st.integers(1, 20), st.integers(1, 20), st.none() | st.integers(3, 40)),
    bos=st.booleans(),
    finished=st.booleans(),
)
def test_whatever_the_lengths_everything_fits_and_every_token_is_accounted_for(
    prompt: str, responses: list[str], limits: tuple[int, int, int | None], bos: bool, finished: bool
) -> None:
    tokenizer = TOKENIZERS[bos]
    chosen, rejected, base = responses
    row = Preference(prompt, chosen, rejected, base=base or "x", base_finished=finished)
    max_prompt, max_response, context = limits
    whole = make_encoder(tokenizer).encode(row)
    cut = make_encoder(tokenizer, max_prompt, max_response, context).encode(row)
    assert 1 <= len(cut.prompt_ids) <= max_prompt
    assert len(whole.prompt_ids) - len(cut.prompt_ids) == cut.cut.get("prompt", 0)
    body = cut.prompt_ids[1:] if bos and len(cut.prompt_ids) > 1 else cut.prompt_ids
    assert whole.prompt_ids[-len(body) :] == body
    if bos and len(cut.prompt_ids) > 1:
        assert cut.prompt_ids[0] == tokenizer.bos_token_id
    for name, ids in cut.response_ids.items():
        assert 1 <= len(ids) <= max_response
        assert whole.response_ids[name][: len(ids)] == ids
        assert len(whole.response_ids[name]) - len(ids) == cut.cut.get(name, 0)
        ended = ids[-1] == tokenizer.eos_token_id
        assert ended == (name not in cut.cut and (finished or name != "base"))
    if context is not None:
        assert len(cut.prompt_ids) + max(map(len, cut.response_ids.values())) <= context
    assert 0 not in cut.cut.values()


TOKENIZERS = {bos: make_tokenizer(bos=bos) for bos in (False, True)}


def test_many_rows_are_encoded_as_one_by_one() -> None:
    tokenizer = make_tokenizer(bos=True, template=CHATML)
    encoder = make_encoder(tokenizer, 20, 6, 24)
    rows = [
        Preference("Hi", "a", "bcdefghij"),
        Preference(user("Hi"), "a", assistant("b"), base="so", base_finished=False),
        Preference("Hi", None, None, base="k"),
    ]
    assert encoder.encode_many(rows) == [encoder.encode(row) for row in rows]
    prompts = ["Hi", user("Hi"), "0" * 40]
    assert encoder.prompts_ids(prompts) == [encoder.prompt_ids(prompt) for prompt in prompts]
    assert encoder.encode_many([]) == []


@pytest.mark.parametrize(
    ("tokenizer", "row", "words"),
    [
        (make_tokenizer(), {"prompt": user("a"), "chosen": "b", "rejected": "c"}, "no chat template"),
        (make_tokenizer(), {"prompt": "a", "chosen": assistant("b"), "rejected": "c"}, "chosen is messages"),
        (
            make_tokenizer(template=REWRITING),
            {"prompt": user("a"), "chosen": "b", "rejected": "c"},
            "generation prompt",
        ),
        (
            make_tokenizer(template=ALTERNATING),
            {"prompt": [{"role": "system", "content": "s"}], "chosen": "b", "rejected": "c"},
            "a user must begin",
        ),
        (make_tokenizer(), {"prompt": "", "chosen": "b", "rejected": "c"}, "prompt has no token"),
        (
            make_tokenizer(),
            {"prompt": "a", "chosen": "b", "rejected": "c", "base": "", "base_finished": False},
            "response has no token",
        ),
    ],
)
def test_a_row_that_cannot_be_encoded_is_named(tokenizer: Any, row: dict[str, Any], words: str) -> None:
    preference = Preference(**row, place=Place("pairs.jsonl", 7))
    with pytest.raises(InputError, match=words) as caught:
        make_encoder(tokenizer).encode(preference)
    assert "pairs.jsonl, row 7" in str(caught.value)


def test_settings_that_leave_no_room_are_refused() -> None:
    with pytest.raises(InputError, match="2 positions"):
        make_encoder(make_tokenizer(bos=True), context=2)
    with pytest.raises(InputError, match="max_prompt_length is 0"):
        make_encoder(make_tokenizer(), prompt=0)
    with pytest.raises(InputError, match="no chat template"):
        make_encoder(make_tokenizer(), chat_template="always")
