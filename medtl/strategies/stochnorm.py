"""Full fine-tuning with stochastic BatchNorm statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medtl.errors import ConfigError
from medtl.models.parts import batch_norms
from medtl.strategies.contract.strategy import Strategy, StrategyOptions


class StochNorm(Strategy):
    """Trains all weights; each BatchNorm channel randomly uses its moving or its batch statistics (Kou et al. 2020).

    StochNorm (algorithm 1) regularises like dropout and keeps what the moving statistics have learnt in pretraining.
    Prediction is deterministic.

    Args:
        model: a network with BatchNorm.
        p: probability that a channel uses the moving statistics.
        common: see `Strategy`.
    """

    by_batch: ClassVar[bool] = True

    def __init__(self, model: nn.Module, *, p: float = 0.5, **common: Unpack[StrategyOptions]) -> None:
        super().__init__(model, **common)
        self._check("p", p, 0 < p <= 1, "above 0 and at most 1")
        self.p = p
        self._before: dict[int, tuple[Tensor, Tensor]] = {}
        self._layers = list(batch_norms(model))
        if not self._layers:
            raise ConfigError(
                "StochNorm randomises the statistics of BatchNorm, and the network has none, so it would change "
                "nothing. Choose an encoder with BatchNorm (resnet, efficientnet, ...), or full."
            )

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within it, layers in training mode mix the two normalisations channel by channel."""
        self._before = {}

        def remember(layer: Any, _: Any) -> None:
            if layer.training:
                self._before[id(layer)] = _statistics(layer)

        handles = [layer.register_forward_pre_hook(remember) for layer in self._layers]
        handles += [layer.register_forward_hook(self._mixed) for layer in self._layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _mixed(self, layer: Any, inputs: tuple[Tensor, ...], by_batch: Tensor) -> Tensor:
        """Mixes before the activation, which timm's BatchNorm layers include."""
        if not layer.training:
            return by_batch
        mean, var = self._before[id(layer)]
        moving = F.batch_norm(inputs[0], mean, var, layer.weight, layer.bias, False, 0.0, layer.eps)
        for name in ("drop", "act"):
            if isinstance(step := getattr(layer, name, None), nn.Module):
                moving = step(moving)
        chosen = torch.rand(moving.shape[1], device="cpu").to(moving.device) < self.p
        return torch.where(chosen.view(1, -1, *[1] * (moving.ndim - 2)), moving, by_batch)


def _statistics(layer: Any) -> tuple[Tensor, Tensor]:
    return layer.running_mean.clone(), layer.running_var.clone()
