"""The published few-shot module (Zhao, Dang, Grover 2024, "Group Preference Optimization"): a transformer that reads
answered questions and predicts the answers to others.

A point is one answer option: the embedding of question and option, and the share of the group that took it. The context
is a set (there are no positions), and what is predicted of one target does not depend on the other targets: a target
reads the context and itself, and nothing reads a target. So the context is encoded once, to the keys and values of each
layer, and the targets only read these: m^2 + m t products for m context and t target points, where one masked pass over
both takes (m + t)^2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention


@dataclass(frozen=True)
class ModuleConfig:
    """Sizes, with the published ones as defaults.

    Attributes:
        dim_x: of the embeddings.
        d_model: of a point inside.
        emb_depth: linear layers of the embedder, at least 2.
        dim_feedforward: of a layer's feed-forward part, and of the head.
        nhead: attention heads; divides `d_model`.
        num_layers: of the encoder.
        dropout: in [0, 1).
    """

    dim_x: int
    d_model: int = 128
    emb_depth: int = 4
    dim_feedforward: int = 128
    nhead: int = 4
    num_layers: int = 6
    dropout: float = 0.0


@dataclass(frozen=True)
class Context:
    """Answered questions, encoded.

    Attributes:
        layers: keys and values of each layer of the encoder, both float `[groups, heads, points, d_model / heads]`.
        real: bool `[groups, 1, 1, points]`, true where there is a point; None where there are all.
    """

    layers: list[tuple[Tensor, Tensor]]
    real: Tensor | None


class PreferenceModule(nn.Module):
    """The published module; parameters have their published names, so that its weights can be loaded.

    Args:
        config: sizes.
    """

    def __init__(self, config: ModuleConfig) -> None:
        super().__init__()
        self.config = config
        width = config.d_model
        layers: list[nn.Module] = [nn.Linear(config.dim_x + 1, width)]
        for _ in range(config.emb_depth - 1):
            layers += [nn.ReLU(inplace=True), nn.Linear(width, width)]
        self.embedder = nn.Sequential(*layers)
        layer = nn.TransformerEncoderLayer(
            width, config.nhead, config.dim_feedforward, config.dropout, batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, config.num_layers, enable_nested_tensor=False)
        hidden = config.dim_feedforward
        self.predictor = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 2))

    def encode(self, x: Tensor, y: Tensor, padding: Tensor | None = None) -> Context:
        """Read the context, once for all targets.

        Args:
            x: float `[groups, points, dim_x]`, embeddings of question and option.
            y: float `[groups, points]`, shares in [0, 1].
            padding: bool `[groups, points]`, true where there is no point; None where there are all.
        """
        points = self.embedder(torch.cat([x, y.unsqueeze(-1)], -1))
        real = None if padding is None else ~padding[:, None, None]
        *others, last = self._layers
        layers = []
        for layer in others:
            layers.append(_keys_and_values(layer, points))
            points = _read(layer, points, layers[-1], real)
        # Nothing reads what the context is after the last layer.
        layers.append(_keys_and_values(last, points))
        return Context(layers, real)

    def predict(self, context: Context, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the group would answer.

        Args:
            context: of the same groups.
            x: float `[groups, targets, dim_x]`.

        Returns:
            Raw means and raw logarithms of the standard deviation, each float `[groups, targets]`. The softmax of the
            means over a question's options is the predicted distribution.
        """
        first, rest = cast(nn.Linear, self.embedder[0]), self.embedder[1:]
        # The share of a target is 0: its weights add nothing.
        points = rest(linear(x, first.weight[:, :-1], first.bias))
        for layer, seen in zip(self._layers, context.layers, strict=True):
            points = _read(layer, points, seen, context.real)
        means, log_stds = self.predictor(points).unbind(-1)
        return means, log_stds

    def forward(self, x: Tensor, y: Tensor, targets: Tensor, padding: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`encode` and `predict` in one."""
        return self.predict(self.encode(x, y, padding), targets)

    @property
    def _layers(self) -> list[nn.TransformerEncoderLayer]:
        return [cast(nn.TransformerEncoderLayer, layer) for layer in self.encoder.layers]


def _keys_and_values(layer: nn.TransformerEncoderLayer, points: Tensor) -> tuple[Tensor, Tensor]:
    attention, width = layer.self_attn, points.shape[-1]
    both = linear(points, attention.in_proj_weight[width:], attention.in_proj_bias[width:])
    keys, values = both.unflatten(-1, (2 * attention.num_heads, -1)).transpose(1, 2).chunk(2, 1)
    return keys, values


def _read(
    layer: nn.TransformerEncoderLayer, points: Tensor, seen: tuple[Tensor, Tensor], real: Tensor | None
) -> Tensor:
    """A post-norm encoder layer whose points read what was seen only."""
    attention, width = layer.self_attn, points.shape[-1]
    queries = linear(points, attention.in_proj_weight[:width], attention.in_proj_bias[:width])
    queries = queries.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
    dropout = attention.dropout if layer.training else 0.0
    read = scaled_dot_product_attention(queries, *seen, attn_mask=real, dropout_p=dropout)
    # Sums are made in place: nothing else reads what they are added to.
    points = layer.norm1(layer.dropout1(attention.out_proj(read.transpose(1, 2).flatten(2))).add_(points))
    inner = layer.dropout(layer.linear1(points).relu_())
    return layer.norm2(layer.dropout2(layer.linear2(inner)).add_(points))


def softmax_by_question(raw: Tensor, questions: Tensor) -> Tensor:
    """Softmax over the options of each question.

    Args:
        raw: float `[groups, points]`.
        questions: int64 `[groups, points]`, numbers from 0; points of one number are one question's options. Negative
            ones are padding and get 0.

    Returns:
        Float `[groups, points]` in [0, 1].
    """
    real = questions >= 0
    count = int(questions.max()) + 1 if questions.numel() else 0
    # Padding has a place of its own at the end.
    places = torch.where(real, questions, count)
    shape = (raw.shape[0], count + 1)
    highest = raw.new_full(shape, -torch.inf).scatter_reduce(1, places, raw.detach(), "amax")
    powers = torch.exp(raw - highest.gather(1, places))
    sums = raw.new_zeros(shape).scatter_add(1, places, powers)
    return torch.where(real, powers / sums.gather(1, places), 0.0)


def gaussian_nll(
    raw_means: Tensor, log_stds: Tensor, shares: Tensor, questions: Tensor, *, pad_counts: bool = False
) -> Tensor:
    """The published loss: Gaussian negative log-likelihood of the shares, the mean a softmax over a question's options.

    Args:
        raw_means: float `[groups, targets]`, of `PreferenceModule.predict`.
        log_stds: likewise.
        shares: float `[groups, targets]` in [0, 1].
        questions: int64 `[groups, targets]`, as of `softmax_by_question`.
        pad_counts: divide by padded targets, too, as the official code does.

    Returns:
        Mean over targets, a float scalar in nats. It is unbounded below.
    """
    means = softmax_by_question(raw_means, questions)
    real = questions >= 0
    errors = (shares - means) * torch.exp(-log_stds)
    values = 0.5 * errors**2 + log_stds + 0.5 * _LOG_TWO_PI
    total = torch.where(real, values, 0.0).sum()
    return total / (real.numel() if pad_counts else real.sum())


def cross_entropy(raw_means: Tensor, shares: Tensor, questions: Tensor) -> Tensor:
    """Cross-entropy of each question's shares, a mean over the questions of all groups.

    Args:
        raw_means: float `[groups, targets]`.
        shares: float `[groups, targets]` in [0, 1].
        questions: int64 `[groups, targets]`, as of `softmax_by_question`.

    Returns:
        Float scalar in nats, at least 0.
    """
    log_probs = torch.log(softmax_by_question(raw_means, questions).clamp_min(torch.finfo(raw_means.dtype).tiny))
    real = questions >= 0
    number = sum(len(row[row >= 0].unique()) for row in questions)
    return -torch.where(real, shares * log_probs, 0.0).sum() / number


_LOG_TWO_PI = 1.8378770664093453
