"""Low-rank updates of a frozen encoder."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from medtl.errors import ConfigError
from medtl.strategies.contract.average import Average
from medtl.strategies.contract.stages import Part
from medtl.strategies.contract.strategy import Strategy, StrategyOptions


class LoRA(Strategy):
    """Trains the head and low-rank updates of the encoder's linear and convolution layers (Hu et al. 2022).

    The weight becomes W + alpha / rank * B A, where W is frozen and B starts at zero (section 4.1). Convolution kernels
    are flattened to (out, in * k * k); depthwise ones are left out. At the end of training the updates are merged into
    the weights: the saved model is a plain network.

    Args:
        model: a `Classifier`.
        rank: rank of each update.
        alpha: scale of the updates.
        lr_factor: multiplies the learning rate of the updates, which start at zero.
        common: see `Strategy`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        rank: int = 8,
        alpha: float = 16.0,
        lr_factor: float = 3.0,
        **common: Unpack[StrategyOptions],
    ) -> None:
        super().__init__(model, **common)
        self._check("rank", rank, rank >= 1, "at least 1")
        self._check("lr_factor", lr_factor, lr_factor > 0, "above 0")
        self.lr_factor = lr_factor
        self.freeze(lambda part, _: not part.pretrained)
        frozen = {id(p) for part in self.pretrained for p in part.parameters.values()}
        self._layers = [
            layer
            for layer in model.modules()
            if isinstance(layer, nn.Linear | nn.Conv2d | nn.Conv3d)
            and id(layer.weight) in frozen
            and getattr(layer, "groups", 1) == 1
        ]
        if not self._layers:
            raise ConfigError(
                "LoRA updates linear layers and convolutions, and the encoder has none. Use head."
            )
        self.changes = nn.ModuleList(_Change(layer.weight, rank, alpha / rank) for layer in self._layers)
        if self.average is not None:
            self.average = Average(self.learned(), self.average.decay)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within it, every layer has its update added, with a gradient to the update."""
        weights = [layer._parameters["weight"] for layer in self._layers]
        for layer, weight, change in zip(self._layers, weights, self.changes, strict=True):
            layer._parameters["weight"] = weight + change()  # as functional_call does
        try:
            yield
        finally:
            for layer, weight in zip(self._layers, weights, strict=True):
                layer._parameters["weight"] = weight

    def learned(self) -> dict[str, Tensor]:
        """As `Strategy.learned`, with the updates."""
        changes = getattr(self, "changes", ())
        return {
            **super().learned(),
            **{f"low rank {n}/{k}": p for n, c in enumerate(changes) for k, p in c.named_parameters()},
        }

    def param_groups(self, lr: float, scale: Callable[[Part], float] = lambda _: 1.0) -> list[dict[str, Any]]:
        """The updates as a group beside the head, at the rate of the last stage."""
        rate = lr * self.lr_factor * scale(self.pretrained[-1])
        return [
            *super().param_groups(lr, scale),
            {"params": list(self.changes.parameters()), "lr": rate, "weight_decay": 0.0},
        ]

    def plan(self, lr: float) -> list[dict[str, Any]]:
        """As `Strategy.plan`, with a row for the updates."""
        return [
            *super().plan(lr),
            {
                "part": "low-rank changes",
                "layers": len(self._layers),
                "parameters": sum(p.numel() for p in self.changes.parameters()),
                "trained": "yes",
                "learning rate": f"{lr * self.lr_factor:.2g}",
                "BatchNorm": "-",
            },
        ]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within it, the updates are added to the model's weights."""
        kept = [layer.weight.data for layer in self._layers]
        self._merge()
        try:
            yield
        finally:
            for layer, weight in zip(self._layers, kept, strict=True):
                layer.weight.data = weight

    @torch.no_grad()
    def _merge(self) -> None:
        for layer, change in zip(self._layers, self.changes, strict=True):
            layer.weight.data = layer.weight.data + change()

    def finish(self) -> None:
        """Merges the updates into the weights and resets them to zero."""
        super().finish()
        self._merge()
        for change in self.changes:
            nn.init.zeros_(change.b)  # type: ignore[arg-type]


class _Change(nn.Module):
    """scale * B A in the shape of a weight; B starts at zero."""

    def __init__(self, weight: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        self.shape, self.scale = weight.shape, scale
        self.a = nn.Parameter(torch.empty(rank, weight[0].numel(), device=weight.device))
        self.b = nn.Parameter(torch.zeros(len(weight), rank, device=weight.device))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self) -> Tensor:
        return self.scale * (self.b @ self.a).view(self.shape)
