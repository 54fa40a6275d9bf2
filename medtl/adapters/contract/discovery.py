"""Methods are found by file name; their hyper-parameters are read from their signatures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from medtl.adapters.contract.adapter import Adapter
from medtl.discovery import find_class, hyper_parameters, modules_of, parse_pairs
from medtl.strategies.contract.discovery import build_strategy

METHODS = "medtl.adapters"
"""The package whose modules are the methods."""


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
    return find_class(name, METHODS, available(), "method", Adapter)


def parse_hparams(name: str, pairs: Sequence[str]) -> dict[str, Any]:
    """Turns `["weight=0.5", "norm=joint"]` into typed arguments of method `name`.

    Args:
        name: the method.
        pairs: `key=value`, as on the command line.

    Raises:
        ConfigError: not `key=value`, an unknown key (near matches are named), or a value of the wrong type.
    """
    return parse_pairs(f"Method {name}", hyper_parameters(adapter_class(name)), pairs)


def build_adapter(
    name: str,
    model: nn.Module,
    *,
    strategy: str = "full",
    strategy_hparams: Mapping[str, Any] | None = None,
    seed: int = 0,
    criterion: nn.Module | None = None,
    **hparams: Any,
) -> Adapter:
    """Builds method `name` around `model`, with a strategy; their own weights are initialised from `seed` alone.

    Args:
        name: a method that `available` lists, or the path of your own file.
        model: `model(image) -> Output(logits, features)`.
        strategy: what of the model learns and how: a name that `medtl list strategies` shows, or your own file.
        strategy_hparams: the strategy's hyper-parameters.
        seed: seed of the networks and weights that they add.
        criterion: the source's loss; None means cross-entropy, and in segmentation Dice plus cross-entropy.
        hparams: the method's hyper-parameters.

    Raises:
        ConfigError: there is no such method or strategy, the two do not go together, or one does not support what is
            asked; the message gives the reason.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapter = adapter_class(name)(model, **hparams)
    # The strategy comes second: it must see the model as the method leaves it, such as with another head.
    adapter.hold(build_strategy(strategy, model, seed=seed, **(strategy_hparams or {})))
    adapter.criterion = criterion
    adapter.check()
    return adapter
