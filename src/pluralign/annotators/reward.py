"""A reward model as an annotator: a published sequence classifier with one output, or one of our own making.

At the end: how well rewards tell what was preferred, and how sure they may be of it.
"""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jinja2.exceptions import TemplateError
from safetensors import SafetensorError
from torch.nn.functional import logsigmoid
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from pluralign.annotators.protocol import AnnotatorError, Request, Verdict
from pluralign.annotators.reward_file import MODEL_FILE, SHARED, TrainedReward, read_reward, side
from pluralign.errors import InputError
from pluralign.models.base import Base, find_device, find_model
from pluralign.models.generation import context_length
from pluralign.models.matmul import quick_matmul
from pluralign.models.scoring import BATCH_TOKENS, MOST_BATCH_TOKENS
from pluralign.preferences.schema import Text

_FIX = (
    "Give the folder or hub id of a sequence classifier with one output and weights in safetensors, or the folder that "
    "`pluralign reward train` wrote."
)
BINS = 10
"""Of predicted probabilities."""


class Asked(NamedTuple):
    """One response to be scored."""

    prompt: Text
    response: str
    user: str | None
    row: str


class RewardModel(ABC):
    """Scores each response by itself, in batches by length, without dropout: rounding apart, the same beside any other.

    An empty response is scored like any other, as an answer that ends at once.

    Attributes:
        name: what errors and files call it.
        cuts: texts so far that were too long and lost tokens.
        unknown: person -> requests so far that the shared head judged, where people have heads and this one has none.
    """

    def __init__(self, name: str) -> None:
        self.name = f"reward model {name}"
        self.cuts = 0
        self.unknown: Counter[str] = Counter()

    @staticmethod
    def load(
        name: str,
        *,
        base: Base | str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        cache_dir: str | None = None,
    ) -> RewardModel:
        """A reward model from a folder or from the hub; only safetensors are read, and no code of its own is run.

        Args:
            name: folder that `pluralign reward train` wrote, or folder or hub id of a sequence classifier.
            base: for a folder of `reward train`: the base model, which is adapted in place, or where it is; by default
                it is found as it was for training.
            device: as in `ModelConfig`.
            dtype: as in `ModelConfig`; `auto` is the one it was saved or trained in.
            cache_dir: as in `ModelConfig`.

        Raises:
            InputError: there is no such model, it cannot be read, has another number of outputs than one, or was
                trained on another base.
        """
        try:
            folder = find_model(name)
        except InputError as error:
            raise InputError(error.found, where=error.where, fix=_FIX) from error
        if (folder / MODEL_FILE).is_file():
            trained = read_reward(folder, base=base, device=device, dtype=dtype, cache_dir=cache_dir)
            return TrainedRewardModel(name, trained)
        return ClassifierRewardModel(name, folder, device=device, dtype=dtype)

    def annotate(self, requests: Sequence[Request]) -> list[Verdict]:
        """The scores of all responses, which are ties where they are equal.

        Raises:
            AnnotatorError: a text that it cannot read, or a score that is no number; both name the row.
        """
        asked = [Asked(one.prompt, text, one.user, one.row) for one in requests for text in one.responses]
        if not asked:
            return []
        scores = iter(self._scores(asked))
        return [self._verdict(one, [next(scores) for _ in one.responses]) for one in requests]

    def _verdict(self, request: Request, scores: list[float]) -> Verdict:
        for score in scores:
            if not math.isfinite(score):
                fix = "Its weights are broken, or its activations overflow: try float32."
                raise AnnotatorError(self.name, f"it gives a response the score {score}", row=request.row, fix=fix)
        return Verdict(scores=tuple(scores), tie=len(set(scores)) == 1)

    @abstractmethod
    def _scores(self, asked: Sequence[Asked]) -> list[float]:
        """A score for each, in order."""


class TrainedRewardModel(RewardModel):
    """What `pluralign reward train` made: each person's own head, the shared one for who has none.

    Texts have the limits that they had in training: a prompt loses its beginning, a response its end.

    Args:
        name: of the reward model.
        trained: trunk and heads.
    """

    def __init__(self, name: str, trained: TrainedReward) -> None:
        super().__init__(name)
        self.trained = trained

    def _scores(self, asked: Sequence[Asked]) -> list[float]:
        trunk, heads = self.trained.trunk, self.trained.heads
        try:
            requests, cuts = trunk.requests([side(one.prompt, one.response) for one in asked])
        except InputError:
            # One by one only now: together each distinct text is tokenized once.
            self._find_fault(asked)
            raise
        self.cuts += sum(map(bool, cuts))
        numbers = heads.numbers([one.user for one in asked])
        if heads.kind != "none":
            judged = {(one.user, one.row) for one, number in zip(asked, numbers, strict=True) if number == SHARED}
            self.unknown.update(user for user, _ in judged if user is not None)
        return [float(reward) for reward in heads.rewards(trunk.states(requests), numbers)]

    def _find_fault(self, asked: Sequence[Asked]) -> None:
        for one in asked:
            try:
                self.trained.trunk.requests([side(one.prompt, one.response)])
            except InputError as error:
                raise AnnotatorError(self.name, error.found, row=one.row, fix=error.fix) from None


class _Tokens(NamedTuple):
    """One text in tokens; `types` where the tokenizer tells prompt and response apart by them."""

    ids: tuple[int, ...]
    types: tuple[int, ...]


class ClassifierRewardModel(RewardModel):
    """A sequence classifier of transformers with one output, as reward models are published.

    The text is what the tokenizer's chat template makes of the conversation; where it has none, the prompt with the
    response right behind it, or the pair of them for a tokenizer that puts a separator between two texts (BERT's kin).
    A text of more tokens than the model has positions loses the beginning of the prompt, and then that of the response,
    but never what the tokenizer itself puts there.

    Args:
        name: of the reward model.
        folder: of its files.
        device: as in `ModelConfig`.
        dtype: as in `ModelConfig`.

    Raises:
        InputError: it cannot be read, or has another number of outputs than one.
    """

    def __init__(self, name: str, folder: Path, *, device: str = "auto", dtype: str = "auto") -> None:
        super().__init__(name)
        self.model, self.tokenizer = _load(folder, find_device(device), dtype)
        self.rows = int(self.model.get_input_embeddings().weight.shape[0])
        if len(self.tokenizer) > self.rows:
            found = f"the tokenizer has {len(self.tokenizer)} tokens and the model {self.rows} embeddings"
            raise InputError(found, where=str(folder), fix="They do not belong together.")
        positions = context_length(self.model)
        self.longest = min(int(self.tokenizer.model_max_length), positions if positions and positions > 0 else 2**31)
        self.paired = not self.tokenizer.chat_template and self.tokenizer.sep_token_id is not None

    @torch.no_grad()
    def _scores(self, asked: Sequence[Asked]) -> list[float]:
        tokens = self._tokens(asked)
        distinct = sorted(set(tokens), key=lambda one: (len(one.ids), one))
        found: dict[_Tokens, float] = {}
        with quick_matmul():
            for batch in self._batches(distinct[::-1]):
                found.update(zip(batch, self._forward(batch), strict=True))
        return [found[one] for one in tokens]

    def _batches(self, longest_first: Sequence[_Tokens]) -> Iterator[list[_Tokens]]:
        """Texts of like length; long ones come first: what does not fit into memory fails at once."""
        room = BATCH_TOKENS.get(self.model.device.type, MOST_BATCH_TOKENS)
        start = 0
        while start < len(longest_first):
            size = max(1, room // len(longest_first[start].ids))
            yield list(longest_first[start : start + size])
            start += size

    def _forward(self, batch: Sequence[_Tokens]) -> list[float]:
        width = max(len(one.ids) for one in batch)
        with self._padding_token(batch) as pad:
            # Behind the text: positions are counted from its beginning, as of a text by itself.
            inputs = {
                "input_ids": [[*one.ids, *[pad] * (width - len(one.ids))] for one in batch],
                "attention_mask": [[1] * len(one.ids) + [0] * (width - len(one.ids)) for one in batch],
            }
            if batch[0].types:
                inputs["token_type_ids"] = [[*one.types, *[0] * (width - len(one.ids))] for one in batch]
            tensors = {name: torch.tensor(value, device=self.model.device) for name, value in inputs.items()}
            logits = self.model(**tensors).logits
        return [float(score) for score in logits[:, 0].float()]

    @contextlib.contextmanager
    def _padding_token(self, batch: Sequence[_Tokens]) -> Iterator[int]:
        """The token to pad with, which the model's configuration names inside the block.

        A decoder reads its score at the last token that is not padding, which it knows by the token alone. Where it has
        none of its own, any will do that ends no text of the batch: the end token, unless the texts end with it.
        """
        config = self.model.config.get_text_config()
        own = config.pad_token_id
        if own is not None and 0 <= own < self.rows:
            yield own
            return
        last = {one.ids[-1] for one in batch}
        end = self.tokenizer.eos_token_id
        candidates = range(self.rows) if end is None else (end, *range(min(self.rows, len(last) + 1)))
        config.pad_token_id = next(token for token in candidates if token not in last)
        try:
            yield config.pad_token_id
        finally:
            config.pad_token_id = own

    def _tokens(self, asked: Sequence[Asked]) -> list[_Tokens]:
        templated = bool(self.tokenizer.chat_template)
        texts = [self._laid_out(one) if templated else self._plain(one) for one in asked]
        # verbose: the tokenizer warns of lengths above its limit, and lengths are counted and cut here.
        options: dict[str, Any] = {"return_special_tokens_mask": True, "return_attention_mask": False, "verbose": False}
        if self.paired:
            made = self.tokenizer(texts, [one.response for one in asked], **options)
        else:
            # A template alone decides on the tokens at the front.
            made = self.tokenizer(texts, add_special_tokens=not templated, **options)
        types = made.get("token_type_ids", []) if self.paired else []
        found = []
        for number, (ids, added) in enumerate(zip(made["input_ids"], made["special_tokens_mask"], strict=True)):
            kept = self._kept(ids, added)
            self.cuts += len(kept) < len(ids)
            if not kept:
                fix = "Something must stand there to be judged."
                raise AnnotatorError(self.name, "the text has no token", row=asked[number].row, fix=fix)
            own_types = types[number] if types else []
            found.append(_Tokens(tuple(ids[at] for at in kept), tuple(own_types[at] for at in kept if own_types)))
        return found

    def _kept(self, ids: Sequence[int], added: Sequence[int]) -> list[int]:
        """Places of the tokens that stay: those that the tokenizer added, and the last ones of the text."""
        over = len(ids) - self.longest
        first = self.tokenizer.bos_token_id
        kept = []
        for place, token in enumerate(ids):
            if over > 0 and not added[place] and not (place == 0 and token == first):
                over -= 1
            else:
                kept.append(place)
        return kept

    def _plain(self, one: Asked) -> str:
        if not isinstance(one.prompt, str):
            fix = "Give prompts as text, or use a reward model with a chat template."
            raise AnnotatorError(
                self.name, "the prompt is messages, and the tokenizer has no chat template", row=one.row, fix=fix
            )
        return one.prompt if self.paired else one.prompt + one.response

    def _laid_out(self, one: Asked) -> str:
        prompt = [{"role": "user", "content": one.prompt}] if isinstance(one.prompt, str) else list(one.prompt)
        conversation = [*prompt, {"role": "assistant", "content": one.response}]
        try:
            return str(self.tokenizer.apply_chat_template(conversation, tokenize=False))
        # A template meets whatever a row holds: its own complaints and Python's about odd values.
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise AnnotatorError(self.name, f"the chat template refuses the messages ({error})", row=one.row) from None


def _load(folder: Path, device: torch.device, dtype: str) -> tuple[Any, Any]:
    """Model, in evaluation mode, and tokenizer."""
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    where = str(folder)
    if not (folder / "config.json").is_file():
        raise InputError("the folder has neither a config.json nor a reward_model.json", where=where, fix=_FIX)
    try:
        config = AutoConfig.from_pretrained(folder, **options)
        if config.num_labels != 1:
            raise InputError(f"the classifier has {config.num_labels} outputs, not one", where=where, fix=_FIX)
        kernel = {"attn_implementation": "eager"} if _soft_caps(config) else {}
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        model, report = AutoModelForSequenceClassification.from_pretrained(
            folder,
            config=config,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            use_safetensors=True,
            output_loading_info=True,
            **kernel,
            **options,
        )
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"the reward model cannot be loaded ({reason})", where=where, fix=_FIX) from error
    lacking = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if lacking:
        found = f"the weights lack {len(lacking)} tensors of a classifier, {lacking[0]} for one"
        raise InputError(found, where=where, fix="Is it a reward model, and not the model it was made of?")
    return model.to(device).eval(), tokenizer


def _soft_caps(config: Any) -> bool:
    """Whether attention scores are soft-capped, which transformers' usual kernel cannot do."""
    return getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None


def figures(margins: Sequence[float]) -> dict[str, Any]:
    """How well rewards tell what was preferred; None where there are no pairs.

    Args:
        margins: of each pair, the reward of the chosen response less that of the rejected one.

    Returns:
        `n` pairs; `accuracy`, the share of them with a margin above 0; `ties`, those of margin 0; `log_likelihood`, the
        mean log-probability of what was preferred, nats, -0.693 for who knows nothing; `calibration_error`, by how much
        the probabilities in a bin of `reliability` are off on average (Guo et al. 2017, equation 3). With few pairs it
        is larger than 0 also where the probabilities are right.
    """
    count = len(margins)
    bins = reliability(margins)
    off = math.fsum(one["n"] * abs(one["predicted"] - one["observed"]) for one in bins if one["n"])
    return {
        "n": count,
        "accuracy": sum(margin > 0 for margin in margins) / count if count else None,
        "ties": sum(margin == 0 for margin in margins),
        "log_likelihood": float(logsigmoid(torch.tensor(margins, dtype=torch.float64)).mean()) if count else None,
        "calibration_error": off / (2 * count) if count else None,
    }


def reliability(margins: Sequence[float]) -> list[dict[str, Any]]:
    """Predicted against observed: 10 bins of equal width of the probability that a response is preferred to another.

    Each pair counts twice, once in either direction: which of two responses is called the first says nothing, and read
    from the chosen one alone every prediction would come true.

    Returns:
        `from` and `to`; `n` predictions; their mean (`predicted`) and how many came true, as a share (`observed`).
    """
    found: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    for likely in torch.tensor(margins, dtype=torch.float64).sigmoid().tolist():
        for probability, preferred in ((likely, True), (1 - likely, False)):
            found[min(int(probability * BINS), BINS - 1)].append((probability, preferred))
    return [
        {
            "from": number / BINS,
            "to": (number + 1) / BINS,
            "n": len(some),
            "predicted": math.fsum(probability for probability, _ in some) / len(some) if some else None,
            "observed": sum(preferred for _, preferred in some) / len(some) if some else None,
        }
        for number, some in enumerate(found)
    ]
