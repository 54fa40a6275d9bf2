"""Strategies are found by file name; their hyper-parameters are read from their signatures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from medtl.discovery import convert, find_class, hyper_parameters, modules_of, pairs_of, parse_pairs
from medtl.errors import ConfigError
from medtl.strategies.contract.strategy import Strategy

STRATEGIES = "medtl.strategies"
"""The package whose modules are the strategies."""


def available() -> list[str]:
    """The names of all strategies, sorted."""
    return modules_of(STRATEGIES)


def strategy_class(name: str) -> type[Strategy]:
    """The class of strategy `name`, without its argument after a colon (`last:2`).

    Args:
        name: a strategy that `available` lists, or the path of your own file (`mine/my_strategy.py`).

    Raises:
        ConfigError: there is no such strategy.
    """
    return find_class(_split(name)[0], STRATEGIES, available(), "strategy", Strategy)


def parse_strategy_hparams(name: str, pairs: Sequence[str], among: Sequence[str] = ()) -> dict[str, Any]:
    """Turns `["stages=2", "mixup=0.2"]` into typed arguments of strategy `name`.

    `key=value` applies to every strategy, `STRATEGY.key=value` to that one alone.

    Args:
        name: the strategy.
        pairs: the values of --hparams.
        among: all strategies of the run, if there are several.

    Raises:
        ConfigError: not `key=value`, a strategy that is not part of the run, an unknown key (near matches are named),
            or a value of the wrong type.
    """
    plain = _split(name)[0]
    own = pairs_of(plain, pairs, [_split(other)[0] for other in among], "strategy")
    given = parse_pairs(f"Strategy {plain}", hyper_parameters(strategy_class(name)), own)
    _argument(name, given)
    return given


def build_strategy(name: str, model: nn.Module, *, seed: int = 0, **hparams: Any) -> Strategy:
    """Builds strategy `name` for `model`; its own weights are initialised from `seed` alone.

    Hand it to an adapter: `FineTune(model, strategy=...)`, `DANN(model, strategy=...)`.

    Args:
        name: a strategy that `available` lists, with its argument if any (`last:2`), or the path of your own file.
        model: a `Classifier`, or any network that returns `Output(logits, features)`.
        seed: seed of weights that the strategy adds.
        hparams: the strategy's hyper-parameters.

    Raises:
        ConfigError: there is no such strategy, or it does not support what is asked; the message gives the reason.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return strategy_class(name)(model, **hparams, **_argument(name, hparams))


def _split(name: str) -> tuple[str, str]:
    if name.endswith(".py"):
        return name, ""
    plain, _, argument = name.partition(":")
    return plain, argument


def _argument(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """The hyper-parameter given after the colon of a name."""
    plain, text = _split(name)
    if not text and not name.endswith(":"):
        return {}
    strategy = strategy_class(name)
    if strategy.argument is None:
        raise ConfigError(f"Strategy {plain} takes no argument after a colon, got {name!r}.")
    if strategy.argument in given:
        raise ConfigError(
            f"Strategy {name} says {strategy.argument} already; leave "
            f"{strategy.argument}={given[strategy.argument]} out."
        )
    kind = hyper_parameters(strategy)[strategy.argument].annotation
    return {strategy.argument: convert(f"Strategy {plain}: {strategy.argument}", text, kind)}
