"""Low-rank changes of a frozen encoder."""

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
    """Trains low-rank changes of the encoder's linear layers and convolutions, and what is new (Hu et al. 2022).

    W + alpha / rank * B A, where B begins at zero and W is frozen (section 4.1); kernels are flattened to
    (out, in * k * k), depthwise ones are left out. At the end of the training the changes are added to the weights: the
    saved model is a plain network.

    Args:
        model: a `Classifier`.
        rank: of each change.
        alpha: scale of the changes.
        lr_factor: of the learning rate, for the changes: they begin at zero.
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
                "LoRA: an average of the weights is not taken of low-rank changes. Leave ema at 0."
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
                "LoRA changes linear layers and convolutions, and the encoder has none. Take head."
            )
        names = {id(p): name for name, p in model.named_parameters()}
        self._names = [names[id(layer.weight)] for layer in self._layers]
        self.changes = nn.ModuleList(_Change(layer.weight, rank, alpha / rank) for layer in self._layers)

    def output(self, image: Tensor) -> Output:
        """One pass with the changes added."""
        changed = {
            name: layer.weight + change()
            for name, layer, change in zip(self._names, self._layers, self.changes, strict=True)
        }
        output: Output = functional_call(self.model, changed, (image,))
        return output

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """The changes beside what is new."""
        return [
            *super().param_groups(lr),
            {"params": list(self.changes.parameters()), "lr": lr * self.lr_factor, "weight_decay": 0.0},
        ]

    def plan(self, lr: float) -> list[dict[str, Any]]:
        """As `Strategy.plan`, with a row for the changes."""
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
        """Within it, the model's weights have the changes added."""
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
        """Adds the changes to the weights for good, and begins again at zero."""
        super().on_fit_end(loaders)
        self._merge()
        for change in self.changes:
            nn.init.zeros_(change.b)  # type: ignore[arg-type]


class _Change(nn.Module):
    """scale * B A in the shape of a weight; B is zero at first."""

    def __init__(self, weight: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        self.shape, self.scale = weight.shape, scale
        self.a = nn.Parameter(torch.empty(rank, weight[0].numel(), device=weight.device))
        self.b = nn.Parameter(torch.zeros(len(weight), rank, device=weight.device))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self) -> Tensor:
        return self.scale * (self.b @ self.a).view(self.shape)
