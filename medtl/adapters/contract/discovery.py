"""Methods are found by file name; their hyper-parameters are read from their signatures."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import torch
from torch import nn

from medtl.adapters.contract.adapter import Adapter
from medtl.errors import ConfigError, near_matches

METHODS = "medtl.adapters"
"""The package whose modules are the methods."""


def modules_of(package: str) -> list[str]:
    """The names of a package's modules, sorted; subpackages such as `contract` are left out."""
    return sorted(
        m.name for m in pkgutil.iter_modules(importlib.import_module(package).__path__) if not m.ispkg
    )


def available() -> list[str]:
    """The names of all methods, sorted."""
    return modules_of(METHODS)


def adapter_class(name: str) -> type[Adapter]:
    """The class of method `name`: the one in file `name`.py with the same name, ignoring case and underscores.

    Args:
        name: a method that `available` lists, or the path of your own file (`mine/my_method.py`).

    Raises:
        ConfigError: there is no such method.
    """
    return find_class(name, METHODS, available(), "method")


def find_class(name: str, package: str, known: Sequence[str], kind: str) -> type[Adapter]:
    """The Adapter named like its file, in module `name` of `package` or in your own file.

    Args:
        name: one of `known`, or the path of a Python file.
        package: the package to search.
        known: names of its modules that hold such a class.
        kind: what the class is, for the message.

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
        if issubclass(found, Adapter) and found.__name__.lower() == name.replace("_", ""):
            return found
    raise ConfigError(
        f"{name}.py has no Adapter named like the file, for example class {name.title()}(Adapter)."
    )


def _own_file(path: Path, kind: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(f"medtl_{kind}_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigError(f"There is no {kind} file {path.name!r} at the given place.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module there
    spec.loader.exec_module(module)
    return module


def hyper_parameters(method: type[Adapter]) -> dict[str, inspect.Parameter]:
    """The hyper-parameters of a method with their types and defaults, from its signature.

    If the method passes on others (`**common`), those of the base class that takes them follow.
    """
    found: dict[str, inspect.Parameter] = {}
    for owner in method.__mro__:
        if "__init__" not in vars(owner):
            continue
        parameters = inspect.signature(vars(owner)["__init__"], eval_str=True).parameters.values()
        found |= {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in found}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found


def parse_hparams(name: str, pairs: Sequence[str]) -> dict[str, Any]:
    """Turns `["weight=0.5", "norm=joint"]` into typed arguments of method `name`.

    Args:
        name: the method.
        pairs: `key=value`, as on the command line.

    Raises:
        ConfigError: not `key=value`, an unknown key (near matches are named), or a value of the wrong type.
    """
    return parse_pairs(f"Method {name}", hyper_parameters(adapter_class(name)), pairs)


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


def parse_pairs(where: str, known: dict[str, inspect.Parameter], pairs: Sequence[str]) -> dict[str, Any]:
    """Turns `key=value` strings into typed arguments.

    Args:
        where: the owner of the arguments, for the message.
        known: as returned by `hyper_parameters`.
        pairs: the strings.

    Raises:
        ConfigError: as in `parse_hparams`.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(
                f"--hparams takes key=value, got {pair!r}; for example --hparams weight=0.5 norm=joint."
            )
        if key not in known:
            raise ConfigError(f"{where} has no hyper-parameter {key!r}. {near_matches(key, known)}")
        values[key] = convert(f"{where}: {key}", text, known[key].annotation)
    return values


def build_adapter(
    name: str, model: nn.Module, *, seed: int = 0, criterion: nn.Module | None = None, **hparams: Any
) -> Adapter:
    """Builds method `name` around `model`; its own networks are initialised from `seed` alone.

    Args:
        name: a method that `available` lists, or the path of your own file.
        model: `model(image) -> Output(logits, features)`.
        seed: seed of the method's own networks.
        criterion: the source's loss in segmentation; None means Dice plus cross-entropy.
        hparams: the method's hyper-parameters.

    Raises:
        ConfigError: there is no such method, or it does not support what is asked; the message gives the reason.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapter = adapter_class(name)(model, **hparams)
    adapter.criterion = criterion
    return adapter


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
