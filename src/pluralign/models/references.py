"""What the base model says, and how likely it finds what others say: computed once per distinct text, for all users."""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from pluralign.config import GenerationConfig
from pluralign.errors import InputError
from pluralign.models.base import Base
from pluralign.models.cache import Cache, Section
from pluralign.models.encoding import Encoded
from pluralign.models.generation import Generated, end_tokens, evaluation_mode, iterate_generated
from pluralign.models.masks import attention_kernel
from pluralign.models.matmul import product_precision
from pluralign.models.rows import Layout
from pluralign.models.scoring import Forward, Request, iterate_scores
from pluralign.progress import progress_bar


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
    with responses_section(base, settings, cache, seed=seed) as section:
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
    missing: dict[Request, str] = {}
    with logps_section(base, cache, layout=layout) as section:
        for row, named in zip(encoded, keys, strict=True):
            for name, key in named.items():
                if key not in known:
                    value = section.get(key)
                    known[key] = math.nan if value is None else value
                    if value is None:
                        missing[tuple(row.prompt_ids), tuple(row.response_ids[name])] = key
        for key, value in _compute(base, missing, layout) if missing else ():
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
    with logps_section(base, cache, layout=layout) as section:
        for row, reference in zip(encoded, references, strict=True):
            for name in row.response_ids.keys() & reference.keys():
                section.put(content_key(row.prompt_ids, row.response_ids[name]), reference[name])


def responses_section(base: Base, settings: GenerationConfig, cache: Cache, *, seed: int) -> Section:
    """Where `base_responses` finds and keeps answers, by `content_key` of the prompt."""
    return cache.section("base_responses", _response_facts(base, settings, seed))


def logps_section(base: Base, cache: Cache, *, layout: Layout) -> Section:
    """Where `reference_logps` finds and keeps log-probs, by `content_key` of prompt and response; autocast decides."""
    return cache.section("reference_logps", _logps_facts(base, layout))


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
    usual = {"quantization": "none", "matmul": "none"}
    facts = {
        "dtype": str(base.model.dtype).removeprefix("torch."),
        "autocast": str(autocast).removeprefix("torch.") if autocast else None,
        "attention": attention_kernel(base.model),
        "quantization": base.quantization,
        "matmul": product_precision(base.device),
    }
    # What is as usual goes unsaid: facts that came later leave the caches that were there valid.
    return {name: fact for name, fact in facts.items() if usual.get(name, ...) != fact}


def _compute(base: Base, missing: Mapping[Request, str], layout: Layout) -> Iterator[tuple[str, float]]:
    """Key and log-prob of each request."""
    forward = Forward.of(base, layout)
    with evaluation_mode(base.model), progress_bar() as progress:
        task = progress.add_task("reference log-probs", total=len(missing))
        for request, value in iterate_scores(base.model, missing, forward):
            yield missing[request], _checked(value, base)
            progress.advance(task)


def _checked(value: float, base: Base) -> float:
    if not math.isfinite(value):
        dtype = str(base.model.dtype).removeprefix("torch.")
        raise InputError(
            f"the base model {base.name} in {dtype} gives a response the log-prob {value}",
            fix="Its weights are broken, or its activations overflow: try --dtype float32.",
        )
    return value
