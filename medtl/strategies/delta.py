"""All weights, the features held near those of the pretrained encoder."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from medtl.errors import ConfigError
from medtl.models.classifier import Classifier, encode_slices
from medtl.models.output import Output
from medtl.strategies.base import Strategy


class Delta(Strategy):
    """Trains all weights with a penalty on how far the features move from those of the pretrained encoder.

    DELTA (Li et al. 2019, equation 5) on the features behind the last pooling, without its attention over channels:
    weight / 2 times the mean over cases of ||f(x) - f0(x)||^2 / ||f0||^2, f0 the frozen encoder. It costs a second pass
    without gradient.

    Args:
        model: a `Classifier`.
        weight: of the penalty.
        common: see `Strategy`.
    """

    def __init__(self, model: nn.Module, *, weight: float = 1.0, **common: Any) -> None:
        super().__init__(model, **common)
        self._check("weight", weight, weight >= 0, "at least 0")
        if not isinstance(model, Classifier):
            raise ConfigError(
                f"Delta compares the features of an encoder, and {type(model).__name__} is no Classifier."
            )
        self.weight = weight
        self.pretrained_encoder = copy.deepcopy(model.encoder).requires_grad_(False).eval()

    def output(self, image: Tensor) -> Output:
        """One pass of both encoders."""
        model: Any = self.model
        features = model.encode(image)
        with torch.no_grad():
            begin = encode_slices(self.pretrained_encoder, image)
        scale = begin.square().sum(-1).mean().clamp_min(1e-12)
        self._moved = (features - begin).square().sum(-1).mean() / scale
        output: Output = model.classify(features)
        return output

    def penalties(self, output: Output) -> dict[str, Tensor]:
        """How far the features moved."""
        return {"delta": self.weight / 2 * self._moved}

    def train(self, mode: bool = True) -> Delta:
        """The pretrained encoder stays in eval mode."""
        super().train(mode)
        self.pretrained_encoder.eval()
        return self
