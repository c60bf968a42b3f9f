"""A reward model of our own making: a trunk that reads responses, heads that judge what it read, and their folder.

reward_model.json   what it is: base and its fingerprint, limits of the text, whose heads
heads.safetensors   center, scale, shared [H]; offsets [U, H]
trunk/              a PEFT adapter, where the trunk was trained
reward.json         how it fares on held-out pairs
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import softplus

from pluralign.config import DataConfig, ModelConfig
from pluralign.errors import InputError
from pluralign.models.adapters import load_adapter, save_adapter
from pluralign.models.anchoring import encoder_of
from pluralign.models.base import Base, load_base
from pluralign.models.encoding import Encoded
from pluralign.models.generation import evaluation_mode
from pluralign.models.layout import choose_layout
from pluralign.models.masks import attention_inputs, causal_lm
from pluralign.models.matmul import quick_matmul
from pluralign.models.scoring import Forward, Request, batches, shared_rows
from pluralign.preferences.schema import ALL, Place, Preference, Text
from pluralign.storage import json_bytes, read_json, staged_folder
from pluralign.versions import versions

SCHEMA_VERSION = 1
MODEL_FILE = "reward_model.json"
HEADS_FILE = "heads.safetensors"
REPORT_FILE = "reward.json"
TRUNK = "trunk"
SHARED = -1
"""Number of the head of who has none of their own."""

_FITTING_STEPS = 2000
_TOLERANCE = 1e-9
"""Of the gradient of the mean loss; a step that changes it by less than the square ends the fit."""
_KINDS = ("none", "user", "group")
_LIMITS = ("max_prompt_length", "max_response_length", "chat_template")
_FIX = "It is a folder that `pluralign reward train` wrote."


@dataclass(slots=True)
class Heads:
    """The linear heads of a reward model: `r_u(x, y) = (shared + offset_u) . (h(x, y) - center) / scale`.

    Attributes:
        kind: whose offsets there are: user, group or none.
        ids: of the U people or groups that have one.
        shared: [H], the head of everybody who has no offset.
        offsets: [U, H].
        center: [H], the mean of the training responses' hidden states: an average response has reward 0.
        scale: [H], > 0.
        members: where there are heads for groups, the group of each person of the training table.
    """

    kind: str
    ids: tuple[str, ...]
    shared: Tensor
    offsets: Tensor
    center: Tensor
    scale: Tensor
    members: Mapping[str, str] = field(default_factory=dict)

    def numbers(self, owners: Sequence[str | None]) -> list[int]:
        """The heads of people, by number: of a person, of the person's group, of a group by its id; else `SHARED`."""
        known = {one: number for number, one in enumerate(self.ids)}
        return [SHARED if one is None else known.get(self.members.get(one, one), SHARED) for one in owners]

    def rewards(self, states: Tensor, numbers: Sequence[int]) -> Tensor:
        """Rewards [N] float64, of hidden states [N, H] under the heads of the given numbers."""
        features = (states.double() - self.center.double()) / self.scale.double()
        found = features @ self.shared.double()
        own = torch.tensor(numbers, dtype=torch.long)
        has = own != SHARED
        found[has] += (features[has] * self.offsets[own[has]].double()).sum(dim=1)
        return found


def fit_heads(
    differences: Tensor, numbers: Tensor, people: int, *, shared_penalty: float, offset_penalty: float
) -> tuple[Tensor, Tensor]:
    """The heads that minimise the sum in `reward_training.py`: a convex function's one minimum, found by L-BFGS.

    Args:
        differences: [N, H], scaled states of the chosen responses less those of the rejected ones.
        numbers: [N] int64, whose pair each is, in [0, people); not looked at where there are no people.
        people: U >= 0.
        shared_penalty: > 0.
        offset_penalty: > 0.

    Returns:
        The shared head [H] and the offsets [U, H], float64; they are for scaled states.
    """
    differences = differences.double()
    ridge = Ridge(
        differences.new_zeros(differences.shape[1]),
        differences.new_zeros(people, differences.shape[1]),
        (shared_penalty, offset_penalty),
    )
    optimizer = torch.optim.LBFGS(
        ridge.parameters,
        max_iter=_FITTING_STEPS,
        tolerance_grad=_TOLERANCE,
        tolerance_change=_TOLERANCE**2,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = softplus(-ridge.margins(differences, numbers)).mean() + ridge.penalty() / len(differences)
        loss.backward()
        return loss

    optimizer.step(closure)
    return ridge.heads()


class Ridge:
    """Heads in training, as numbers that all have the penalty 1: each head times the root of its own.

    A step of AdamW is then as long as the penalty permits, and a huge penalty is no harder for L-BFGS than any other.

    Args:
        shared: [H] to begin with.
        offsets: [U, H] to begin with.
        penalties: of the shared head and of offsets, > 0.

    Attributes:
        parameters: what is trained.
    """

    def __init__(self, shared: Tensor, offsets: Tensor, penalties: tuple[float, float]) -> None:
        self.roots = [math.sqrt(penalty) for penalty in penalties]
        self.parameters = [
            (part * root).detach().requires_grad_() for part, root in zip((shared, offsets), self.roots, strict=True)
        ]

    def heads(self) -> tuple[Tensor, Tensor]:
        """The shared head [H] and the offsets [U, H] themselves."""
        shared, offsets = (part.detach() / root for part, root in zip(self.parameters, self.roots, strict=True))
        return shared, offsets

    def margins(self, differences: Tensor, numbers: Tensor) -> Tensor:
        """What the chosen response's reward is above the rejected one's, [N]."""
        shared, offsets = (part / root for part, root in zip(self.parameters, self.roots, strict=True))
        found = differences @ shared
        return found + (differences * offsets[numbers]).sum(dim=1) if len(offsets) else found

    def penalty(self) -> Tensor:
        """The two last terms of the sum."""
        shared, offsets = self.parameters
        return (shared.square().sum() + offsets.square().sum()) / 2


class Trunk:
    """A base model, adapted or not, that reads responses: the last hidden state, behind the final norm, at their end.

    Text becomes tokens as everywhere (`models/encoding.py`), each response by itself and as a finished one: what it is
    worth does not depend on what it is compared with. Responses to one prompt share its forward.

    Args:
        base: whose model is adapted in place, where it is.
        data: the limits of the text.
        policy: the base with the trunk's adapter; the bare base by default.
    """

    def __init__(self, base: Base, data: DataConfig, policy: PeftModel | None = None) -> None:
        self.base, self.encoder = base, encoder_of(base, data)
        self.model: Any = base.model if policy is None else policy
        self.forward = Forward.of(base, choose_layout(base.model, base.tokenizer))

    def requests(self, sides: Sequence[Preference]) -> tuple[list[Request], list[set[str]]]:
        """Tokens of prompts and responses (of `side`), and what of each had to be cut (`prompt`, `response`).

        Raises:
            InputError: a text that cannot be encoded; names its place.
        """
        encoded = self.encoder.encode_many(sides, ("chosen",))
        found = [(tuple(one.prompt_ids), tuple(one.response_ids["chosen"])) for one in encoded]
        return found, [{"prompt" if part == "prompt" else "response" for part in one.cut} for one in encoded]

    @torch.no_grad()
    def states(self, requests: Sequence[Request], advance: Callable[[int], object] | None = None) -> Tensor:
        """Hidden states [N, H] float32 on the CPU, each distinct request once, batched by length.

        Args:
            requests: at least one; neither prompts nor responses are empty.
            advance: told the number of distinct requests done with each batch.
        """
        rows = [(0, row) for row in shared_rows(requests, self.forward.layout)]
        places: dict[Request, int] = {}
        parts: list[Tensor] = []
        with evaluation_mode(self.model), quick_matmul():
            for some in batches(rows, self.forward):
                asked = _responses([row for _, row in some])
                places.update({request: len(places) + number for number, request in enumerate(asked)})
                parts.append(self.run(asked).float().cpu())
                if advance is not None:
                    advance(len(asked))
        return torch.cat(parts)[[places[request] for request in requests]]

    def run(self, requests: Sequence[Request]) -> Tensor:
        """Hidden states [N, H] of one forward, on the model's device and with gradients where it has any."""
        rows = shared_rows(requests, self.forward.layout)
        batch = self.forward.batch(rows)
        # The model without its head: nothing of the size of the vocabulary is computed.
        body = causal_lm(self.model).base_model
        output = body(input_ids=batch.input_ids, use_cache=False, **attention_inputs(self.model, batch))
        segments = batch.segment_ids
        following = torch.cat([segments[:, 1:], torch.full_like(segments[:, :1], -1)], dim=1)
        # Where a branch ends; in both layouts these come by row and branch.
        ends = output.last_hidden_state[(segments >= 1) & (segments != following)]
        order = {request: number for number, request in enumerate(_responses(rows))}
        found: Tensor = ends[torch.tensor([order[request] for request in requests], device=ends.device)]
        return found


def _responses(rows: Sequence[Encoded]) -> list[Request]:
    """The responses of rows, in order."""
    return [(tuple(row.prompt_ids), tuple(response)) for row in rows for response in row.response_ids.values()]


def side(prompt: Text, response: Text, place: Place | None = None) -> Preference:
    """One response to a prompt, as `Trunk.requests` takes it."""
    return Preference(prompt, response, None, place=place or Place("memory", 0))


@dataclass(slots=True)
class TrainedReward:
    """A trunk and its heads."""

    trunk: Trunk
    heads: Heads


def write_reward(
    folder: Path | str,
    trunk: Trunk,
    heads: Heads,
    *,
    revision: str | None,
    report: Mapping[str, Any],
) -> None:
    """Write a reward model, whole or not at all; one that is there is replaced.

    Args:
        folder: its place.
        trunk: with the adapter attached, where it was trained.
        heads: float32, on the CPU.
        revision: of the base, where it is a hub model.
        report: the content of `reward.json`.
    """
    base, adapted = trunk.base, isinstance(trunk.model, PeftModel)
    content = {
        "schema_version": SCHEMA_VERSION,
        "base": base.name,
        "base_revision": revision,
        "base_fingerprint": base.fingerprint,
        "tokenizer_fingerprint": base.tokenizer_fingerprint,
        "dtype": str(base.model.dtype).removeprefix("torch."),
        "quantization": base.quantization,
        "text": {name: getattr(trunk.encoder, name) for name in _LIMITS},
        "trunk": "lora" if adapted else "frozen",
        "heads": heads.kind,
        "ids": list(heads.ids),
        "members": dict(heads.members),
        "versions": versions(),
    }
    with staged_folder(folder) as staging:
        tensors = {name: getattr(heads, name).contiguous() for name in ("shared", "offsets", "center", "scale")}
        save_file(tensors, staging / HEADS_FILE, metadata={"format": "pt"})
        if adapted:
            save_adapter(trunk.model, staging / TRUNK, base=base, user=ALL)
        (staging / MODEL_FILE).write_bytes(json_bytes(content))
        (staging / REPORT_FILE).write_bytes(json_bytes(report))


def read_reward(
    folder: Path | str,
    *,
    base: Base | str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    cache_dir: str | None = None,
) -> TrainedReward:
    """Read a reward model and load its base.

    Args:
        folder: of `write_reward`.
        base: the base model, which is adapted in place, or where it is; by default it is found as it was for training.
        device: as in `ModelConfig`.
        dtype: as in `ModelConfig`; `auto` is the one it was trained in.
        cache_dir: as in `ModelConfig`.

    Raises:
        InputError: a file is missing, cannot be read or says something else; the base is another one.
    """
    folder = Path(folder)
    content = _content(folder / MODEL_FILE)
    heads = _heads(folder / HEADS_FILE, content)
    if not isinstance(base, Base):
        model = ModelConfig(
            model=base or content["base"],
            model_revision=None if base else content["base_revision"],
            dtype=content["dtype"] if dtype == "auto" else dtype,  # type: ignore[arg-type]
            quantization=content["quantization"],
            device=device,
            cache_dir=cache_dir,
        )
        base = load_base(model)
    _check_base(base, content, folder)
    policy = load_adapter(base, folder / TRUNK) if content["trunk"] == "lora" else None
    return TrainedReward(Trunk(base, DataConfig(**content["text"]), policy), heads)


def _content(path: Path) -> dict[str, Any]:
    content = read_json(path)
    version = content.get("schema_version") if isinstance(content, dict) else content
    if version != SCHEMA_VERSION:
        found = f"schema_version is {version!r}, and this program reads {SCHEMA_VERSION}"
        raise InputError(found, where=str(path), fix=_FIX)
    texts = ("base", "base_fingerprint", "tokenizer_fingerprint", "dtype", "quantization", "trunk", "heads")
    faults = [name for name in texts if not isinstance(content.get(name), str)]
    kinds = {"text": dict, "ids": list, "members": dict}
    faults += [name for name, kind in kinds.items() if not isinstance(content.get(name), kind)]
    faults += ["text"] if not faults and set(content["text"]) != set(_LIMITS) else []
    if faults or content["heads"] not in _KINDS:
        raise InputError(f"{(faults or ['heads'])[0]!r} is missing or of another kind", where=str(path), fix=_FIX)
    return {"base_revision": None, **content}


def _heads(path: Path, content: Mapping[str, Any]) -> Heads:
    try:
        tensors = load_file(path)
        heads = Heads(content["heads"], tuple(content["ids"]), **tensors, members=content["members"])
    except (SafetensorError, OSError, TypeError) as error:
        raise InputError(f"the heads cannot be read ({error})", where=str(path), fix=_FIX) from None
    size = heads.shared.shape
    fits = len(size) == 1 and heads.center.shape == heads.scale.shape == size
    if not fits or heads.offsets.shape != (len(heads.ids), *size):
        found = f"offsets are {tuple(heads.offsets.shape)}, with {len(heads.ids)} ids and a shared head {tuple(size)}"
        raise InputError(found, where=str(path), fix=_FIX)
    return heads


def _check_base(base: Base, content: Mapping[str, Any], folder: Path) -> None:
    kept, given = str(content["base_fingerprint"])[:12], base.fingerprint[:12]
    if content["base_fingerprint"] != base.fingerprint:
        raise InputError(
            f"the reward model reads with the base {content['base']!r} ({kept}), and this is {base.name!r} ({given})",
            where=str(folder),
            fix="Load it on the model it was trained on.",
        )
    if content["tokenizer_fingerprint"] != base.tokenizer_fingerprint:
        raise InputError(
            f"the tokenizer of {base.name!r} is another one than that of {content['base']!r} was",
            where=str(folder),
            fix="Load it with the tokenizer it was trained with.",
        )
