"""The head alone, on live images."""

from __future__ import annotations

from typing import Any, Unpack

from torch import nn

from medtl.strategies.contract.stages import Part
from medtl.strategies.contract.strategy import Strategy, StrategyOptions


class Head(Strategy):
    """Trains only the head, on a frozen encoder that sees each image anew, so augmentation stays live.

    Args:
        model: a `Classifier`, or any network with an `encoder` or a `head`.
        lr_factor: multiplies the learning rate: the head starts from scratch. None means 10, and 3 in segmentation,
            whose recipes use a higher rate: training of a decoder diverged at ten times that.
        common: see `Strategy`.
    """

    def __init__(
        self, model: nn.Module, *, lr_factor: float | None = None, **common: Unpack[StrategyOptions]
    ) -> None:
        super().__init__(model, **common)
        if lr_factor is None:
            lr_factor = 3.0 if getattr(model, "task", None) == "segmentation" else 10.0
        self._check("lr_factor", lr_factor, lr_factor > 0, "above 0")
        self.lr_factor = lr_factor
        self.freeze(lambda part, _: not part.pretrained)

    def group(self, part: Part, lr: float) -> dict[str, Any]:
        """Raises the rate by `lr_factor`."""
        return {"lr": lr * self.lr_factor}
