"""Models: loading, tokens, the response batch and its log-probs, generation, LoRA adapters, references, the cache."""

from pluralign.models.base import Base, base_of, load_base, load_tokenizer
from pluralign.models.encoding import Encoded, Encoder
from pluralign.models.generation import Generated, context_length, generate
from pluralign.models.layout import choose_layout
from pluralign.models.logprobs import branch_logps, response_logits, response_logps, token_logps
from pluralign.models.rows import ResponseBatch, collate

__all__ = [
    "Base",
    "Encoded",
    "Encoder",
    "Generated",
    "ResponseBatch",
    "base_of",
    "branch_logps",
    "choose_layout",
    "collate",
    "context_length",
    "generate",
    "load_base",
    "load_tokenizer",
    "response_logits",
    "response_logps",
    "token_logps",
]
