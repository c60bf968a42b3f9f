"""The forwards of one step of many people: rows of like length together, whoever they belong to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from operator import itemgetter
from typing import Literal

import torch
from torch import Tensor

from pluralign.models.bank import NONE, LoraBank
from pluralign.models.flex import BLOCK, pack
from pluralign.models.logprobs import branch_logps
from pluralign.models.masks import FLEX, attention_kernel, causal_lm
from pluralign.models.rows import examples_of, filled_width
from pluralign.objectives import Losses, Objective
from pluralign.objectives.composition import Reference, each
from pluralign.training.ascent import AscentStep
from pluralign.training.bank.means import SlotMeans
from pluralign.training.batches import Batch, Example, PreferenceCollator
from pluralign.training.metrics import add_rows


@dataclass(slots=True)
class Unit:
    """Examples of one person that go through the same forward: one, or a batch whose losses couple them.

    Attributes:
        slot: of the person.
        examples: at least one.
        keys: of each example, what its dropout is drawn from.
        total: sum of weights of the person's whole step.
        groups: how many the person has; 0 where groups do not count.
        ascent: of the person's step, where groups count as their losses say.
        turn: units of a later turn go through when those of the earlier ones are through.
    """

    slot: int
    examples: list[Example]
    keys: list[int]
    total: float
    groups: int = 0
    ascent: AscentStep | None = None
    turn: int = 0


class Forwards:
    """Runs units through base and bank, and keeps each person's losses and metrics apart.

    Args:
        bank: with everybody's adapter.
        objective: losses per example; where it may couple examples, it is called once a unit.
        collator: makes batches.
        reference: `forward` for rows of the bare base in the same forward; else the batch brings it along.
        tokens: of one forward, padding included.
        autocast: makes the context of mixed precision.
    """

    def __init__(
        self,
        bank: LoraBank,
        objective: Objective,
        collator: PreferenceCollator,
        *,
        reference: Literal["cached", "forward", "table"],
        tokens: int,
        autocast: torch.dtype | None,
    ) -> None:
        self.bank, self.objective, self.collator = bank, objective, collator
        self.from_forward = reference == "forward" and objective.needs_reference
        self.device = bank.base.device
        self.tokens = tokens
        self.autocast = autocast
        # FlexAttention leaves out what it does not see: rows stand one after another instead of being filled up.
        self.packs = collator.layout == "shared" and attention_kernel(causal_lm(bank.base.model)) == FLEX
        self.means = SlotMeans(bank.slots, self.device)
        # Of the step under way, [slots, K + 1]: weighted losses by group, where they decide what the next step's count.
        self.group_losses: Tensor | None = None

    def units(
        self,
        slot: int,
        batches: Sequence[Sequence[Example]],
        *,
        seed: int,
        step: int,
        groups: int = 0,
        ascent: AscentStep | None = None,
    ) -> list[Unit]:
        """The units of one person's step.

        Args:
            slot: of the person.
            batches: examples by batch.
            seed: of the person; with the step it makes the keys of dropout.
            step: of the person.
            groups: how many the person has.
            ascent: of the step.
        """
        total = sum(example.weight for batch in batches for example in batch)
        numbered = _with_keys(batches, seed, step)
        by_batch = ascent is not None and ascent.by_batch
        if not self.objective.couples_examples and not by_batch:
            numbered = [[item] for batch in numbered for item in batch]
        return [
            Unit(slot, [one for one, _ in items], [key for _, key in items], total, groups, ascent, by_batch * number)
            for number, items in enumerate(numbered)
        ]

    def backward(self, units: Sequence[Unit]) -> None:
        """Add every person's gradient to their slot."""
        ascending = any(unit.ascent is not None for unit in units)
        width = max((unit.groups for unit in units), default=0) + 1
        self.group_losses = self.bank.matrix.new_zeros(self.bank.slots, width) if ascending else None
        for turn in sorted({unit.turn for unit in units}):
            for together in self._pack([unit for unit in units if unit.turn == turn]):
                # Around the backward too: a checkpointed layer runs its forward again in there.
                with self._rows(batch := self._batch(together), together, training=True):
                    loss = self._losses(batch, together, self.means)
                    loss.backward()

    @torch.no_grad()
    def evaluate(self, units: Sequence[Unit]) -> SlotMeans:
        """Every person's losses and metrics."""
        means = SlotMeans(self.bank.slots, self.device)
        for together in self._pack(units):
            with self._rows(batch := self._batch(together), together, training=False):
                self._losses(batch, together, means)
        return means

    def _losses(self, batch: Batch, units: Sequence[Unit], means: SlotMeans) -> Tensor:
        """Sum over people of their shares of their own steps' losses, a scalar."""
        with self._autocast():
            logps = branch_logps(self.bank.base.model, batch["responses"])
            losses = self._objective(logps, batch, units)
        slots = torch.tensor([unit.slot for unit in units for _ in unit.examples], device=self.device)
        totals = torch.tensor([unit.total for unit in units for _ in unit.examples], device=self.device)
        weight = self._by_group(losses, batch, units, means, slots)
        shares = weight * losses.per_example / totals.clamp(min=torch.finfo(torch.float32).tiny)
        means.add(losses.terms, shares.detach(), slots)
        return shares.sum()

    def _by_group(self, losses: Losses, batch: Batch, units: Sequence[Unit], means: SlotMeans, slots: Tensor) -> Tensor:
        """What every example counts, [B], with its group's part in that; the groups' losses are noted."""
        weight, group, values = batch["weight"], batch["group"], losses.per_example.detach()
        if not any(unit.groups for unit in units):
            return weight
        means.add_groups(losses, weight, slots, group, count=max(unit.groups for unit in units))
        if all(unit.ascent is None for unit in units):
            return weight
        assert self.group_losses is not None
        width = self.group_losses.shape[1]
        add_rows(self.group_losses.view(-1), slots * width + group % width, (weight * values).to(self.group_losses))
        factors = [
            1.0 if unit.ascent is None else unit.ascent.factor(one.group) for unit in units for one in unit.examples
        ]
        counted, start = weight * weight.new_tensor(factors), 0
        for unit in units:
            part = slice(start, start + len(unit.examples))
            start = part.stop
            if unit.ascent is not None and unit.ascent.by_batch:
                counted[part] *= unit.ascent.factors(values[part], weight[part], group[part])
        return counted

    def _objective(self, logps: dict[str, Tensor], batch: Batch, units: Sequence[Unit]) -> Losses:
        count = len(batch["weight"])
        lengths = {name: value[:count] for name, value in batch["responses"].branch_lengths().items()}
        policy = {name: value[:count] for name, value in logps.items()}
        if self.from_forward:
            reference: Reference = {name: value[count:].detach() for name, value in logps.items()}
        else:
            dtype = next(iter(policy.values())).dtype
            reference = each(batch["reference"], lambda value: value.to(dtype))
        embeddings = batch.get("embeddings")
        if not self.objective.couples_examples:
            return self.objective(policy, reference, lengths, batch["columns"], embeddings=embeddings)
        parts: list[Losses] = []
        start = 0
        for unit in units:
            part = slice(start, start + len(unit.examples))
            start = part.stop
            own, sizes = ({name: value[part] for name, value in of.items()} for of in (policy, lengths))
            compared = each(reference, itemgetter(part))
            columns = {name: value[part] for name, value in batch["columns"].items()}
            vectors = None if embeddings is None else embeddings[part]
            parts.append(self.objective(own, compared, sizes, columns, embeddings=vectors))
        return Losses(
            torch.cat([part.per_example for part in parts]),
            {name: torch.cat([part.terms[name] for part in parts]) for name in parts[0].terms},
        )

    # ---- batches ----

    def _batch(self, units: Sequence[Unit]) -> Batch:
        examples = [example for unit in units for example in unit.examples]
        # The base's rows stand behind everybody's.
        batch = self.collator([*examples, *examples] if self.from_forward else examples)
        responses = batch["responses"]
        if self.packs:
            responses = pack(responses, self.tokens, pad_id=self.collator.pad_id)
        # Asked here and not on the device, which would have to be waited for.
        batch["examples"] = (
            examples_of(responses) if responses.row_ids is None else responses.row_ids.flatten()[::BLOCK]
        )
        batch["responses"] = responses.to(self.device)
        batch["reference"] = each(batch["reference"], lambda value: value.to(self.device))
        for name in ("weight", "group"):
            batch[name] = batch[name][: len(examples)].to(self.device)
        if "embeddings" in batch:
            batch["embeddings"] = batch["embeddings"].to(self.device)
        return batch

    def _rows(self, batch: Batch, units: Sequence[Unit], *, training: bool) -> AbstractContextManager[None]:
        slots = [unit.slot for unit in units for _ in unit.examples]
        keys = [key for unit in units for key in unit.keys]
        if self.from_forward:
            slots, keys = slots + [NONE] * len(slots), keys + keys
        # One more for positions that nobody's row fills.
        slot, example, row_keys = torch.tensor([*slots, NONE]), batch["examples"], None
        if training and self.bank.dropout > 0:
            # Rows (or blocks) of one example drop each on their own.
            own = example[:, None] == example
            place = own.tril(-1).sum(dim=1)
            row_keys = torch.tensor([*keys, 0])[example] + place
        return self.bank.rows(slot[example], keys=row_keys)

    def _pack(self, units: Sequence[Unit]) -> Iterator[list[Unit]]:
        """Units of like length together, as many as the budget of tokens allows."""
        widths = [row_widths(self._lengths(unit), shared=self.collator.layout == "shared") for unit in units]
        for numbers in packed(widths, tokens=self.tokens, copies=2 if self.from_forward else 1):
            # A person's rows stand side by side: the bank then takes them in one product.
            yield sorted((units[number] for number in numbers), key=lambda unit: unit.slot)

    def _lengths(self, unit: Unit) -> Iterator[tuple[int, list[int]]]:
        for example in unit.examples:
            encoded = example.row.encoded
            responses = [len(encoded.response_ids.get(name, ())) for name in self.collator.branches]
            yield len(encoded.prompt_ids), responses

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None)


def row_widths(examples: Iterable[tuple[int, Sequence[int]]], *, shared: bool) -> list[int]:
    """Tokens of every row of some examples.

    Args:
        examples: of each, tokens of the prompt and of every response.
        shared: whether responses to a prompt share its row.
    """
    widths: list[int] = []
    for prompt, responses in examples:
        together = shared or not any(responses)
        widths += [prompt + sum(responses)] if together else [prompt + one for one in responses if one]
    return widths


def packed(units: Sequence[Sequence[int]], *, tokens: int, copies: int = 1) -> Iterator[list[int]]:
    """Which units go through a forward together: those of like length, as many as the budget allows.

    Args:
        units: `row_widths` of each.
        tokens: of one forward; what filling up to a multiple adds is not looked at.
        copies: how often every row is in it.

    Yields:
        Numbers of units, the widest first.
    """
    pack: list[int] = []
    rows = widest = 0
    for number in sorted(range(len(units)), key=lambda number: -max(units[number])):
        width, more = max(units[number]), len(units[number])
        if pack and copies * (rows + more) * widest > tokens:
            yield pack
            pack, rows = [], 0
        widest = widest if pack else width
        pack.append(number)
        rows += more
    if pack:
        yield pack


def tokens_of(widths: Sequence[int]) -> int:
    """Tokens of a forward of rows of these widths, padding included."""
    return len(widths) * filled_width(widths)


def _with_keys(batches: Sequence[Sequence[Example]], seed: int, step: int) -> list[list[tuple[Example, int]]]:
    """Every example with a number that belongs to the person, the step and its place in the step."""
    start = seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9
    keyed: list[list[tuple[Example, int]]] = []
    place = 0
    for batch in batches:
        items: list[tuple[Example, int]] = []
        for example in batch:
            mixed = (start + place * 0x94D049BB133111EB) & (2**64 - 1)
            items.append((example, (mixed ^ mixed >> 29) & (2**32 - 1)))
            place += 1
        keyed.append(items)
    return keyed
