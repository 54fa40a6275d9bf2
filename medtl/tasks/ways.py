"""Ways to train a model: an encoder with a fine-tuning strategy or an adaptation method."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from medtl.adapters import Adapter, adapter_class, build_adapter, parse_hparams
from medtl.adapters.contract.discovery import pairs_of
from medtl.errors import ConfigError
from medtl.strategies import build_strategy, parse_strategy_hparams, strategy_class

SOURCE_ONLY = "source_only"
"""Name of the unadapted model, which is the reference, and the start of some methods."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to train a model.

    Attributes:
        name: name of the model in tables and in the run folder.
        encoder: timm's name.
        strategy: a fine-tuning strategy, such as `full`, `probe` or `last:2`; "" for a method.
        method: an adaptation method, such as `dann`, or your own file; "" for a strategy.
        hparams: hyper-parameters of the strategy or the method.
        start: name of the way whose weights it starts from; "" for the encoder's own.
    """

    name: str
    encoder: str
    strategy: str = ""
    method: str = ""
    hparams: Mapping[str, Any] = field(default_factory=dict)
    start: str = ""

    @property
    def kind(self) -> type[Adapter]:
        """The class of the strategy or the method."""
        return adapter_class(self.method) if self.method else strategy_class(self.strategy)

    @property
    def is_source_only(self) -> bool:
        """Whether it is the unadapted model, the reference of the methods."""
        return self.name.rpartition("/")[2] == SOURCE_ONLY

    @property
    def adapts(self) -> bool:
        """Whether it learns from scans of the target."""
        return "target" in self.kind.needs

    @property
    def trained_already(self) -> bool:
        """Whether the weights that it starts from equal those that it would train."""
        return bool(self.start) and self.kind.source_weights and not self.hparams

    def around(self, model: nn.Module, seed: int, criterion: nn.Module | None = None) -> Adapter:
        """The strategy or the method around a model.

        Raises:
            ConfigError: it does not support what is asked; the message gives the reason.
        """
        build = build_adapter if self.method else build_strategy
        return build(self.method or self.strategy, model, seed=seed, criterion=criterion, **self.hparams)

    @property
    def note(self) -> str:
        """What the report says about how the model was trained."""
        if self.strategy:
            return f"Strategy {self.strategy} on {self.encoder}."
        if self.is_source_only:
            return f"Trained on the source alone, on {self.encoder}."
        start = f", from the weights of {self.start}" if self.start else ""
        return f"Method {Path(self.method).stem} on {self.encoder}{start}."


def ways_of(
    encoders: Sequence[str],
    *,
    strategies: Sequence[str] = (),
    methods: Sequence[str] = (),
    hparams: Sequence[str] = (),
    name: str = "",
) -> tuple[Way, ...]:
    """Every strategy and every method on every encoder; methods are preceded by source-only.

    Args:
        encoders: timm's names; if there are several, they become part of the models' names (`resnet50/dann`).
        strategies: names that `medtl list strategies` shows.
        methods: names that `medtl list methods` shows, or your own files.
        hparams: `key=value` for all of them, `NAME.key=value` for one.
        name: name of the model if there is only one way; by default that of the strategy or method.

    Raises:
        ConfigError: an unknown or repeated name, or hyper-parameters that no method or strategy has.
    """
    stems = [Path(method).stem for method in methods]
    plain = [strategy.partition(":")[0] for strategy in strategies]

    def own(owner: str) -> list[str]:
        return pairs_of(owner, hparams, [*stems, *plain], "method or strategy")

    found: list[Way] = []
    for encoder in encoders:
        before = f"{encoder}/" if len(encoders) > 1 else ""
        for strategy, owner in zip(strategies, plain, strict=True):
            values = parse_strategy_hparams(strategy, own(owner))
            found.append(
                Way(name=before + (name or strategy), encoder=encoder, strategy=strategy, hparams=values)
            )
        if methods:
            found.append(Way(name=before + SOURCE_ONLY, encoder=encoder, method="finetune"))
        for method, stem in zip(methods, stems, strict=True):
            values = parse_hparams(method, own(stem))
            kind = adapter_class(method)
            # Some methods do not learn from the source, and some would train source-only a second time.
            starts = "source" not in kind.needs or (kind.source_weights and not values)
            found.append(
                Way(
                    name=before + stem,
                    encoder=encoder,
                    method=method,
                    hparams=values,
                    start=before + SOURCE_ONLY if starts else "",
                )
            )
    names = [way.name for way in found]
    if twice := sorted({n for n, group in itertools.groupby(sorted(names)) if len(list(group)) > 1}):
        raise ConfigError(
            f"Two models of the run would be called {twice[0]}. Give each method and strategy once, and give a file "
            "of your own another name."
        )
    return tuple(found)
