"""From a command line, a YAML file or a dictionary to one checked configuration, with the method's preset below it."""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from pluralign.errors import InputError

PRESETS = Path(__file__).parent / "presets"
MADE_WITH = "made_with"
"""Key of a run's `config.yaml` that says what it was made with: no setting, so left out when one is read back."""
PRINT_CONFIG = "--print_config"

C = TypeVar("C")


class _Loader(yaml.SafeLoader):
    """YAML 1.2 where 1.1 surprises: `no`, `on` and dates are text (a person may be called `no`), `1e-5` is a number."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if not tag.endswith((":bool", ":timestamp"))]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("float", r"^[-+]?\d+(?:\.\d*)?[eE][-+]?\d+$", "-+0123456789"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))


def resolve(cls: type[C], given: C | dict[str, Any] | str | Path) -> C:
    """A configuration from what a Python caller gives.

    Args:
        cls: the command's dataclass, `TrainConfig` for example.
        given: an instance (returned as it is), a dictionary with the command's keys, or the path of a YAML file.

    Raises:
        InputError: an unknown key, a value of the wrong type, or an unknown method.
    """
    if isinstance(given, cls):
        return given
    where = ""
    if isinstance(given, str | Path):
        given, where = read_yaml(given), str(given)
    if not isinstance(given, dict):
        raise InputError(f"a configuration is a dictionary or the path of a YAML file, not {type(given).__name__}")
    values = _expand_shorthands(cls, given)
    parser = _parser(cls, prog=f"pluralign ({cls.__name__})", method=values.get("method"))
    return _guarded(cls, parser, lambda: parser.parse_object(values), where=where)


def parse(cls: type[C], arguments: Sequence[str], *, prog: str) -> C:
    """A configuration from the arguments of a command: preset, below the `--config` files, below the arguments.

    Raises:
        InputError: as in `resolve`.
        SystemExit: after `--help` or `--print_config`.
    """
    # Taken out here: jsonargparse has an option of this name, whose YAML would not be the one of `config.yaml`.
    print_config = PRINT_CONFIG in arguments
    arguments, files = _rewrite(cls, [argument for argument in arguments if argument != PRINT_CONFIG])
    given = {file: _expand_shorthands(cls, read_yaml(file)) for file in files}
    methods = [values["method"] for values in given.values() if "method" in values]
    parser = _parser(cls, prog=prog, method=_peek(arguments, "method") or (methods[-1] if methods else None))
    for file, values in given.items():
        _set_defaults(cls, parser, values, where=file)
    config = _guarded(cls, parser, lambda: parser.parse_args(arguments))
    if print_config:
        print(as_yaml(config), end="")
        raise SystemExit(0)
    return config


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        InputError: the file is missing, is not YAML or holds something else.
    """
    try:
        values = _load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError("there is no such file", where=str(path)) from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(path)) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        # YAML's own messages quote the text over several lines.
        raise InputError(f"not a YAML file ({' '.join(str(error).split())})", where=str(path)) from None
    if not isinstance(values, dict):
        found = "is empty" if values is None else f"holds a {type(values).__name__}, not a mapping of keys to values"
        raise InputError(found, where=str(path), fix="`--print_config` prints all keys as YAML.")
    return {str(key): value for key, value in values.items() if key != MADE_WITH}


def _load(text: str) -> Any:
    return yaml.load(text, _Loader)


def preset(method: str) -> dict[str, Any]:
    """The keys that a method sets: one of the package's presets by name, or a YAML file.

    Raises:
        InputError: there is no such preset; the message lists those there are.
    """
    if method.endswith((".yaml", ".yml")):
        return read_yaml(method)
    path = PRESETS / f"{method}.yaml"
    if not path.is_file() or path.parent != PRESETS:
        names = sorted(file.stem for file in PRESETS.glob("*.yaml"))
        raise InputError(
            f"method is {method!r}", fix=f"It is one of {', '.join(names)}, or a YAML file.{_near(method, names)}"
        )
    return read_yaml(path)


def as_yaml(config: Any) -> str:
    """A configuration as YAML text, keys in the order of the dataclass."""
    return yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True)


def flat(values: Mapping[str, Any], leaves: Collection[str] = (), prefix: str = "") -> dict[str, Any]:
    """Nested groups as dotted keys; a key in `leaves` holds a dictionary of the user's own and is left whole."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and value and key not in leaves:
            found.update(flat(value, leaves, f"{key}."))
        else:
            found[key] = value
    return found


def _parser(cls: type[Any], *, prog: str, method: str | None) -> Any:
    from jsonargparse import ArgumentParser, set_loader, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    # Values are read as in files; under a name of our own, so that other parsers in the process keep theirs.
    set_loader("pluralign", _load, exceptions=(yaml.YAMLError,))
    parser = ArgumentParser(
        prog=prog, description=(cls.__doc__ or "").strip(), exit_on_error=False, parser_mode="pluralign"
    )
    parser.add_argument("--config", metavar="FILE", help="A YAML file with any of the keys below; may be given again.")
    parser.add_argument(PRINT_CONFIG, action="store_true", help="Print all keys with their values as YAML, and stop.")
    parser.add_class_arguments(cls, None, as_group=False)
    # Commands that train or fit have a method; the demo hands its own on.
    if "method" in (leaves := _leaves(cls)) and leaves.keys() & {"loss.type", "predictor"} and (method or cls.method):
        method = str(method or cls.method)
        values = preset(method)
        if "pairs" in values and "pairs.phases" not in leaves:
            raise InputError(f"method {method} samples its pairs", fix="It is for `pluralign online`.")
        if "predictor" in values and "predictor" not in leaves:
            raise InputError(f"method {method} predicts answers", fix="It is for `pluralign fewshot fit`.")
        if "predictor" in leaves and "loss" in values:
            raise InputError(f"method {method} trains adapters", fix="It is for `pluralign train`.")
        _set_defaults(cls, parser, values, where=f"method {method}")
    return parser


def _set_defaults(cls: type[Any], parser: Any, values: dict[str, Any], *, where: str) -> None:
    known = _leaves(cls)
    given = flat(values, known)
    groups = {key.rpartition(".")[0] for key in known}
    for key, value in given.items():
        if key in groups and key not in known:
            raise InputError(f"{key!r} is a group of keys, and it is set to {value!r}", where=where)
        if key not in known:
            raise InputError(f"{key!r} is no key", where=where, fix=_near(key, list(known)).strip())
    # Defaults are taken unseen by the parser: their types are checked here.
    typed = _guarded(cls, parser, lambda: parser.parse_object(values), where=where)
    checked = flat(asdict(typed), known)
    parser.set_defaults({key: checked[key] for key in given})


def _guarded(cls: type[C], parser: Any, run: Callable[[], Any], *, where: str = "") -> C:
    from jsonargparse import ArgumentError

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="jsonargparse.*")
            namespace = run()
            # Not vars: a key of the name of one of the namespace's own methods (`update`) is marked in there.
            values = parser.instantiate(namespace).as_dict()
            return cls(**{key: value for key, value in values.items() if key not in ("config", PRINT_CONFIG[2:])})
    except (ArgumentError, TypeError) as error:
        message = " ".join(str(error).split())
        raise InputError(message.removesuffix("."), where=where, fix=_near_unknown(cls, message)) from None


def _expand_shorthands(cls: type[Any], given: dict[str, Any]) -> dict[str, Any]:
    """`data: file.jsonl` is short for `data: {path: file.jsonl}`."""
    values = {key: _plain(value) for key, value in given.items() if key != MADE_WITH}
    if not _data_is_files(cls) and isinstance(path := values.get("data"), str | list):
        values["data"] = {"path": [str(item) for item in path] if isinstance(path, list) else path}
    return values


def _data_is_files(cls: type[Any]) -> bool:
    """Whether a command's `data` is files and nothing more; elsewhere it is a group with a path."""
    return isinstance(_leaves(cls).get("data"), str | list)


def _plain(value: Any) -> Any:
    """A group given as its dataclass, or a path, as the YAML would hold it."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return str(value) if isinstance(value, Path) else value


def _rewrite(cls: type[Any], arguments: list[str]) -> tuple[list[str], list[str]]:
    """`--data X` means `--data.path X`, a bare `--overwrite` means true; the files of `--config` are taken out."""
    switches = {f"--{key}" for key, value in _leaves(cls).items() if isinstance(value, bool)}
    rewritten: list[str] = []
    files: list[str] = []
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        following = arguments[position + 1] if position + 1 < len(arguments) else ""
        position += 1
        name, equals, value = argument.partition("=")
        if name == "--config":
            files.append(value if equals else following)
            position += not equals
        elif name == "--data" and not _data_is_files(cls):
            rewritten.append(f"--data.path{equals}{value}")
        elif argument in switches and following not in ("true", "false"):
            rewritten.append(f"{argument}=true")
        else:
            rewritten.append(argument)
    if "" in files:
        raise InputError("--config names no file")
    return rewritten, files


def _peek(arguments: list[str], key: str) -> str | None:
    found = None
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == f"--{key}":
            found = value if equals else next(iter(arguments[position + 1 :]), "")
    return found or None


def _leaves(cls: type[Any]) -> dict[str, Any]:
    """Every key of a configuration, dotted, with its default."""
    return flat(asdict(cls()))


def _near(word: str, words: list[str]) -> str:
    near = difflib.get_close_matches(word, words, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def _near_unknown(cls: type[Any], message: str) -> str:
    """A hint for a key that does not exist, from the quoted words of the parser's message."""
    known = list(_leaves(cls))
    groups = sorted({key.rpartition(".")[0] for key in known})
    words = [
        part.strip("'\".,:").removeprefix("--").partition("=")[0] for part in message.split() if part[:1] in "'\"-"
    ]
    unknown = [word for word in words if word and word not in known and word not in groups]
    named = [word for word in words if word in groups]
    for word in unknown:
        for candidate in (*(f"{group}.{word}" for group in named), word):
            if hint := _near(candidate, known):
                return hint.strip()
    return ""
