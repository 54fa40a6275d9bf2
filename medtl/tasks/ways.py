"""Ways to train a model: an encoder with an adaptation method and a fine-tuning strategy."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from medtl.adapters import Adapter, adapter_class, build_adapter, hyper_parameters
from medtl.discovery import pairs_of, parse_pairs
from medtl.errors import ConfigError, near_matches
from medtl.strategies import Strategy, parse_strategy_hparams, strategy_class

SOURCE_ONLY = "source_only"
"""Name of the unadapted model, which is the reference, and the start of some methods."""
FINETUNE, FULL = "finetune", "full"


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to train a model.

    Attributes:
        name: name of the model in tables and in the run folder.
        encoder: timm's name.
        method: an adaptation method, such as `dann`, or your own file; `finetune` ignores the target.
        strategy: what of the model learns and how, such as `full`, `probe` or `last:2`.
        hparams: hyper-parameters of the method.
        strategy_hparams: hyper-parameters of the strategy.
        start: name of the way whose weights it starts from; "" for the encoder's own.
        left_out: methods of a crossing that do not go with its strategy, and why.
    """

    name: str
    encoder: str
    method: str = FINETUNE
    strategy: str = FULL
    hparams: Mapping[str, Any] = field(default_factory=dict)
    strategy_hparams: Mapping[str, Any] = field(default_factory=dict)
    start: str = ""
    left_out: tuple[str, ...] = ()

    @property
    def kind(self) -> type[Adapter]:
        """The class of the method."""
        return adapter_class(self.method)

    @property
    def learns(self) -> type[Strategy]:
        """The class of the strategy."""
        return strategy_class(self.strategy)

    @property
    def is_source_only(self) -> bool:
        """Whether it is the unadapted model, the reference of the methods."""
        return self.name.rpartition("/")[2].partition("+")[0] == SOURCE_ONLY

    @property
    def adapts(self) -> bool:
        """Whether it learns from scans of the target."""
        return "target" in self.kind.needs

    def around(self, model: nn.Module, seed: int, criterion: nn.Module | None = None) -> Adapter:
        """The method with its strategy around a model.

        Args:
            model: untrained, or with the weights that it starts from.
            seed: seed of the networks and weights that they add.
            criterion: the source's loss; None means the adapter's own.

        Raises:
            ConfigError: they do not support what is asked, or do not go together; the message gives the reason.
        """
        return build_adapter(
            self.method,
            model,
            strategy=self.strategy,
            strategy_hparams=self.strategy_hparams,
            seed=seed,
            criterion=criterion,
            **self.hparams,
        )

    @property
    def note(self) -> str:
        """What the report says about how the model was trained."""
        with_strategy = "" if self.strategy == FULL else f" with the strategy {self.strategy}"
        if self.is_source_only:
            out = f" Methods that do not go with it: {'; '.join(self.left_out)}." if self.left_out else ""
            return f"Trained on the source alone, on {self.encoder}{with_strategy}.{out}"
        if self.method == FINETUNE:
            return f"Strategy {self.strategy} on {self.encoder}."
        start = f", from the weights of {self.start}" if self.start else ""
        return f"Method {Path(self.method).stem} on {self.encoder}{with_strategy}{start}."


def ways_of(
    encoders: Sequence[str],
    *,
    strategies: Sequence[str] = (),
    methods: Sequence[str] = (),
    hparams: Sequence[str] = (),
    name: str = "",
) -> tuple[Way, ...]:
    """Every method with every strategy on every encoder; source-only precedes the methods.

    Without methods, each strategy is a model of its own; without strategies, all weights learn.

    Args:
        encoders: timm's names; if there are several, they become part of the models' names (`resnet50/dann`).
        strategies: names that `medtl list strategies` shows; if there are several beside methods, they become part of
            the models' names (`dann+lora`).
        methods: names that `medtl list methods` shows, or your own files.
        hparams: `key=value` for all of them that have it, `NAME.key=value` for one.
        name: name of the model if there is only one way; by default that of the strategy or method.

    Raises:
        ConfigError: an unknown or repeated name, or hyper-parameters that no method or strategy has.
    """
    shared = _Shared(hparams, methods, strategies)
    found: list[Way] = []
    for encoder, strategy in itertools.product(encoders, strategies or (FULL,)):
        before = f"{encoder}/" if len(encoders) > 1 else ""
        after = f"+{strategy}" if len(strategies) > 1 else ""
        learning: dict[str, Any] = {
            "encoder": encoder,
            "strategy": strategy,
            "strategy_hparams": shared.of_strategy(strategy),
        }
        if not methods:
            found.append(
                Way(name=before + (name or strategy), hparams=shared.of_method(FINETUNE), **learning)
            )
            continue
        start = f"{before}{SOURCE_ONLY}{after}"
        found.append(Way(name=start, hparams=shared.of_method(FINETUNE, SOURCE_ONLY), **learning))
        reference = len(found) - 1
        for method in methods:
            kind = adapter_class(method)
            if len(strategies) > 1 and (reason := _no_pair(kind, strategy)):
                out = (*found[reference].left_out, f"{Path(method).stem} ({reason})")
                found[reference] = replace(found[reference], left_out=out)
                continue
            # A method that takes no steps has no use for a strategy; the model that it starts from has.
            own = learning if kind.phases else {"encoder": encoder}
            found.append(
                Way(
                    name=f"{before}{Path(method).stem}{after}",
                    method=method,
                    hparams=shared.of_method(method),
                    start=start if kind.starts_from == SOURCE_ONLY else "",
                    **own,
                )
            )
    shared.check()
    names = [way.name for way in found]
    if twice := sorted({n for n, group in itertools.groupby(sorted(names)) if len(list(group)) > 1}):
        raise ConfigError(
            f"Two models of the run would be called {twice[0]}. Give each method and strategy once, and give a file "
            "of your own another name."
        )
    return tuple(found)


def _no_pair(method: type[Adapter], strategy: str) -> str:
    """Why a method cannot hold a strategy, as far as their classes tell; "" if it can."""
    kind = strategy_class(strategy)
    if not method.phases:
        return ""
    if kind.alone and not method.on_features:
        return kind.alone
    if kind.sets_head and method.starts_from == SOURCE_ONLY:
        return "it starts from a trained head"
    return ""


class _Shared:
    """Shares hyper-parameters out among methods and strategies, and notices those that nobody takes.

    A `key=value` without an owner goes to everything that has the key: to all methods, and to the strategies. With both
    in a run, a key that both have needs its owner.
    """

    def __init__(self, pairs: Sequence[str], methods: Sequence[str], strategies: Sequence[str]) -> None:
        self._pairs = list(pairs)
        self._methods = {Path(method).stem: adapter_class(method) for method in methods}
        self._strategies = {
            s.partition(":")[0] if not s.endswith(".py") else Path(s).stem: s for s in strategies
        }
        plain = {FINETUNE: adapter_class(FINETUNE)} if not methods else {}
        self._owners: dict[str, dict[str, Any]] = {
            name: dict(hyper_parameters(kind))
            for name, kind in {
                **self._methods,
                **plain,
                **{name: strategy_class(s) for name, s in self._strategies.items()},
            }.items()
        }
        if methods:
            self._owners[SOURCE_ONLY] = dict(hyper_parameters(adapter_class(FINETUNE)))
        both = {k for m in self._methods for k in self._owners[m]} & {
            k for s in self._strategies for k in self._owners[s]
        }
        for pair in self._pairs:
            key = pair.partition("=")[0]
            if key in both:
                raise ConfigError(
                    f"Both a method and a strategy of this run have {key!r}: say whose it is, "
                    f"{next(iter(self._methods))}.{key}=... or {next(iter(self._strategies))}.{key}=..."
                )

    def of_method(self, method: str, owner: str = "") -> dict[str, Any]:
        """The hyper-parameters of a method; source-only takes those with its name alone."""
        owner = owner or Path(method).stem
        known = self._owners.get(owner) or dict(hyper_parameters(adapter_class(method)))
        pairs = (
            [p for p in self._pairs if "." in p.partition("=")[0]] if owner == SOURCE_ONLY else self._pairs
        )
        return parse_pairs(f"Method {owner}", known, self._own(owner, known, pairs))

    def of_strategy(self, strategy: str) -> dict[str, Any]:
        """The hyper-parameters of a strategy."""
        owner = Path(strategy).stem if strategy.endswith(".py") else strategy.partition(":")[0]
        known = self._owners.get(owner) or dict(hyper_parameters(strategy_class(strategy)))
        return parse_strategy_hparams(strategy, self._own(owner, known, self._pairs))

    def _own(self, owner: str, known: Mapping[str, Any], pairs: Sequence[str]) -> list[str]:
        """Pairs for an owner: those with its name, and those without a name whose key it has."""
        named = [
            p for p in pairs if "." in p.partition("=")[0].rpartition("=")[0] or "." in p.partition("=")[0]
        ]
        free = [p for p in pairs if p not in named and (p.partition("=")[0] in known or "=" not in p)]
        return pairs_of(owner, [*named, *free], list(self._owners), "method or strategy")

    def check(self) -> None:
        """Refuses a key that nobody has."""
        keys = {key for known in self._owners.values() for key in known}
        for pair in self._pairs:
            owner, _, key = pair.partition("=")[0].rpartition(".")
            if not owner and key not in keys:
                names = ", ".join(self._owners)
                raise ConfigError(
                    f"None of {names} has a hyper-parameter {key!r}. {near_matches(key, sorted(keys))}"
                )
