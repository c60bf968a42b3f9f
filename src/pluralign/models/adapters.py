"""What a person owns: a LoRA adapter on the shared base, as a PEFT folder that knows which base it belongs to."""

from __future__ import annotations

import copy
import math
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from pluralign.config import ParametersConfig
from pluralign.errors import InputError
from pluralign.models.base import Base
from pluralign.models.references import require_bare
from pluralign.storage import json_bytes, read_json, sha256_of_file, sha256_of_json, staged_folder
from pluralign.versions import versions

SCHEMA_VERSION = 1
INFO_FILE = "pluralign.json"
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
SLOT = "default"
"""Name of the adapter in memory. Never a user's id: PEFT breaks on dots, and saves any other name in a folder below."""


def new_adapter(base: Base, parameters: ParametersConfig, *, seed: int, start: Path | str | None = None) -> PeftModel:
    """Attach a LoRA adapter to train: a fresh one, which changes nothing yet (its B factors are 0), or a given one.

    Args:
        base: with no adapter attached; its model is wrapped in place, see `detach_adapter`.
        parameters: rank, alpha, dropout and target modules of a fresh adapter.
        seed: decides the initial weights, alone: torch's random state is neither used nor changed.
        start: folder of an adapter to begin with; its weights and all its settings are then those of the new one.

    Returns:
        The policy, with only the adapter's weights trainable; they are float32 where the base is in half precision.

    Raises:
        InputError: a setting is out of its range, or a target module does not exist; as `load_adapter` for `start`.
    """
    if start is not None:
        return load_adapter(base, start, trainable=True)
    config = _lora_config(base, parameters)
    # PEFT draws on the CPU whatever the device; seeding that generator alone leaves those of the GPUs as they are.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return _attached(base, config)


def adapter_layers(base: Base, parameters: ParametersConfig) -> tuple[LoraConfig, dict[str, tuple[int, int]]]:
    """What PEFT makes of the parameters: its configuration, and (inputs, outputs) of each adapted layer by name.

    Raises:
        InputError: a setting is out of its range, or a target module does not exist.
    """
    # Without values: nothing is drawn at random.
    policy = _attached(base, _lora_config(base, parameters), low_cpu_mem_usage=True)
    layers = {
        name: (layer.in_features, layer.out_features)
        for name, layer in policy.get_base_model().named_modules()
        if isinstance(layer, LoraLayer)
    }
    config = policy.peft_config[SLOT]
    detach_adapter(policy)
    return config, layers


def adapter_parameters(folder: Path | str, parameters: ParametersConfig) -> ParametersConfig:
    """Parameters with rank, scale, dropout and layers of a saved adapter.

    Raises:
        InputError: the folder holds no LoRA adapter in safetensors.
    """
    config = _read_config(Path(folder))
    targets = config.target_modules
    return replace(
        parameters,
        rank=config.r,
        alpha=float(config.lora_alpha),
        dropout=float(config.lora_dropout),
        target_modules=targets if isinstance(targets, str) else sorted(targets or ()),
    )


def adapter_digest(folder: Path | str) -> str:
    """Hex digest of what a saved adapter computes: its weights and its configuration, as their files have them.

    Raises:
        InputError: the folder holds no LoRA adapter in safetensors.
    """
    folder = Path(folder)
    _check_files(folder)
    return sha256_of_json({name: sha256_of_file(folder / name) for name in (CONFIG_FILE, WEIGHTS_FILE)})


def check_adapter(base: Base, folder: Path | str, like: LoraConfig | None = None) -> None:
    """Raise where a saved adapter cannot be used, without reading its weights.

    A PEFT folder of other origin has no `pluralign.json`: it is accepted with a warning.

    Args:
        base: what it must belong to.
        folder: of `save_adapter`, or of PEFT.
        like: rank and scale that it must have, if any.

    Raises:
        InputError: the folder holds no adapter in safetensors, or one for another base, of another rank or scale.
    """
    folder = Path(folder)
    _check_folder(folder, base)
    if like is None:
        return
    config = _read_config(folder)
    for name in ("r", "lora_alpha", "use_rslora", "use_dora", "bias", "rank_pattern", "alpha_pattern"):
        if getattr(config, name, None) != getattr(like, name, None):
            raise InputError(
                f"the adapter has {name} {getattr(config, name, None)}, and the others {getattr(like, name, None)}",
                where=str(folder),
            )


def _lora_config(base: Base, parameters: ParametersConfig) -> LoraConfig:
    require_bare(base.model)
    linear = _linear_layers(base.model)
    _check_parameters(parameters, linear)
    targets = parameters.target_modules
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=parameters.rank,
        lora_alpha=parameters.alpha,
        lora_dropout=parameters.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in linear.values()),
    )


def _attached(base: Base, config: LoraConfig, **options: Any) -> PeftModel:
    policy = _attach(base, config, **options)
    # PEFT notes the folder the model was loaded from; a reader needs the name under which it can be had again.
    policy.peft_config[SLOT].base_model_name_or_path = base.name
    return policy


def _attach(base: Base, config: LoraConfig, **options: Any) -> PeftModel:
    with warnings.catch_warnings():
        # PEFT asks transformers for something by a name that is going out of use.
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(base.model, config, adapter_name=SLOT, **options)


def detach_adapter(policy: PeftModel) -> Any:
    """The bare base model again, in evaluation mode, unchanged by whatever was trained; the policy is used up."""
    model = policy.unload()
    model.requires_grad_(False)
    return model.eval()


def save_adapter(
    policy: PeftModel,
    folder: Path | str,
    *,
    base: Base,
    user: str,
    note: str | None = None,
    made_from: Mapping[str, str] | None = None,
    state_dict: dict[str, Any] | None = None,
) -> None:
    """Write a PEFT folder with `pluralign.json` beside it; whole or not at all, and without the network.

    Args:
        policy: of `new_adapter` or `load_adapter`.
        folder: its place; an older adapter there is replaced.
        base: what the adapter belongs to.
        user: whose it is.
        note: what a reader should know about it, as why its training ended early.
        made_from: hashes of the rows that it was made from: `rows`, all of the person's, and `training`, those learned.
        state_dict: the policy's weights, where it is sharded over processes and does not hold them itself.
    """
    # Embedding layers never change; asked to find out, PEFT would look for the base's configuration on the hub.
    tensors = get_peft_model_state_dict(policy, state_dict=state_dict, adapter_name=SLOT, save_embedding_layers=False)
    write_adapter(folder, tensors, policy.peft_config[SLOT], base=base, user=user, note=note, made_from=made_from)


def write_adapter(
    folder: Path | str,
    tensors: Mapping[str, Tensor],
    config: LoraConfig,
    *,
    base: Base,
    user: str,
    note: str | None = None,
    made_from: Mapping[str, str] | None = None,
) -> None:
    """Write weights under PEFT's names as a PEFT folder; see `save_adapter`."""
    saved = copy.copy(config)
    saved.inference_mode = True
    if isinstance(saved.target_modules, set):
        # Every process has an order of its own for a set.
        saved.target_modules = sorted(saved.target_modules)
    with staged_folder(folder) as staging:
        weights = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        save_file(weights, staging / WEIGHTS_FILE, metadata={"format": "pt"})
        saved.save_pretrained(str(staging))
        info = {
            "schema_version": SCHEMA_VERSION,
            "user": user,
            "base": base.name,
            "base_fingerprint": base.fingerprint,
            **({"quantization": base.quantization} if base.quantization != "none" else {}),
            "versions": versions(),
            **({"made_from": dict(made_from)} if made_from else {}),
            **({"note": note} if note else {}),
        }
        # The whole folder is synced at once when it is staged.
        (staging / INFO_FILE).write_bytes(json_bytes(info))


def initial_factors(sizes: Iterable[tuple[int, int]], rank: int, seed: int) -> list[Tensor]:
    """The A factors that PEFT draws after a seed, layer by layer; B factors are 0.

    Args:
        sizes: (inputs, outputs) of the adapted layers, in the model's order.
        rank: of the adapter.
        seed: torch's random state is neither used nor changed.

    Returns:
        [rank, inputs] float32 each, on the CPU.
    """
    factors: list[Tensor] = []
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for inputs, outputs in sizes:
            # Both linear layers draw values of their own before PEFT draws A, and sets B to 0.
            down = torch.nn.Linear(inputs, rank, bias=False)
            torch.nn.Linear(rank, outputs, bias=False)
            torch.nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
            factors.append(down.weight.detach())
    return factors


def read_adapter(base: Base, folder: Path | str, like: LoraConfig) -> dict[str, Tensor]:
    """The weights of a saved adapter under PEFT's names, on the CPU.

    Args:
        base: what it must belong to.
        folder: of `save_adapter`, or of PEFT.
        like: rank and scale that it must have.

    Raises:
        InputError: the folder holds no adapter in safetensors, or one for another base, of another rank or scale.
    """
    folder = Path(folder)
    check_adapter(base, folder, like)
    try:
        return load_file(folder / WEIGHTS_FILE)
    except (SafetensorError, OSError) as error:
        raise InputError(f"the weights cannot be read ({error})", where=str(folder / WEIGHTS_FILE)) from None


def load_adapter(base: Base, folder: Path | str, *, trainable: bool = False) -> PeftModel:
    """Attach a saved adapter, in evaluation mode.

    A PEFT folder of other origin has no `pluralign.json`: it is accepted with a warning if its weights fit.

    Args:
        base: with no adapter attached; its model is wrapped in place, see `detach_adapter`.
        folder: of `save_adapter`, or of PEFT.
        trainable: whether its weights may be trained.

    Raises:
        InputError: the folder holds no adapter in safetensors, or one for another base.
    """
    require_bare(base.model)
    folder = Path(folder)
    _check_folder(folder, base)
    try:
        config = LoraConfig.from_pretrained(str(folder))
        # PEFT would warn that the base is known by another name; the fingerprint tells better.
        config.inference_mode, config.base_model_name_or_path = not trainable, None
        # Empty weights, filled from the file: nothing is drawn at random only to be replaced.
        policy = _attach(base, config, low_cpu_mem_usage=True)
        result = policy.load_adapter(
            str(folder), SLOT, is_trainable=trainable, low_cpu_mem_usage=True, torch_device=str(base.device)
        )
        if base.model.dtype in (torch.bfloat16, torch.float16):
            # On their way in PEFT has rounded the weights to the base's precision, and then widened them again.
            set_peft_model_state_dict(policy, load_file(folder / WEIGHTS_FILE), adapter_name=SLOT)
    except (RuntimeError, ValueError, TypeError, KeyError, SafetensorError) as error:
        _remove_layers(base.model)
        raise InputError(f"the adapter does not fit the base {base.name} ({error})", where=str(folder)) from error
    lacking, too_many = result.missing_keys, result.unexpected_keys
    if lacking or too_many:
        _remove_layers(base.model)
        found = (
            f"lacks weights ({lacking[0]})" if lacking else f"has weights for layers that are not there ({too_many[0]})"
        )
        raise InputError(f"the adapter does not fit the base {base.name}: it {found}", where=str(folder))
    policy.peft_config[SLOT].base_model_name_or_path = base.name
    return policy.eval()


def _remove_layers(model: torch.nn.Module) -> None:
    """Take out what a failed attempt to attach an adapter has left in the base."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            model.set_submodule(name, layer.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config


def _linear_layers(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear | Conv1D)}


def _check_parameters(parameters: ParametersConfig, linear: dict[str, torch.nn.Module]) -> None:
    for name, value, fits, expected in (
        ("rank", parameters.rank, parameters.rank >= 1, "at least 1"),
        ("dropout", parameters.dropout, 0 <= parameters.dropout < 1, "at least 0 and below 1"),
    ):
        if not fits:
            raise InputError(f"parameters.{name} is {value}", fix=f"It must be {expected}.")
    targets = parameters.target_modules
    if isinstance(targets, str):
        unknown = [] if targets == "all-linear" or any(_full_match(targets, name) for name in linear) else [targets]
    else:
        unknown = [name for name in targets if not any(f".{layer}".endswith(f".{name}") for layer in linear)]
    if unknown or not targets:
        names = ", ".join(sorted({layer.rpartition(".")[2] for layer in linear}))
        found = ", ".join(map(repr, unknown)) or "nothing"
        raise InputError(
            f"parameters.target_modules names {found}, no linear layer of the base",
            fix=f"There are: {names}; or take all-linear.",
        )


def _full_match(pattern: str, name: str) -> bool:
    """PEFT's reading of a single string: a regular expression of the layer's whole name."""
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error:
        return False


def _check_files(folder: Path) -> None:
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise InputError(f"the folder has no {name}", where=str(folder), fix="Give the folder of a PEFT adapter.")
    config = read_json(folder / CONFIG_FILE)
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise InputError("it is no LoRA adapter", where=str(folder / CONFIG_FILE))


def _read_config(folder: Path) -> LoraConfig:
    _check_files(folder)
    try:
        return LoraConfig.from_pretrained(str(folder))
    except (TypeError, ValueError, KeyError) as error:
        raise InputError(f"PEFT cannot read it ({error})", where=str(folder / CONFIG_FILE)) from None


def _check_folder(folder: Path, base: Base) -> None:
    _check_files(folder)
    if not (folder / INFO_FILE).is_file():
        warnings.warn(f"{folder} has no {INFO_FILE}: whether it was trained on {base.name} is not known", stacklevel=3)
        return
    info = read_json(folder / INFO_FILE)
    _check_schema(info, folder / INFO_FILE)
    if info.get("base_fingerprint") != base.fingerprint:
        raise InputError(
            f"the adapter belongs to the base {info.get('base')!r} ({_short(info.get('base_fingerprint'))}), "
            f"and this is {base.name!r} ({_short(base.fingerprint)})",
            where=str(folder),
            fix="Load it on the model it was trained on.",
        )


def _check_schema(content: Any, path: Path) -> None:
    if not isinstance(content, dict) or content.get("schema_version") != SCHEMA_VERSION:
        found = content.get("schema_version") if isinstance(content, dict) else content
        raise InputError(f"schema_version is {found!r}, and this is {SCHEMA_VERSION}", where=str(path))


def _short(fingerprint: Any) -> str:
    return str(fingerprint)[:12]
