"""What people's own policies say to their prompts, and how likely they found it: sampled in batches of everybody's."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from pluralign.config import GenerationConfig
from pluralign.errors import InputError
from pluralign.models.bank import NONE, LoraBank
from pluralign.models.encoding import Encoded, Encoder
from pluralign.models.generation import Generated, context_length, generate
from pluralign.models.rows import Layout
from pluralign.models.scoring import Forward, Request, score_owned
from pluralign.preferences.schema import Preference
from pluralign.training.online.files import Candidates, Response, plain_columns


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt for one policy.

    Attributes:
        row: unique in the run.
        owner: whose policy.
        slot: of it, in the bank.
        version: optimiser steps it has made.
        source: the row whose prompt it is.
    """

    row: str
    owner: str
    slot: int
    version: int
    source: Preference


class Generator(Protocol):
    """Lets policies speak, in this process or elsewhere."""

    def __call__(
        self,
        bank: LoraBank,
        asked: Sequence[Asked],
        prompts: Sequence[list[int]],
        settings: GenerationConfig,
        seeds: Sequence[int],
    ) -> list[Generated]:
        """One response of each policy to its prompt, in their order.

        Args:
            bank: attached to its base, with everybody's adapter.
            asked: whose policy answers; once for each response.
            prompts: tokens of each one's prompt.
            settings: of sampling.
            seeds: of each response.

        Returns:
            Log-probs of the tokens as they were drawn, or none: then those of what training will see are asked for.
        """


def in_process(
    bank: LoraBank,
    asked: Sequence[Asked],
    prompts: Sequence[list[int]],
    settings: GenerationConfig,
    seeds: Sequence[int],
) -> list[Generated]:
    """The generator of this process: log-probs are noted while a response is made."""
    slots = [one.slot for one in asked]
    with torch.no_grad():
        return generate(
            bank.base.model,
            bank.base.tokenizer,
            prompts,
            settings,
            seed=seeds,
            description="sampling",
            around=lambda numbers: bank.rows(torch.tensor([slots[number] for number in numbers])),
            logps=True,
        )


def sample(
    bank: LoraBank,
    encoder: Encoder,
    layout: Layout,
    asked: Sequence[Asked],
    settings: GenerationConfig,
    *,
    responses: int,
    seed: int,
    generator: Generator = in_process,
) -> list[Candidates]:
    """Let every policy answer its prompts.

    In this process what is drawn follows from the seed, the row and the number of the response alone. Where log-probs
    were noted while the response was made, they stand; where none were, or its text is tokenized in another way than it
    was drawn, they are asked for of the tokens that training will see. The base is asked for its own of all responses.

    Args:
        bank: attached to its base, with everybody's adapter.
        encoder: of the base.
        layout: of `choose_layout`.
        asked: at least one.
        settings: of sampling.
        responses: to each prompt.
        seed: of the run.
        generator: lets the policies speak.

    Raises:
        InputError: a prompt fills the context; names whose it is and where it stands.
    """
    prompts = encoder.prompts_ids([one.source.prompt for one in asked])
    _check_room(bank, asked, prompts, settings.max_new_tokens)
    repeated = _repeated(asked, prompts, responses)
    said = generator(
        bank,
        [one for one, _ in repeated],
        [prompt for _, prompt in repeated],
        settings,
        [_seed(seed, one.row, number) for one in asked for number in range(responses)],
    )
    drawn = [(one, prompt, made) for (one, prompt), made in zip(repeated, said, strict=True)]
    found = _responses(bank, encoder, layout, drawn)
    return [
        Candidates(
            one.row,
            one.owner,
            one.source.user,
            one.source.prompt,
            one.version,
            tuple(found[number * responses : (number + 1) * responses]),
            plain_columns(one.source),
        )
        for number, one in enumerate(asked)
    ]


def score_pairs(
    bank: LoraBank, layout: Layout, owned: Mapping[int, Sequence[Encoded]]
) -> dict[int, list[dict[str, float]]]:
    """Log-probs of encoded rows under the adapters that stand in the bank.

    Args:
        bank: attached to its base.
        layout: of `choose_layout`.
        owned: slot -> rows; those of `NONE` go through the base.

    Returns:
        Slot -> for each row, branch -> log-prob summed over the response's tokens, nats.
    """
    requests = {
        slot: [_request(row, ids) for row in rows for ids in row.response_ids.values()] for slot, rows in owned.items()
    }
    forward = Forward.of(bank.base, layout)
    with torch.no_grad():
        scores = score_owned(bank.base.model, requests, forward, lambda slots: bank.rows(torch.tensor(slots)))
    return {
        slot: [{name: scores[slot][_request(row, ids)] for name, ids in row.response_ids.items()} for row in rows]
        for slot, rows in owned.items()
    }


def _check_room(bank: LoraBank, asked: Sequence[Asked], prompts: Sequence[list[int]], most: int) -> None:
    """Before anything is sampled: raise where a prompt fills the context, warn where one leaves little of it."""
    context = context_length(bank.base.model)
    if context is None:
        return
    short = 0
    for one, prompt in zip(asked, prompts, strict=True):
        room = context - len(prompt)
        # The encoder cuts a prompt so that one token is left to answer with.
        if room <= 1:
            raise InputError(
                f"its prompt fills the model's context of {context} tokens: there is no room for a response",
                where=f"{one.source.place}, user {one.owner!r}",
                fix="Shorten it, or lower data.max_prompt_length: what is over it is cut on the left.",
            )
        short += room < most
    if short:
        warnings.warn(
            f"{short} prompts leave less room in the model's context of {context} tokens than "
            f"pairs.generation.max_new_tokens ({most}): responses to them are cut sooner",
            stacklevel=2,
        )


def _repeated(asked: Sequence[Asked], prompts: Sequence[list[int]], responses: int) -> list[tuple[Asked, list[int]]]:
    return [pair for pair in zip(asked, prompts, strict=True) for _ in range(responses)]


def _responses(
    bank: LoraBank, encoder: Encoder, layout: Layout, drawn: Sequence[tuple[Asked, list[int], Generated]]
) -> list[Response]:
    # Where nothing but special tokens were drawn, the text is that of a response that ends at once.
    finished = [made.finished or not made.text for _, _, made in drawn]
    rows = [
        replace(one.source, chosen=made.text, columns={"chosen_finished": ended})
        for (one, _, made), ended in zip(drawn, finished, strict=True)
    ]
    encoded = encoder.encode_many(rows, ("chosen",))
    logps: list[float | None] = []
    again: dict[int, list[Encoded]] = {}
    for (one, prompt, made), row in zip(drawn, encoded, strict=True):
        tokens = made.token_ids + ([] if made.end is None else [made.end])
        same = bool(made.logps) and row.prompt_ids == prompt and row.response_ids["chosen"] == tokens
        logps.append(sum(made.logps) if same else None)
        if not same:
            again.setdefault(one.slot, []).append(row)
    scored = {slot: iter(rows) for slot, rows in score_pairs(bank, layout, again).items()} if again else {}
    of_base = score_pairs(bank, layout, {NONE: encoded})[NONE]
    return [
        Response(
            made.text,
            ended,
            next(scored[one.slot])["chosen"] if logp is None else logp,
            base["chosen"],
            len(row.response_ids["chosen"]),
        )
        for (one, _, made), ended, logp, base, row in zip(drawn, finished, logps, of_base, encoded, strict=True)
    ]


def _request(row: Encoded, ids: Sequence[int]) -> Request:
    return tuple(row.prompt_ids), tuple(ids)


def _seed(seed: int, row: str, number: int) -> int:
    content = f"{seed}\0{row}\0{number}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(content).digest()[:4], "big") >> 1
