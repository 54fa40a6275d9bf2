"""Low-rank updates of a frozen encoder."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from medtl.data.tensors.batch import Batch
from medtl.errors import ConfigError
from medtl.models.output import Output
from medtl.strategies.contract.strategy import Strategy


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
        self, model: nn.Module, *, rank: int = 8, alpha: float = 16.0, lr_factor: float = 3.0, **common: Any
    ) -> None:
        super().__init__(model, **common)
        self._check("rank", rank, rank >= 1, "at least 1")
        self._check("lr_factor", lr_factor, lr_factor > 0, "above 0")
        if self.average is not None:
            raise ConfigError(
                "LoRA: averaging of weights does not work with low-rank updates. Leave ema at 0."
            )
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
        names = {id(p): name for name, p in model.named_parameters()}
        self._names = [names[id(layer.weight)] for layer in self._layers]
        self.changes = nn.ModuleList(_Change(layer.weight, rank, alpha / rank) for layer in self._layers)

    def output(self, image: Tensor) -> Output:
        """Runs the model with the updates added."""
        changed = {
            name: layer.weight + change()
            for name, layer, change in zip(self._names, self._layers, self.changes, strict=True)
        }
        output: Output = functional_call(self.model, changed, (image,))
        return output

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """The updates as a group beside the head."""
        return [
            *super().param_groups(lr),
            {"params": list(self.changes.parameters()), "lr": lr * self.lr_factor, "weight_decay": 0.0},
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
    def on_source(self) -> Iterator[None]:
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

    def on_fit_end(self, loaders: Mapping[str, Iterable[Batch]]) -> None:
        """Merges the updates into the weights and resets them to zero."""
        super().on_fit_end(loaders)
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
