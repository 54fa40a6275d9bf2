"""All weights, statistics of BatchNorm drawn at random."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medtl.adapters.contract.norm import batch_norms
from medtl.errors import ConfigError
from medtl.strategies.contract.strategy import Strategy


class StochNorm(Strategy):
    """Trains all weights; each channel of BatchNorm is normalised by the moving statistics or, by chance, the batch's.

    StochNorm (Kou et al. 2020, algorithm 1): it regularises as dropout does, and keeps what the moving statistics know
    of the pretraining. In prediction nothing is random.

    Args:
        model: a network with BatchNorm.
        p: probability that a channel takes the moving statistics.
        common: see `Strategy`.
    """

    def __init__(self, model: nn.Module, *, p: float = 0.5, **common: Any) -> None:
        super().__init__(model, **common)
        self._check("p", p, 0 < p <= 1, "above 0 and at most 1")
        self.p = p
        self._layers = list(batch_norms(model))
        if not self._layers:
            raise ConfigError(
                "StochNorm draws statistics of BatchNorm, and the network has none, so it would change nothing. Choose "
                "an encoder with BatchNorm (resnet, efficientnet, ...), or full."
            )

    def output(self, image: Tensor) -> Any:
        """One pass, in which training mixes the two normalisations channel by channel."""
        handles = [layer.register_forward_hook(self._mixed) for layer in self._layers if layer.training]
        self._before = {id(layer): _statistics(layer) for layer in self._layers}
        try:
            return super().output(image)
        finally:
            for handle in handles:
                handle.remove()

    def _mixed(self, layer: Any, inputs: tuple[Tensor, ...], by_batch: Tensor) -> Tensor:
        """Timm's BatchNorm holds its activation: it is applied to either normalisation alike."""
        mean, var = self._before[id(layer)]
        moving = F.batch_norm(inputs[0], mean, var, layer.weight, layer.bias, False, 0.0, layer.eps)
        for name in ("drop", "act"):
            if isinstance(step := getattr(layer, name, None), nn.Module):
                moving = step(moving)
        chosen = torch.rand(moving.shape[1], device="cpu").to(moving.device) < self.p
        return torch.where(chosen.view(1, -1, *[1] * (moving.ndim - 2)), moving, by_batch)


def _statistics(layer: Any) -> tuple[Tensor, Tensor]:
    return layer.running_mean.clone(), layer.running_var.clone()
