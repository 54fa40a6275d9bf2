"""What is a file is found by its name: classes in a package's modules, and their hyper-parameters."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from medtl.errors import ConfigError, near_matches

T = TypeVar("T")

OWN = "medtl_own_"
"""Prefix of the module names of a user's own files."""
OBJECTS = frozenset({"strategy"})
"""Keyword arguments that are objects, not hyper-parameters."""


def modules_of(package: str) -> list[str]:
    """The names of a package's modules, sorted; subpackages such as `contract` are left out."""
    return sorted(
        m.name for m in pkgutil.iter_modules(importlib.import_module(package).__path__) if not m.ispkg
    )


def find_class(name: str, package: str, known: Sequence[str], kind: str, base: type[T]) -> type[T]:
    """The subclass of `base` named like its file, in module `name` of `package` or in your own file.

    Args:
        name: one of `known`, or the path of a Python file.
        package: the package to search.
        known: names of its modules that hold such a class.
        kind: what the class is, for the message.
        base: the class to derive from.

    Raises:
        ConfigError: there is no such class.
    """
    if name.endswith(".py"):
        module = _own_file(Path(name), kind)
        name = Path(name).stem
    elif name in known:
        module = importlib.import_module(f"{package}.{name}")
    else:
        raise ConfigError(f"There is no {kind} {name!r}. {near_matches(name, known)}")
    for _, found in inspect.getmembers(module, inspect.isclass):
        if issubclass(found, base) and found.__name__.lower() == name.replace("_", "").lower():
            return found
    raise ConfigError(
        f"{name}.py has no {base.__name__} named like the file, for example "
        f"class {name.title().replace('_', '')}({base.__name__})."
    )


def _own_file(path: Path, kind: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(f"{OWN}{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigError(f"There is no {kind} file {path.name!r} at the given place.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module there
    spec.loader.exec_module(module)
    return module


def hyper_parameters(kind: type) -> dict[str, inspect.Parameter]:
    """The hyper-parameters of a class with their types and defaults, from its signature.

    If the class passes on others, those of the base class that takes them follow: all of them for `**common: Any`,
    those that are named for `**common: Unpack[Names]`.

    Args:
        kind: a method or a strategy.
    """
    found: dict[str, inspect.Parameter] = {}
    wanted: frozenset[str] | None = None
    for owner in kind.__mro__:
        if "__init__" not in vars(owner):
            continue
        parameters = inspect.signature(vars(owner)["__init__"], eval_str=True).parameters.values()
        found |= {
            p.name: p
            for p in parameters
            if p.kind is p.KEYWORD_ONLY
            and p.name not in found
            and p.name not in OBJECTS
            and (wanted is None or p.name in wanted)
        }
        rest = next((p for p in parameters if p.kind is p.VAR_KEYWORD), None)
        if rest is None:
            break
        if names := get_args(rest.annotation):
            keys = frozenset(get_type_hints(names[0]))
            wanted = keys if wanted is None else wanted & keys
    return found


def pairs_of(name: str, pairs: Sequence[str], among: Sequence[str], kind: str) -> list[str]:
    """The `key=value` texts that are for `name`: those without an owner, and `NAME.key=value` without the name.

    Raises:
        ConfigError: the owner of one is not of the run.
    """
    known = {name, *among}
    own = []
    for pair in pairs:
        key, equals, value = pair.partition("=")
        owner, dot, key = key.rpartition(".")
        if dot and owner not in known:
            raise ConfigError(
                f"{pair!r} is for {kind} {owner!r}, which is not among this run's. {near_matches(owner, known)}"
            )
        if owner in ("", name):
            own.append(f"{key}{equals}{value}")
    return own


def parse_pairs(
    where: str, known: Mapping[str, inspect.Parameter], pairs: Sequence[str], flag: str = "--hparams"
) -> dict[str, Any]:
    """Turns `key=value` strings into typed arguments.

    Args:
        where: the owner of the arguments, for the message.
        known: as returned by `hyper_parameters`.
        pairs: the strings.
        flag: the flag that they were given to, for the message.

    Raises:
        ConfigError: not `key=value`, an unknown key (near matches are named), or a value of the wrong type.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(
                f"{flag} takes key=value, got {pair!r}; for example {flag} weight=0.5 norm=joint."
            )
        if key not in known:
            raise ConfigError(f"{where} has no hyper-parameter {key!r}. {near_matches(key, known)}")
        values[key] = convert(f"{where}: {key}", text, known[key].annotation)
    return values


def convert(where: str, text: str, kind: Any) -> Any:
    """Converts `text` to type `kind`: bool, int, float, str, a Literal, or an optional one of these.

    Raises:
        ConfigError: the text is no value of that type.
    """
    if get_origin(kind) is Literal:
        if text not in get_args(kind):
            raise ConfigError(f"{where} is {text!r}. {near_matches(text, get_args(kind))}")
        return text
    if get_origin(kind) in (Union, types.UnionType):
        if text.lower() in ("none", "null") and type(None) in get_args(kind):
            return None
        return convert(where, text, next(k for k in get_args(kind) if k is not type(None)))
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ConfigError(f"{where} is {text!r}; expected true or false.")
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError as error:
        raise ConfigError(f"{where} is {text!r}; expected a value of type {kind.__name__}.") from error
