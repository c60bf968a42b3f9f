"""The one base model: found, checked, loaded, fingerprinted."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import GatedRepoError, HTTPError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.utils import is_bitsandbytes_available, logging

from pluralign.config import ModelConfig
from pluralign.errors import InputError
from pluralign.models.attention import BLOCKED
from pluralign.models.cache import default_folder
from pluralign.models.elementwise import quicken
from pluralign.models.fingerprint import folder_fingerprint, model_fingerprint, tokenizer_fingerprint
from pluralign.models.masks import attention_kernel
from pluralign.models.matmul import warn_of_slow_bfloat16
from pluralign.storage import read_json

_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt", "*.tiktoken"]
_NOT_NEEDED = ["original/*", "onnx/*", "consolidated*", "*/*.safetensors"]
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_HUB_SECONDS = 10.0
_SAME_MODEL = "Are config.json and the weights of the same model, and is the download complete?"


@dataclass
class Base:
    """A base model that nothing trains: evaluation mode, no gradients.

    Attributes:
        model: a causal language model of transformers.
        tokenizer: with an end-of-sequence token and a padding token (the former, where it has none of its own).
        fingerprint: hex digest of weights and configuration, whatever dtype they were loaded in.
        tokenizer_fingerprint: hex digest of the tokenizer and its chat template.
        name: what it was asked for by.
    """

    model: Any
    tokenizer: Any
    fingerprint: str
    tokenizer_fingerprint: str
    name: str

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return torch.device(self.model.device)

    @property
    def quantization(self) -> str:
        """As in `ModelConfig`: `4bit` where the linear layers are, else `none`."""
        return "4bit" if getattr(self.model, "is_loaded_in_4bit", False) else "none"


def load_base(config: ModelConfig) -> Base:
    """Load the base model of a configuration, from the package, a folder or the hub.

    Only safetensors are read, no code of the model's own is run, and a local model never asks the network.

    Raises:
        InputError: there is no such model, it cannot be read, or it lacks something; the message says what.
    """
    folder = find_model(config.model, config.model_revision)
    weights = _weight_files(folder)
    device = find_device(config.device)
    _check_quantization(config, device)
    tokenizer = _load_tokenizer(folder)
    model = _load_model(folder, config, device)
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise InputError(
            f"the tokenizer has {len(tokenizer)} tokens and the model {rows} embeddings",
            where=str(folder),
            fix="They do not belong together.",
        )
    fingerprint = folder_fingerprint(folder, weights, _cache_dir(config))
    return _frozen(model, tokenizer, fingerprint, config.model)


def load_tokenizer(name: str, revision: str | None = None) -> Any:
    """The tokenizer of a model alone, found as `load_base` finds the model.

    Raises:
        InputError: there is no such model, or it has no tokenizer that can be read.
    """
    return _load_tokenizer(find_model(name, revision))


def base_of(model: Any, tokenizer: Any, *, name: str = "memory") -> Base:
    """A base from a model and a tokenizer in memory; its fingerprint is one of the state's bytes.

    Raises:
        InputError: the tokenizer has no end-of-sequence token.
    """
    _check_tokenizer(tokenizer, name)
    return _frozen(model, tokenizer, model_fingerprint(model), name)


def find_model(name: str, revision: str | None = None) -> Path:
    """The folder of a model: the one in the package for `nano`, a folder as it is, a hub model's after its download.

    Raises:
        InputError: there is none; for a hub model within seconds when there is no network.
    """
    if name == "nano":
        from pluralign.world import NANO_PATH

        if not Path(NANO_PATH).is_dir():
            raise InputError("the nano model is not in the package", where=str(NANO_PATH), fix="Install it again.")
        return Path(NANO_PATH)
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise InputError(
            "it is a file, not a model's folder", where=name, fix="Give the folder that holds config.json."
        )
    if name.startswith((".", "~", os.sep)) or name.count("/") > 1 or "\\" in name or not name.strip("/ "):
        raise InputError("there is no such folder", where=repr(name), fix="Give a model's folder, a hub id, or nano.")
    return _from_hub(name, revision)


def _from_hub(name: str, revision: str | None) -> Path:
    offline = constants.HF_HUB_OFFLINE
    reason = "the hub is switched off (HF_HUB_OFFLINE)"
    if not offline:
        try:
            # One short question: the download itself would try again and again for most of a minute.
            HfApi().model_info(name, revision=revision, timeout=_HUB_SECONDS)
        except GatedRepoError:
            raise InputError(
                "the hub model is gated", where=name, fix="Accept its terms and log in to the hub."
            ) from None
        except RevisionNotFoundError:
            raise InputError(f"the hub model has no revision {revision!r}", where=name) from None
        except RepositoryNotFoundError:
            raise InputError(
                "there is no such folder and no such hub model",
                where=name,
                fix="Give a model's folder, a hub id, or nano.",
            ) from None
        except ValueError as error:
            raise InputError(f"there is no such folder, and it is no hub id ({error})", where=name) from None
        except (HTTPError, OSError) as error:
            offline, reason = True, f"the hub does not answer ({type(error).__name__})"
    try:
        folder = snapshot_download(
            name, revision=revision, allow_patterns=_HUB_FILES, ignore_patterns=_NOT_NEEDED, local_files_only=offline
        )
    except (OSError, ValueError) as error:
        if not offline:
            raise InputError(f"the download failed ({error})", where=name) from None
        raise InputError(
            f"there is no such folder, {reason}, and the model is not in the hub's local cache",
            where=name,
            fix="Give a model's folder or nano, or download the model once with a network.",
        ) from None
    return Path(folder)


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, all of them there."""
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise InputError(
                "it is an adapter, not a base model", where=str(folder), fix="Give the base that it was trained on."
            )
        raise InputError("the folder has no config.json", where=str(folder), fix="Give the folder of a model.")
    if not isinstance(read_json(folder / "config.json"), dict):
        raise InputError("it is no JSON object", where=str(folder / "config.json"), fix="Is the download complete?")
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if index.is_file():
        content = read_json(index)
        shards = sorted(set(content.get("weight_map", {}).values())) if isinstance(content, dict) else []
        missing = [name for name in shards if not (folder / name).is_file()]
        if missing or not shards:
            raise InputError(
                f"weights are missing: {', '.join(missing[:3]) or 'the index names none'}", where=str(index)
            )
        return [folder / name for name in shards]
    if any(next(folder.glob(pattern), None) for pattern in _PICKLES):
        raise InputError(
            "the weights are pickles (.bin, .pt), which can run code when they are read",
            where=str(folder),
            fix="Save the model as safetensors: model.save_pretrained(folder).",
        )
    raise InputError(
        "the folder has no weights (model.safetensors)", where=str(folder), fix="Is the download complete?"
    )


def _load_model(folder: Path, config: ModelConfig, device: torch.device) -> Any:
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    where = str(folder)
    try:
        model_config = AutoConfig.from_pretrained(folder, **options)
        kernel = config.attn_implementation or _needed_kernel(model_config)
        if kernel:
            options["attn_implementation"] = kernel
        if device.type != "cpu":
            options["device_map"] = {"": device}
        if config.quantization == "4bit":
            options["quantization_config"] = _four_bits()
        dtype = config.dtype if config.dtype == "auto" else getattr(torch, config.dtype)
        with _bars_on_terminals_only():
            model, report = AutoModelForCausalLM.from_pretrained(
                folder, config=model_config, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
            )
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError) as error:
        raise InputError(f"the model cannot be loaded ({_first_line(error)})", where=where, fix=_SAME_MODEL) from error
    missing = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if missing:
        raise InputError(
            f"the weights lack {len(missing)} tensors of the model, {missing[0]} for one",
            where=where,
            fix=_SAME_MODEL,
        )
    if model.dtype == torch.bfloat16:
        warn_of_slow_bfloat16(device)
    if device.type == "cpu" and not config.attn_implementation and attention_kernel(model) == "sdpa":
        model.set_attn_implementation(BLOCKED)
    if device.type == "cpu":
        quicken(model)
    return model


@contextlib.contextmanager
def _bars_on_terminals_only() -> Iterator[None]:
    shown = logging.is_progress_bar_enabled()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _needed_kernel(model_config: Any) -> str | None:
    """`eager` for models that soft-cap attention scores, which `sdpa` cannot; else transformers' own choice."""
    softcap = getattr(model_config.get_text_config(), "attn_logit_softcapping", None)
    return "eager" if softcap is not None else None


def _load_tokenizer(folder: Path) -> Any:
    where = str(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise InputError(
            f"there is no tokenizer that can be read ({_first_line(error)})",
            where=where,
            fix="Put the model's tokenizer files into the folder.",
        ) from error
    if len(tokenizer) == 0:
        raise InputError("there is no tokenizer", where=where, fix="Put the model's tokenizer files into the folder.")
    _check_tokenizer(tokenizer, where)
    return tokenizer


def _check_tokenizer(tokenizer: Any, where: str) -> None:
    if tokenizer.eos_token_id is None:
        raise InputError(
            "the tokenizer has no end-of-sequence token, so no response could end",
            where=where,
            fix="Set eos_token in tokenizer_config.json.",
        )


def _frozen(model: Any, tokenizer: Any, fingerprint: str, name: str) -> Base:
    tokens = tokenizer_fingerprint(tokenizer)
    if tokenizer.pad_token_id is None:
        # Only fills the room in a batch: attention masks are explicit, and padded positions are never labels.
        tokenizer.pad_token = tokenizer.eos_token
    model.eval().requires_grad_(False)
    return Base(model, tokenizer, fingerprint, tokens, name)


def find_device(name: str) -> torch.device:
    """The device that a configuration names: `auto` is a GPU where there is one.

    Raises:
        InputError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device is {name!r}", fix="It is auto, cpu, cuda, or cuda:1.") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device is {name!r}, and there are {torch.cuda.device_count()} GPUs", fix="Use auto or cpu.")
    return device


def _check_quantization(config: ModelConfig, device: torch.device) -> None:
    if config.quantization == "none":
        return
    if device.type != "cuda":
        raise InputError(
            f"quantization is {config.quantization}, and the base would be on {device}",
            fix="A base in 4 bits needs a GPU: take one, or set quantization to none.",
        )
    if config.dtype == "float64":
        raise InputError(f"quantization is {config.quantization} and dtype is float64", fix="Take bfloat16.")
    if not is_bitsandbytes_available():
        raise InputError(
            f"quantization is {config.quantization}, and bitsandbytes is not installed, or too old",
            fix="pip install 'pluralign[quantized]'",
        )


def _four_bits() -> BitsAndBytesConfig:
    """What QLoRA trains adapters on (Dettmers et al. 2023, section 3): NF4, whose scales are quantized too."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def _cache_dir(config: ModelConfig) -> Path:
    return Path(config.cache_dir or default_folder()).expanduser()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
