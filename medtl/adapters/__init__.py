"""Adaptation methods: one file each, found by its name.

Add a file `mymethod.py` with a class `MyMethod(Adapter)` to this folder and it is a method: there is no list to
edit. Its hyper-parameters are the keyword arguments of the class, and their only home.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from torch import nn

from medtl.adapters.base import Adapter
from medtl.data.batch import Batch
from medtl.errors import ConfigError, near_matches

__all__ = [
    "Adapter",
    "Batch",
    "adapter_class",
    "available",
    "build_adapter",
    "hyper_parameters",
    "parse_hparams",
]

_NOT_METHODS = {"base", "norm", "parts", "test_time"}


def available() -> list[str]:
    """The names of all methods, sorted."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in _NOT_METHODS)


def adapter_class(name: str) -> type[Adapter]:
    """The class of method `name`: the one in file `name`.py that is called like it, upper and lower case aside.

    Args:
        name: a method that `available` lists, or the path of a file of your own (`mine/my_method.py`).

    Raises:
        ConfigError: there is no such method.
    """
    if name.endswith(".py"):
        module = _own_file(Path(name))
        name = Path(name).stem
    elif name in available():
        module = importlib.import_module(f"{__name__}.{name}")
    else:
        raise ConfigError(f"There is no method {name!r}. {near_matches(name, available())}")
    for _, found in inspect.getmembers(module, inspect.isclass):
        if issubclass(found, Adapter) and found.__name__.lower() == name.replace("_", ""):
            return found
    raise ConfigError(
        f"{name}.py has no Adapter called like the file, for example class {name.title()}(Adapter)."
    )


def _own_file(path: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(f"medtl_method_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigError(f"There is no method file {path.name!r} at the given place.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def hyper_parameters(method: type[Adapter]) -> dict[str, inspect.Parameter]:
    """The hyper-parameters of a method, with their types and defaults, from its signature."""
    signature = inspect.signature(method, eval_str=True)
    return {k: p for k, p in signature.parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}


def parse_hparams(name: str, pairs: Sequence[str]) -> dict[str, Any]:
    """Turns `["weight=0.5", "norm=joint"]` into typed arguments of method `name`.

    Raises:
        ConfigError: not `key=value`, an unknown key (near matches are named), or a value of another type.
    """
    hints = get_type_hints(adapter_class(name).__init__)
    known = hyper_parameters(adapter_class(name))
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(
                f"--hparams takes key=value, got {pair!r}; for example --hparams weight=0.5 norm=joint."
            )
        if key not in known:
            raise ConfigError(f"Method {name} has no hyper-parameter {key!r}. {near_matches(key, known)}")
        values[key] = _convert(f"{name}: {key}", text, hints[key])
    return values


def build_adapter(
    name: str, model: nn.Module, *, seed: int = 0, criterion: nn.Module | None = None, **hparams: Any
) -> Adapter:
    """Builds method `name` around `model`; its own networks are drawn from `seed` alone.

    Args:
        name: a method that `available` lists, or the path of a file of your own.
        model: `model(image) -> Output(logits, features)`.
        seed: of the method's own networks.
        criterion: the source's loss in segmentation; None stands for Dice and cross-entropy.
        hparams: the method's hyper-parameters.

    Raises:
        ConfigError: there is no such method, or it cannot do what is asked, with the reason.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapter = adapter_class(name)(model, **hparams)
    adapter.criterion = criterion
    return adapter


def __getattr__(name: str) -> Any:
    """`from medtl.adapters import DANN`: any method by the name of its class."""
    for method in available():
        if name.lower() == method.replace("_", "") and (found := adapter_class(method)).__name__ == name:
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _convert(where: str, text: str, kind: Any) -> Any:
    if get_origin(kind) is Literal:
        if text not in get_args(kind):
            raise ConfigError(f"{where} is {text!r}. {near_matches(text, get_args(kind))}")
        return text
    if get_origin(kind) in (Union, types.UnionType):
        if text.lower() in ("none", "null") and type(None) in get_args(kind):
            return None
        return _convert(where, text, next(k for k in get_args(kind) if k is not type(None)))
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ConfigError(f"{where} is {text!r}; expected true or false.")
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError as error:
        raise ConfigError(f"{where} is {text!r}; expected a value of type {kind.__name__}.") from error
