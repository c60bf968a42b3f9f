"""A reference that follows the policy: the exponential moving average of the adapter's weights over the steps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pluralign.errors import InputError
from pluralign.models.generation import evaluation_mode
from pluralign.models.logprobs import branch_logps
from pluralign.models.rows import ResponseBatch

FILE = "reference.safetensors"
"""Name of its weights in the folder of a checkpoint."""


class MovingReference:
    """A second set of values for a policy's trainable weights, which no gradient reaches.

    The values are put in place of the policy's for the time of a forward, and are no part of the model: nothing has to
    be taken out before the policy is saved, and neither the optimiser nor DDP ever sees them. After a step,
    reference <- decay * reference + (1 - decay) * policy. With decay 0 it is what the step before left: every margin is
    then 0 when it is compared, and what remains of the loss is its slope there.

    Args:
        policy: as it is before training, not wrapped, and not sharded: the reference begins as a copy.
        decay: in [0, 1).

    Attributes:
        values: name of a weight -> its value in the reference, in the weight's dtype, on its device.

    Raises:
        ValueError: the decay is out of its range, or nothing of the policy is trainable.
    """

    def __init__(self, policy: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; it must be at least 0 and below 1")
        self.decay = decay
        self._scorer = _Scorer(policy)
        # The very parameters, not their names in the model: wrapping a model renames them.
        self._weights = {name: one for name, one in policy.named_parameters() if one.requires_grad}
        if not self._weights:
            raise ValueError("the policy has no trainable weight to follow")
        self.values = {name: one.detach().clone() for name, one in self._weights.items()}

    @torch.no_grad()
    def forward(self, responses: ResponseBatch) -> dict[str, Tensor]:
        """Branch -> [B] log-prob under the reference, nats; without dropout, in the precision that autocast asks for.

        To be called before the policy's own forward: its graph must not see the values change places.
        """
        values = {f"policy.{name}": value for name, value in self.values.items()}
        with evaluation_mode(self._scorer.policy):
            logps: dict[str, Tensor] = functional_call(self._scorer, values, (responses,))
        return logps

    @torch.no_grad()
    def update(self) -> None:
        """Follow the policy by a step; to be called once after each of the optimiser's."""
        for name, value in self.values.items():
            # At a weight of 1 it gives the policy's value to the last bit.
            value.lerp_(self._weights[name], 1 - self.decay)

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of the values, on the CPU."""
        return {name: value.to("cpu", copy=True).contiguous() for name, value in self.values.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state.

        Raises:
            ValueError: it is of other weights.
        """
        shapes = {name: value.shape for name, value in self.values.items()}
        if {name: value.shape for name, value in state.items()} != shapes:
            odd = sorted(state.keys() ^ shapes.keys()) or ["the shape of a weight"]
            raise ValueError(f"the state is of other weights than the policy's: {odd[0]}")
        for name, value in state.items():
            self.values[name].copy_(value)

    def save(self, folder: Path | str) -> None:
        """Write the values into the folder of a checkpoint."""
        save_file(self.state_dict(), Path(folder) / FILE, metadata={"format": "pt"})

    def load(self, folder: Path | str) -> None:
        """Go on from a checkpoint.

        Raises:
            InputError: it has no such file, or one of other weights.
        """
        path = Path(folder) / FILE
        try:
            self.load_state_dict(load_file(path))
        except (OSError, SafetensorError, ValueError) as error:
            raise InputError(
                f"the moving reference cannot be read ({error})", where=str(path), fix="Begin anew with --overwrite."
            ) from None


class FollowPolicy(TrainerCallback):
    """Updates a moving reference after each optimiser step, before the step is logged, validated or saved."""

    def __init__(self, reference: MovingReference) -> None:
        self.reference = reference

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The step's weights are in place."""
        self.reference.update()


class _Scorer(nn.Module):
    """Log-probs of a batch as the forward of a module, whose weights can be exchanged for the time of a call."""

    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, responses: ResponseBatch) -> dict[str, Tensor]:
        return branch_logps(self.policy, responses)
