"""Making a reward model of pairs: a trunk that all people share, a shared head, and each person's offset from it.

With `d_i = (h(x, chosen) - h(x, rejected)) / scale` of pair i, and u its person, the heads are what minimises

    sum over i of -log sigmoid((shared + offset_u) . d_i)
        + shared_penalty / 2 |shared|^2 + offset_penalty / 2 (sum over u of |offset_u|^2)

the likelihood of Bradley and Terry (1952) with a Gaussian prior around 0 for what is common, and one around that for
each person. The penalty of an offset is the same however many pairs its person has: with few it stays near 0, and who
has none is judged by the shared head alone. `scale` is each state's spread times the root of their number, so that a
penalty of 1 expects rewards that vary by about 1, whatever the trunk.

A trunk that is trained begins as the base under the heads that were fitted to it, and AdamW takes trunk and heads down
the same sum, pair by pair in an order that the seed fixes. Then the heads are fitted anew to what the trunk now reads:
AdamW moves who has few pairs as far as anybody, and so would make little of the penalty.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import softplus
from transformers import get_scheduler

from pluralign.annotators.reward import figures, reliability
from pluralign.annotators.reward_file import MODEL_FILE, SHARED, Heads, Ridge, Trunk, fit_heads, side, write_reward
from pluralign.config import ParametersConfig
from pluralign.errors import InputError
from pluralign.models.adapters import new_adapter
from pluralign.models.anchoring import warn_of_losses
from pluralign.models.base import load_base
from pluralign.models.generation import evaluation_mode
from pluralign.models.matmul import quick_matmul
from pluralign.models.scoring import Request
from pluralign.preferences import Preference, Preferences, load_preferences, shown, split_preferences
from pluralign.progress import progress_bar
from pluralign.resolve import resolve
from pluralign.reward_config import RewardTrainConfig
from pluralign.storage import check_place
from pluralign.versions import versions

if TYPE_CHECKING:
    from rich.console import RenderableType

SCHEMA_VERSION = 1
_FLAT = 1e-6
"""Least spread of a state, relative to the largest: below, it is rounding."""
_LARGEST_NORM = 1.0
_ROWS = 20
_NAME_WIDTH = 30


@dataclass(frozen=True)
class RewardResult:
    """What `train_reward` made.

    Attributes:
        output_dir: the reward model's folder.
        report: the content of `reward.json`.
    """

    output_dir: Path
    report: dict[str, Any]

    def table(self) -> RenderableType:
        """How it fares on held-out pairs, the worst person first, and how well it knows how sure it may be."""
        return _table(self.report)


@quick_matmul()
def train_reward(config: RewardTrainConfig | dict[str, Any] | str | Path) -> RewardResult:
    """Make a reward model of a table of pairs, and measure it on those that are held out.

    Rows without a pair are left out and texts that are too long are cut, with warnings that say so.

    Args:
        config: the keys of `pluralign reward train` as a dictionary, a YAML file or a `RewardTrainConfig`.

    Raises:
        InputError: the output is there and `overwrite` is not set; a setting is out of its range; the table has no
            pairs, or people whose head could not be learned; the model cannot be used.
    """
    config = resolve(RewardTrainConfig, config)
    _check(config)
    output = _free(Path(config.output_dir), config.overwrite)
    table = _read(config)
    trunk = Trunk(load_base(config), config.data)
    training, held_out = (_encoded(trunk, table, rows, config.heads) for rows in (table.training, table.held_out))
    warn_of_losses([], training.cuts + held_out.cuts)
    heads = _fitted(trunk, training, table, config)
    losses: list[float] = []
    if config.trunk == "lora":
        parameters = ParametersConfig(rank=config.rank, alpha=config.alpha)
        trunk.model = new_adapter(trunk.base, parameters, seed=config.seed)
        losses = _train(trunk, training, heads, config)
        heads = _fitted(trunk, training, table, config)
    report = {
        "schema_version": SCHEMA_VERSION,
        "base": trunk.base.name,
        "base_fingerprint": trunk.base.fingerprint,
        "versions": versions(),
        "config": asdict(config),
        "cut": sum(map(bool, training.cuts + held_out.cuts)),
        "left_out": table.left_out,
        "losses": losses,
        **_measured(trunk, heads, table, held_out),
    }
    write_reward(output, trunk, heads, revision=config.model_revision, report=report)
    return RewardResult(output, report)


@dataclass(slots=True)
class _Pairs:
    """Pairs, and whose heads there are.

    Attributes:
        training, held_out: rows with both sides.
        ids: of those who get an offset.
        members: for heads of groups, the group of each person.
        per: the column by which results are told apart.
        left_out: rows that cannot be used.
    """

    training: list[Preference]
    held_out: list[Preference]
    ids: tuple[str, ...]
    members: dict[str, str]
    per: str
    left_out: int


@dataclass(slots=True)
class _Encoded:
    """Pairs in tokens: the chosen responses and after them the rejected ones; a pair's head, and what was cut of it."""

    requests: list[Request]
    numbers: list[int]
    cuts: list[set[str]]


def _check(config: RewardTrainConfig) -> None:
    for key in ("shared_penalty", "offset_penalty", "learning_rate", "alpha"):
        if not 0 < getattr(config, key) < math.inf:
            raise InputError(f"{key} is {getattr(config, key)}", fix="It must be greater than 0.")
    for key in ("epochs", "batch_size", "rank"):
        if getattr(config, key) < 1:
            raise InputError(f"{key} is {getattr(config, key)}", fix="It must be at least 1.")


def _free(output: Path, overwrite: bool) -> Path:
    """The output's place, where it may be written."""
    where = str(output)
    if output.is_file():
        raise InputError("it is a file, and a folder is to be written", where=where, fix="Name another place.")
    if output.is_dir() and any(output.iterdir()):
        if not (output / MODEL_FILE).is_file():
            raise InputError("the folder holds something else", where=where, fix="Name another one.")
        if not overwrite:
            raise InputError("a reward model is there", where=where, fix="Set overwrite, or name another folder.")
    check_place(output / MODEL_FILE)
    return output


def _read(config: RewardTrainConfig) -> _Pairs:
    whole, data = load_preferences(config.data, config.seed), config.data
    per = "user" if config.heads != "group" or any(row.user is not None for row in whole) else "group"
    training, held_out = split_preferences(
        whole, validation=data.validation, by=data.split_by, per=per, seed=config.seed, data=data
    )
    # Rows that were held out have no problems of their own, a file of them has.
    problems = [str(problem) for problem in (*whole.problems, *held_out.problems)]
    lacking = [
        f"{row.place}: there is no {'chosen' if row.chosen is None else 'rejected'} response"
        for row in (*training, *held_out)
        if not _is_pair(row)
    ]
    pairs = [row for row in training if _is_pair(row)]
    if not pairs:
        first = "".join(f" ({one})" for one in (problems + lacking)[:1])
        fix = "A reward model learns from rows with chosen and rejected; see pluralign data check."
        raise InputError(f"no row has a pair to learn from{first}", where=whole.name, fix=fix)
    _check_people(whole, config.heads)
    ids = () if config.heads == "none" else tuple(dict.fromkeys(row.owner(config.heads) for row in pairs))
    if len(ids) == 1:
        found = f"all pairs to learn from are of one {config.heads}, {shown(ids[0])!r}"
        raise InputError(found, where=whole.name, fix="An offset is from what others share: set heads to none.")
    warn_of_losses(problems + lacking)
    members = _members(pairs) if config.heads == "group" else {}
    usable = [row for row in held_out if _is_pair(row)]
    return _Pairs(pairs, usable, ids, members, per, len(problems) + len(lacking))


def _is_pair(row: Preference) -> bool:
    return row.chosen is not None and row.rejected is not None


def _check_people(table: Preferences, heads: str) -> None:
    """Raise where somebody of the table would have no head of their own."""
    if heads == "none":
        return
    if not any(getattr(row, heads) is not None for row in table):
        fix = "Give one that says whose pairs they are, or set heads to none."
        raise InputError(f"the table has no column {heads!r}", where=table.name, fix=fix)
    having: set[str | None] = {None, *(row.owner(heads) for row in table if _is_pair(row))}
    lacking: list[tuple[Any, Any, str]] = [
        (row.owner(heads), row.place, "one side only") for row in table if row.owner(heads) not in having
    ]
    if heads == "user":
        lacking += [(one.user, one.place, one.found) for one in table.problems if one.user not in having]
        lacking += [(user, table.name, "undecided comparisons only") for user in table.ties if user not in having]
    if lacking:
        owner, where, reason = lacking[0]
        found = f"{heads} {shown(owner)!r} has no pair to learn from ({reason})"
        raise InputError(found, where=str(where), fix="Leave them out, or set heads to none.")


def _members(pairs: Sequence[Preference]) -> dict[str, str]:
    """The group of each person; who is in several has none, and is judged by what all share."""
    groups: dict[str, set[str]] = {}
    for row in pairs:
        if row.user is not None:
            groups.setdefault(row.user, set()).add(row.owner("group"))
    return {user: next(iter(own)) for user, own in groups.items() if len(own) == 1}


def _encoded(trunk: Trunk, table: _Pairs, rows: Sequence[Preference], kind: str) -> _Encoded:
    sides = [side(row.prompt, getattr(row, name), row.place) for name in ("chosen", "rejected") for row in rows]
    requests, cuts = trunk.requests(sides)
    known = {one: number for number, one in enumerate(table.ids)}
    numbers = [SHARED if kind == "none" else known.get(row.owner(kind), SHARED) for row in rows]
    both = [chosen | rejected for chosen, rejected in zip(cuts[: len(rows)], cuts[len(rows) :], strict=True)]
    return _Encoded(requests, numbers, both)


def _states(trunk: Trunk, requests: Sequence[Request], description: str) -> Tensor:
    with progress_bar() as progress:
        task = progress.add_task(description, total=len(set(requests)))
        states = trunk.states(requests, lambda done: progress.advance(task, done))
    if not torch.isfinite(states).all():
        fix = "Its weights are broken, or its activations overflow: try --dtype float32."
        raise InputError(f"the base model {trunk.base.name} gives hidden states that are no numbers", fix=fix)
    return states


def _fitted(trunk: Trunk, pairs: _Encoded, table: _Pairs, config: RewardTrainConfig) -> Heads:
    """Heads for what the trunk reads now."""
    states = _states(trunk, pairs.requests, "reading the pairs")
    spread = states.std(dim=0)
    # A state that hardly varies says nothing, and scaled up it would be noise.
    spread = spread.clamp(min=max(_FLAT * float(spread.max()), torch.finfo(torch.float32).tiny))
    scale = spread * math.sqrt(states.shape[1])
    chosen, rejected = (states / scale).chunk(2)
    shared, offsets = fit_heads(
        chosen - rejected,
        torch.tensor(pairs.numbers),
        len(table.ids),
        shared_penalty=config.shared_penalty,
        offset_penalty=config.offset_penalty,
    )
    return Heads(
        config.heads, table.ids, shared.float(), offsets.float(), states.mean(dim=0), scale, members=table.members
    )


def _train(trunk: Trunk, pairs: _Encoded, heads: Heads, config: RewardTrainConfig) -> list[float]:
    """Train the trunk's adapter and the heads together; the mean loss of each epoch.

    Raises:
        InputError: the loss is no number.
    """
    device, count = trunk.base.device, len(pairs.numbers)
    penalties = config.shared_penalty, config.offset_penalty
    ridge = Ridge(heads.shared.to(device), heads.offsets.to(device), penalties)
    trained = [*(weight for weight in trunk.model.parameters() if weight.requires_grad), *ridge.parameters]
    # The penalty is in the loss: decay would shrink the trunk's adapter too.
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=0.0)
    steps = config.epochs * math.ceil(count / config.batch_size)
    schedule = get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=steps)
    scale, numbers = heads.scale.to(device), torch.tensor(pairs.numbers)
    order = torch.Generator().manual_seed(config.seed)
    losses = []
    with evaluation_mode(trunk.model), progress_bar() as progress:
        task = progress.add_task("training the trunk", total=steps)
        for _ in range(config.epochs):
            total = 0.0
            for batch in torch.randperm(count, generator=order).split(config.batch_size):
                some = batch.tolist()
                requests = [pairs.requests[at] for at in (*some, *(count + one for one in some))]
                chosen, rejected = (trunk.run(requests).float() / scale).chunk(2)
                loss = softplus(-ridge.margins(chosen - rejected, numbers[batch].to(device))).mean()
                value = loss.item()
                if not math.isfinite(value):
                    fix = "Lower learning_rate, or set dtype to float32."
                    raise InputError(f"the loss is {value} at step {schedule.last_epoch + 1} of the trunk", fix=fix)
                optimizer.zero_grad()
                (loss + ridge.penalty() / count).backward()
                torch.nn.utils.clip_grad_norm_(trained, _LARGEST_NORM)
                optimizer.step()
                schedule.step()
                total += value * len(some)
                progress.update(task, advance=1, description=f"training the trunk, loss {value:.3f}")
            losses.append(total / count)
    return losses


def _measured(trunk: Trunk, heads: Heads, table: _Pairs, held_out: _Encoded) -> dict[str, Any]:
    """The part of the report that is of people and held-out pairs."""
    own, shared = list[float](), list[float]()
    if table.held_out:
        states, alone = _states(trunk, held_out.requests, "held-out pairs"), [SHARED] * len(held_out.numbers)
        own, shared = (_margins(heads.rewards(states, 2 * numbers)) for numbers in (held_out.numbers, alone))
    learned = Counter(row.owner(table.per) for row in table.training)
    margins: dict[str, list[float]] = {one: [] for one in learned}
    unknown: Counter[str] = Counter()
    for row, number, margin in zip(table.held_out, held_out.numbers, own, strict=True):
        margins.setdefault(row.owner(table.per), []).append(margin)
        if number == SHARED and heads.kind != "none":
            unknown[row.owner(table.per)] += 1
    people = {one: {"training_pairs": learned[one], **figures(found)} for one, found in margins.items()}
    judged = [one for one in people if people[one]["n"]]
    return {
        "training_pairs": len(table.training),
        "held_out": {**figures(own), "reliability": reliability(own)},
        "shared_head": figures(shared),
        "people": people,
        "worst": min(judged, key=lambda one: _goodness(people[one]), default=None),
        "unknown": dict(unknown),
    }


def _margins(rewards: Tensor) -> list[float]:
    chosen, rejected = rewards.chunk(2)
    return [float(margin) for margin in chosen - rejected]


def _goodness(results: Mapping[str, Any]) -> tuple[float, float]:
    """Ascending: least accurate first, then least likely; who has no held-out pairs comes last."""
    return (results["accuracy"], results["log_likelihood"]) if results["n"] else (math.inf, math.inf)


def _table(report: Mapping[str, Any]) -> RenderableType:
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    def grid(first: str, *titles: str, caption: str = "") -> Table:
        table = Table(box=SIMPLE_HEAD, caption=Text(caption) if caption else None, caption_justify="left", min_width=70)
        table.add_column(first)
        for title in titles:
            table.add_column(title, justify="right", no_wrap=True)
        return table

    columns = {"accuracy": "acc.", "log_likelihood": "log-lik.", "calibration_error": "calib. error"}
    everybody, more = report["people"], len(report["people"]) - _ROWS
    unknown = f"pairs judged by the shared head: {sum(report['unknown'].values())}" if report["unknown"] else ""
    people = grid("held-out pairs of", "learned", "n", *columns.values(), caption=unknown)
    for one in sorted(everybody, key=lambda one: _goodness(everybody[one]))[:_ROWS]:
        cells = [_number(everybody[one][name]) for name in columns]
        # Text, not a string: an id may hold what rich takes for markup.
        people.add_row(
            Text(shown(one, _NAME_WIDTH)), str(everybody[one]["training_pairs"]), str(everybody[one]["n"]), *cells
        )
    if more > 0:
        people.add_row(Text(f"and {more} more", style="dim"))
    people.add_section()
    for label, results in (("all", report["held_out"]), ("all, by the shared head", report["shared_head"])):
        cells = [_number(results[name]) for name in columns]
        people.add_row(label, str(report["training_pairs"]), str(results["n"]), *cells)
    bins = grid("how sure", "predictions", "predicted", "observed")
    for one in report["held_out"]["reliability"]:
        if one["n"]:
            bins.add_row(
                f"{one['from']:.1f} to {one['to']:.1f}",
                str(one["n"]),
                _number(one["predicted"]),
                _number(one["observed"]),
            )
    return Group(people, bins) if report["held_out"]["n"] else people


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
