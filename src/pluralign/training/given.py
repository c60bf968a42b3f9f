"""What a run is given beside its table and its base: references of others, and adapters to begin with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from transformers import TrainingArguments

from pluralign.config import TrainConfig
from pluralign.models.adapters import adapter_digest
from pluralign.models.cache import Cache
from pluralign.models.embeddings import embedder_digest
from pluralign.models.given_models import ModelScores, score_models
from pluralign.models.given_references import GivenReference, find_references, references_hash
from pluralign.objectives import Objective
from pluralign.training.people import Census
from pluralign.training.starts import Starts, resolve_starts


@dataclass(slots=True)
class Given:
    """References and starts, found and read: it can be sent to other processes.

    Attributes:
        starts: who begins with what.
        references: of `reference.models`, in their order.
        scores: what those say that are models of their own.
        digests: key of the configuration that names files -> hash of their content, None where it names none.
    """

    starts: Starts
    references: Sequence[GivenReference] = ()
    scores: ModelScores = field(default_factory=lambda: ModelScores(()))
    digests: Mapping[str, str | None] = field(default_factory=dict)


def read_given(config: TrainConfig, census: Census, objective: Objective, arguments: TrainingArguments) -> Given:
    """Find what the configuration names, and let models of their own speak: before the base takes its room.

    Args:
        config: of the run.
        census: whose rows are compared.
        objective: names the branches.
        arguments: of several processes the first one computes, and the others read the cache.

    Raises:
        InputError: something cannot be found, loaded or used.
    """
    starts = resolve_starts(config.parameters, [person.user for person in census.people])
    cache, references = Cache(config.cache_dir), find_references(config.reference, config)
    embedder = config.loss.contrast.embeddings if objective.needs_embeddings else "ngrams"
    digests = {
        "parameters.start": None if starts.everyone is None else adapter_digest(starts.everyone),
        "loss.contrast.embeddings": embedder_digest(embedder, cache),
        "reference.models": references_hash(references, cache) if references else None,
    }
    if not references:
        return Given(starts, digests=digests)
    rows = [row for person in census.people for row in (*person.train, *person.held_out)]
    with arguments.main_process_first(local=False, desc="reference models"):
        scores = score_models(
            references, rows, branches=objective.branches, model=config, data=config.data, cache=cache
        )
    return Given(starts, references, scores, digests)
