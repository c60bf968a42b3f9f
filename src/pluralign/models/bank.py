"""The LoRA bank: adapters of many people on one frozen base, each row of a batch with its own or with none.

A slot holds one person's adapter as one row of a matrix, so that optimisers, norms and snapshots see a vector a person;
every adapted layer sees the same memory as stacked factors. The backward pass adds each row's gradient to its own slot
and to nothing else: what a batch holds beside a person's rows cannot reach that person's adapter.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pluralign.config import ParametersConfig
from pluralign.errors import InputError
from pluralign.models.adapters import adapter_layers, initial_factors, read_adapter, write_adapter
from pluralign.models.base import Base
from pluralign.models.dropout import keep_scale
from pluralign.models.masks import causal_lm

NONE = -1
"""Slot of a row that runs through the bare base."""


@dataclass(slots=True)
class Layer:
    """One adapted linear layer: views of the bank's matrices, one entry a slot.

    Attributes:
        name: of the layer in the base.
        module: the base's own layer, frozen.
        down: [slots + 1, r, in] the A factors; the last entry is zero and stands for none.
        up: [slots + 1, r, out] the B factors, transposed: so both factors are read along their rows.
        grad_down, grad_up: the same of the gradients.
        number: position among the layers, which dropout tells them apart by.
    """

    name: str
    module: Any
    down: Tensor
    up: Tensor
    grad_down: Tensor | None
    grad_up: Tensor | None
    number: int
    _cast: dict[torch.dtype, Tensor] = field(default_factory=dict)

    def weight(self, dtype: torch.dtype) -> Tensor:
        """The base's own weights in a dtype; on a CPU converted once, where autocast would in every forward."""
        own: Tensor = self.module.weight
        if own.dtype == dtype or own.device.type != "cpu":
            return own.to(dtype)
        if dtype not in self._cast:
            self._cast[dtype] = own.to(dtype)
        return self._cast[dtype]


@dataclass(slots=True)
class _Rows:
    """What the layers must know of the forward that runs.

    Attributes:
        slots: [R] index into the layers' entries; the last one for rows without an adapter.
        keys: [R] what dropout draws from, a number of the person's own for each row; None leaves dropout out.
        length: of the runs, stretches of rows with the same slot: R is a multiple.
        runs: [R / length] the runs' slots: neighbours meet their factors in one product.
        together: entries that the runs take one after another, where they do so.
    """

    slots: Tensor
    keys: Tensor | None
    length: int
    runs: Tensor
    together: slice | None

    @classmethod
    def of(cls, slots: Tensor, keys: Tensor | None, device: torch.device) -> _Rows:
        """From the rows' slots, on the CPU."""
        _, lengths = slots.unique_consecutive(return_counts=True)
        length = math.gcd(*lengths.tolist())
        runs = slots[::length]
        first = int(runs[0])
        ascending = bool((runs.diff() == 1).all())
        together = slice(first, first + len(runs)) if ascending else None
        return cls(slots.to(device), None if keys is None else keys.to(device), length, runs.to(device), together)

    def factors(self, entries: Tensor, dtype: torch.dtype) -> Tensor:
        """Of each run, [R / length, r, ...]; a view where nothing has to be gathered or cast."""
        found = entries.index_select(0, self.runs) if self.together is None else entries[self.together]
        return found.to(dtype)

    def add(self, to: Tensor, parts: Tensor) -> None:
        """Add the part of each row, [R, r, ...], to its slot, in the same order every time."""
        if self.together is not None:
            for part in parts.unflatten(0, (-1, self.length)).unbind(dim=1):
                to[self.together].add_(part)
        elif to.device.type == "cuda":
            # index_add_ would add in any order there.
            to.index_put_((self.slots,), parts.to(to.dtype), accumulate=True)
        else:
            to.index_add_(0, self.slots, parts.to(to.dtype))


class LoraBank:
    """Adapters stacked on a base, which computes with them while the bank is attached.

    Rank, alpha, target modules, dropout and initial values are PEFT's; what is saved is a PEFT folder.

    Args:
        base: with no adapter attached. Its linear layers compute with the bank until `detach`.
        parameters: of every adapter in the bank.
        slots: adapters held at a time, at least 1; or what tells it from the bytes of one.
        trainable: also hold gradients.

    Attributes:
        matrix: [slots + 1, P] float32 (float64 for a float64 base), an adapter a row; the last row stays zero.
        grads: [slots + 1, P] their gradients; None where the bank is not trainable.

    Raises:
        InputError: a setting is out of its range, a target module does not exist, or the head is a target.
    """

    def __init__(
        self,
        base: Base,
        parameters: ParametersConfig,
        slots: int | Callable[[int], int],
        *,
        trainable: bool = False,
    ) -> None:
        self.base = base
        self.config, shapes = adapter_layers(base, parameters)
        self.rank, self.scale, self.dropout = parameters.rank, parameters.alpha / parameters.rank, parameters.dropout
        self._check_targets(shapes)
        dtype = torch.float64 if base.model.dtype == torch.float64 else torch.float32
        size = self.rank * sum(map(sum, shapes.values()))
        self.bytes_per_slot = size * dtype.itemsize
        self.slots = slots if isinstance(slots, int) else slots(self.bytes_per_slot)
        self.matrix = torch.zeros(self.slots + 1, size, dtype=dtype, device=base.device)
        self.grads = torch.zeros_like(self.matrix) if trainable else None
        self.layers = self._views(shapes)
        # What every adapted layer's output hangs on in the graph: factors get their gradients past autograd, straight
        # into their slots, and the first layer's input needs none.
        self._switch = torch.zeros((), device=base.device, requires_grad=trainable)
        self._rows: _Rows | None = None
        self._tokens = 0
        self._handles: list[Any] = []
        self.attach()

    # ---- slots ----

    def admit(self, slot: int, *, seed: int, start: Path | str | None = None) -> None:
        """Put an adapter to be trained into a slot: the weights that `new_adapter` draws from the seed, or given ones.

        Args:
            slot: its number.
            seed: decides the weights of a fresh adapter.
            start: folder of an adapter to begin with, shaped like the bank's; see `adapter_parameters`.

        Raises:
            InputError: as `load`, for `start`.
        """
        if start is not None:
            self.load(slot, start)
            return
        with torch.no_grad():
            self.matrix[slot].zero_()
            for layer, factor in zip(self.layers, initial_factors(self._sizes(), self.rank, seed), strict=True):
                layer.down[slot] = factor.to(_precision(layer.module)).to(self.matrix.dtype)
        self._clear(slot)

    def load(self, slot: int, folder: Path | str) -> None:
        """Put a saved adapter into a slot.

        Raises:
            InputError: the folder holds no adapter, one for another base, or one that is not shaped like the bank's.
        """
        tensors = read_adapter(self.base, folder, self.config)
        with torch.no_grad():
            for layer in self.layers:
                down, up = (tensors.pop(key, None) for key in _keys(layer.name))
                if down is None or up is None or down.shape != layer.down.shape[1:] or up.T.shape != layer.up.shape[1:]:
                    raise InputError(f"the adapter has other factors at {layer.name} than the bank", where=str(folder))
                layer.down[slot], layer.up[slot] = down.to(self.matrix), up.T.to(self.matrix)
        if tensors:
            raise InputError(f"the adapter has weights for more layers ({next(iter(tensors))})", where=str(folder))
        self._clear(slot)

    def save(
        self,
        slot: int,
        folder: Path | str,
        *,
        user: str,
        note: str | None = None,
        made_from: Mapping[str, str] | None = None,
    ) -> None:
        """Write a slot's adapter as a PEFT folder, as `save_adapter` does."""
        tensors = self.tensors(slot)
        write_adapter(folder, tensors, self.config, base=self.base, user=user, note=note, made_from=made_from)

    def tensors(self, slot: int) -> dict[str, Tensor]:
        """A slot's factors under the names and in the shapes of PEFT's files, on the CPU."""
        found: dict[str, Tensor] = {}
        for layer in self.layers:
            down, up = _keys(layer.name)
            found[down] = layer.down[slot].detach().cpu().contiguous()
            found[up] = layer.up[slot].detach().T.cpu().contiguous()
        return found

    def _clear(self, slot: int) -> None:
        if self.grads is not None:
            self.grads[slot].zero_()

    # ---- forwards ----

    @contextlib.contextmanager
    def rows(self, slots: Tensor, *, keys: Tensor | None = None) -> Iterator[None]:
        """Name the slot of every row of the forwards (and their backwards) inside the block.

        Args:
            slots: [R] int64, `NONE` for a row of the bare base. Rows hold equally many tokens; where a row of the
                batch holds several people's tokens side by side, its equal pieces count as rows here. On the CPU they
                cost no wait for the device.
            keys: [R] int64, drawn from by dropout; without them there is none.
        """
        if bool((slots == NONE).all()):
            yield
            return
        index = torch.where(slots == NONE, self.slots, slots)
        self._rows = _Rows.of(index, keys if self.dropout else None, self.base.device)
        try:
            yield
        finally:
            self._rows = None

    def detach(self) -> None:
        """Give the base its own layers back, unchanged by whatever was trained."""
        for layer in self.layers:
            layer.module.__dict__.pop("forward", None)
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def attach(self) -> None:
        """Let the base's layers compute with the bank: a new one is attached, and so is one that was detached."""

        def count(_: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
            tokens = keywords.get("input_ids", arguments[0] if arguments else None)
            self._tokens = 0 if tokens is None else tokens.numel()

        self._handles.append(causal_lm(self.base.model).register_forward_pre_hook(count, with_kwargs=True))
        for layer in self.layers:
            own = layer.module.forward
            layer.module.forward = _Banked(self, layer, own)

    def _views(self, shapes: Mapping[str, tuple[int, int]]) -> list[Layer]:
        layers: list[Layer] = []
        start = 0
        for number, (name, (inner, outer)) in enumerate(shapes.items()):
            middle, end = start + self.rank * inner, start + self.rank * (inner + outer)

            def view(matrix: Tensor | None, a: int, b: int) -> Any:
                return None if matrix is None else matrix[:, a:b].unflatten(1, (self.rank, -1))

            layers.append(
                Layer(
                    name=name,
                    module=self.base.model.get_submodule(name),
                    down=view(self.matrix, start, middle),
                    up=view(self.matrix, middle, end),
                    grad_down=view(self.grads, start, middle),
                    grad_up=view(self.grads, middle, end),
                    number=number,
                )
            )
            start = end
        return layers

    def _sizes(self) -> list[tuple[int, int]]:
        return [(layer.down.shape[-1], layer.up.shape[-1]) for layer in self.layers]

    def _check_targets(self, shapes: Mapping[str, tuple[int, int]]) -> None:
        head = self.base.model.get_output_embeddings()
        named = [name for name in shapes if self.base.model.get_submodule(name) is head]
        if named:
            raise InputError(
                f"parameters.target_modules names the head ({named[0]}), which sees responses' tokens only",
                fix="Leave it out, or train people one after another (engine trainer).",
            )


class _Banked:
    """A linear layer's forward while a bank is attached; without rows it is the layer's own."""

    def __init__(self, bank: LoraBank, layer: Layer, own: Any) -> None:
        self.bank, self.layer, self.own = bank, layer, own
        # A plain linear layer computes its own part and the adapters' in one pass over the gradient.
        self.fused = type(layer.module) is nn.Linear

    def __call__(self, x: Tensor) -> Tensor:
        rows, bank = self.bank._rows, self.bank
        if rows is None:
            return self.own(x)
        if x.numel() != bank._tokens * x.shape[-1]:
            raise InputError(
                f"the layer {self.layer.name} does not see the tokens of the rows one by one (experts?)",
                fix="Leave it out of parameters.target_modules, or train people one after another (engine trainer).",
            )
        output = None if self.fused else self.own(x)
        return _LoraLinear.apply(x, output, bank._switch, self.layer, rows, bank)


class _LoraLinear(torch.autograd.Function):
    """y = W x + b + scale * B_s A_s x, with the A and B of each row's slot s.

    Neighbouring rows of one person meet their factors in one product, whose entries are the same however many rows
    there are. The factors' gradients are sums over tokens: those are made row by row, so that they are rounded alike
    whoever is beside a row, in bf16 too.

    With `output` the layer has computed W x + b by itself, and autograd carries that part.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, output: Tensor | None, switch: Tensor, layer: Layer, rows: _Rows, bank: LoraBank
    ) -> Tensor:
        kind = x.device.type
        mixed = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        # As PEFT: in the precision of the factors, unless autocast says otherwise.
        dtype = mixed or layer.down.dtype
        with torch.autocast(kind, enabled=False):
            own = layer.module.weight.dtype if mixed is None else mixed
            if output is None:
                bias = layer.module.bias
                y = functional.linear(x.to(own), layer.weight(own), None if bias is None else bias.to(own))
            else:
                y = output.clone()
            count = len(rows.runs)
            inner = x.reshape(count, -1, x.shape[-1]).to(dtype)
            kept = _keep(inner, layer, rows, bank)
            down, up = rows.factors(layer.down, dtype), rows.factors(layer.up, dtype)
            narrow = torch.bmm(inner if kept is None else inner * kept, down.transpose(1, 2)).mul_(bank.scale)
            _add_product(y.view(count, -1, y.shape[-1]), narrow, up)
        ctx.save_for_backward(inner, narrow, down, up)
        ctx.layer, ctx.rows, ctx.bank, ctx.own, ctx.shape = layer, rows, bank, own, x.shape
        ctx.input_dtype, ctx.fused = x.dtype, output is None
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inner, narrow, down, up = ctx.saved_tensors
        layer, rows, bank = ctx.layer, ctx.rows, ctx.bank
        kept = _keep(inner, layer, rows, bank)
        outer = grad.reshape(len(rows.runs), -1, grad.shape[-1]).to(inner.dtype)
        grad_narrow = torch.bmm(outer, up.transpose(1, 2)).mul_(bank.scale)
        if bank.grads is not None:
            seen = inner if kept is None else inner * kept
            rows.add(layer.grad_up, _by_row(narrow, rows).transpose(1, 2) @ _by_row(outer, rows))
            rows.add(layer.grad_down, _by_row(grad_narrow, rows).transpose(1, 2) @ _by_row(seen, rows))
        if not ctx.needs_input_grad[0]:
            return None, (None if ctx.fused else grad), None, None, None, None
        own_grad = (grad.to(ctx.own) @ layer.weight(ctx.own)).view(inner.shape) if ctx.fused else None
        grad_x = _input_grad(own_grad, grad_narrow, down, kept).view(ctx.shape).to(ctx.input_dtype)
        return grad_x, (None if ctx.fused else grad), None, None, None, None


def _keep(inner: Tensor, layer: Layer, rows: _Rows, bank: LoraBank) -> Tensor | None:
    """Dropout's factor for every input, as they come by runs: made again in the backward pass instead of being kept."""
    if rows.keys is None:
        return None
    shape = inner.shape[1] // rows.length, inner.shape[2]
    return keep_scale(rows.keys, layer.number, shape, bank.dropout).to(inner.dtype).view(inner.shape)


def _by_row(tensor: Tensor, rows: _Rows) -> Tensor:
    """[R, T, ...] from [R / length, length * T, ...]."""
    return tensor.view(len(rows.slots), -1, tensor.shape[-1])


def _input_grad(own: Tensor | None, grad_narrow: Tensor, down: Tensor, kept: Tensor | None) -> Tensor:
    """What goes back to the inputs, [R, T, in]: the adapters' part, and the layer's own where autograd has it not."""
    if own is not None and kept is None:
        _add_product(own, grad_narrow, down)
        return own
    part = torch.bmm(grad_narrow, down)
    if kept is not None:
        part.mul_(kept)
    return part if own is None else own.add_(part)


def _add_product(to: Tensor, left: Tensor, right: Tensor) -> None:
    """To += left @ right, in one kernel where the types agree."""
    if to.dtype == left.dtype:
        to.baddbmm_(left, right)
    else:
        to.add_(torch.bmm(left, right))


def _precision(module: Any) -> torch.dtype:
    """What PEFT rounds an adapter's initial values to: the precision that the layer computes in, where it has one."""
    dtype = getattr(module, "compute_dtype", None) or module.weight.dtype
    return dtype if dtype.is_floating_point else torch.float32


def _keys(layer: str) -> tuple[str, str]:
    """Names of a layer's two factors in PEFT's files."""
    return f"base_model.model.{layer}.lora_A.weight", f"base_model.model.{layer}.lora_B.weight"
