"""What the base model says, and how likely it finds what others say: computed once per distinct text, for all users."""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from pluralign.config import GenerationConfig
from pluralign.errors import InputError
from pluralign.models.base import Base
from pluralign.models.cache import Cache
from pluralign.models.encoding import Encoded
from pluralign.models.generation import Generated, end_tokens, evaluation_mode, iterate_generated
from pluralign.models.logprobs import branch_logps
from pluralign.models.masks import attention_kernel
from pluralign.models.rows import Layout, collate
from pluralign.progress import progress_bar

_BATCH_TOKENS = 8192
"""Tokens of one forward, padding included; what fills a CPU's cache and keeps a GPU busy."""
_BATCH_LOGITS = 2**28
"""Logits of one forward (1 GiB in float32)."""
_ROW_TOKENS = 4096
"""Tokens of a row that several responses share; its mask is the square of that."""


def base_responses(
    base: Base, prompts: Sequence[Sequence[int]], settings: GenerationConfig, cache: Cache, *, seed: int = 0
) -> list[Generated]:
    """The base model's own answers, each distinct prompt once.

    Args:
        base: with no adapter attached.
        prompts: token ids.
        settings: how responses are made; with `do_sample` they also depend on the seed.
        cache: answers found there cost nothing, and new ones are kept there.
        seed: of sampling; without effect otherwise.

    Returns:
        One answer a prompt, in the prompts' order.
    """
    require_bare(base.model)
    keys = [content_key(prompt) for prompt in prompts]
    distinct = dict(zip(keys, prompts, strict=True))
    with cache.section("base_responses", _response_facts(base, settings, seed)) as section:
        found = {key: section.get(key) for key in distinct}
        known = {key: Generated(**value) for key, value in found.items() if value is not None}
        missing = [key for key in distinct if key not in known]
        generated = iterate_generated(
            base.model,
            base.tokenizer,
            [distinct[key] for key in missing],
            settings,
            seed=seed,
            description="base responses",
        )
        for index, response in generated if missing else ():
            known[missing[index]] = response
            section.put(missing[index], asdict(response))
    return [known[key] for key in keys]


def reference_logps(base: Base, encoded: Sequence[Encoded], cache: Cache, *, layout: Layout) -> list[dict[str, float]]:
    """Log-probs of all responses under the base, each distinct pair of prompt and response once.

    Args:
        base: with no adapter attached: a reference is never taken from somebody's adapter.
        encoded: examples; distinct responses to one prompt share its forward where the layout says so.
        cache: values found there cost nothing, and new ones are kept there.
        layout: `shared` or `separate`, see `collate`.

    Returns:
        For each example, branch name -> log-prob summed over the response's tokens, nats.

    Raises:
        InputError: the base gives a log-prob that is no number.
    """
    require_bare(base.model)
    keys = [{name: content_key(row.prompt_ids, ids) for name, ids in row.response_ids.items()} for row in encoded]
    known: dict[str, float] = {}
    missing: dict[tuple[int, ...], dict[str, list[int]]] = {}
    with cache.section("reference_logps", _logps_facts(base, layout)) as section:
        for row, named in zip(encoded, keys, strict=True):
            for name, key in named.items():
                if key not in known:
                    value = section.get(key)
                    known[key] = math.nan if value is None else value
                    if value is None:
                        missing.setdefault(tuple(row.prompt_ids), {})[key] = row.response_ids[name]
        for key, value in _compute(base, _rows(missing, layout), layout) if missing else ():
            known[key] = value
            section.put(key, value)
    return [{name: known[key] for name, key in named.items()} for named in keys]


def keep_logps(
    base: Base,
    encoded: Sequence[Encoded],
    references: Sequence[Mapping[str, float]],
    cache: Cache,
    *,
    layout: Layout,
) -> None:
    """Put log-probs that are known from elsewhere into the cache; `reference_logps` then finds them there."""
    with cache.section("reference_logps", _logps_facts(base, layout)) as section:
        for row, reference in zip(encoded, references, strict=True):
            for name in row.response_ids.keys() & reference.keys():
                section.put(content_key(row.prompt_ids, row.response_ids[name]), reference[name])


def content_key(*token_ids: Sequence[int]) -> str:
    """Hex digest of one or several sequences of tokens, different wherever a token or a boundary is."""
    digest = hashlib.sha256()
    for ids in token_ids:
        digest.update(array("i", (len(ids), *ids)))
    return digest.hexdigest()


def require_bare(model: torch.nn.Module) -> None:
    """Raise a `RuntimeError` where an adapter is attached: what it says would pass for the base's word."""
    attached = next((name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)), None)
    if attached is not None:
        raise RuntimeError(f"the base model carries an adapter at {attached}; detach it (detach_adapter) first")


def _response_facts(base: Base, settings: GenerationConfig, seed: int) -> dict[str, Any]:
    facts = {
        "base": base.fingerprint,
        "tokenizer": base.tokenizer_fingerprint,
        **_computation(base),
        "end_tokens": end_tokens(base.model, base.tokenizer),
        "max_new_tokens": settings.max_new_tokens,
        "do_sample": settings.do_sample,
    }
    if settings.do_sample:
        facts |= {name: getattr(settings, name) for name in ("temperature", "top_p", "top_k")} | {"seed": seed}
    return facts


def _logps_facts(base: Base, layout: Layout) -> dict[str, Any]:
    # The layout decides nothing but rounding where the model passed the check of `choose_layout`; where somebody
    # forced the wrong one, the wrong values stay among themselves.
    return {"base": base.fingerprint, **_computation(base), "layout": layout}


def _computation(base: Base) -> dict[str, Any]:
    """What changes a value's last digits."""
    device = base.model.device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    return {
        "dtype": str(base.model.dtype).removeprefix("torch."),
        "autocast": str(autocast).removeprefix("torch.") if autocast else None,
        "attention": attention_kernel(base.model),
    }


@dataclass(slots=True)
class _Row:
    """A prompt, and some of the responses to it by their key."""

    prompt: list[int]
    responses: dict[str, list[int]]
    length: int


def _rows(missing: Mapping[tuple[int, ...], Mapping[str, list[int]]], layout: Layout) -> list[_Row]:
    """Rows for all that is missing, longest first: what does not fit into memory fails at once, not at the end."""
    rows: list[_Row] = []
    for prompt, responses in missing.items():
        row: _Row | None = None
        for key, ids in responses.items():
            if row is None or layout == "separate" or row.length + len(ids) > _ROW_TOKENS:
                row = _Row(list(prompt), {}, len(prompt))
                rows.append(row)
            row.responses[key] = ids
            row.length += len(ids)
    return sorted(rows, key=lambda row: -row.length)


def _batched(rows: Sequence[_Row], vocabulary: int) -> Iterator[list[_Row]]:
    batch: list[_Row] = []
    logits = 0
    for row in rows:
        more = (row.length - len(row.prompt)) * vocabulary
        # The first row of a batch is its longest, and the width of all.
        if batch and ((len(batch) + 1) * batch[0].length > _BATCH_TOKENS or logits + more > _BATCH_LOGITS):
            yield batch
            batch, logits = [], 0
        batch.append(row)
        logits += more
    if batch:
        yield batch


@torch.no_grad()
def _compute(base: Base, rows: Sequence[_Row], layout: Layout) -> Iterator[tuple[str, float]]:
    vocabulary = base.model.config.get_text_config().vocab_size
    pad_id = base.tokenizer.pad_token_id or 0
    with evaluation_mode(base.model), progress_bar() as progress:
        task = progress.add_task("reference log-probs", total=sum(len(row.responses) for row in rows))
        for batch in _batched(rows, vocabulary):
            branches = [f"r{number}" for number in range(max(len(row.responses) for row in batch))]
            encoded = [
                Encoded(row.prompt, dict(zip(branches, row.responses.values(), strict=False)), {}) for row in batch
            ]
            collated = collate(encoded, pad_id=pad_id, branches=branches, layout=layout).to(base.device)
            by_branch = branch_logps(base.model, collated)
            values = torch.stack([by_branch[name] for name in branches], dim=1).tolist()
            for row, sums in zip(batch, values, strict=True):
                for key, value in zip(row.responses, sums, strict=False):
                    yield key, _checked(value, base)
                progress.advance(task, len(row.responses))


def _checked(value: float, base: Base) -> float:
    if not math.isfinite(value):
        dtype = str(base.model.dtype).removeprefix("torch.")
        raise InputError(
            f"the base model {base.name} in {dtype} gives a response the log-prob {value}",
            fix="Its weights are broken, or its activations overflow: try --dtype float32.",
        )
    return value
