"""What is new, on images."""

from __future__ import annotations

from typing import Any

from torch import nn

from medtl.strategies.base import Strategy
from medtl.strategies.stages import Part


class Head(Strategy):
    """Trains what is new on a frozen encoder, which sees each image anew: augmentation is live.

    Args:
        model: a `Classifier`, or any network with an `encoder` or a `head`.
        lr_factor: of the learning rate: what is new has everything to learn.
        common: see `Strategy`.
    """

    def __init__(self, model: nn.Module, *, lr_factor: float = 10.0, **common: Any) -> None:
        super().__init__(model, **common)
        self._check("lr_factor", lr_factor, lr_factor > 0, "above 0")
        self.lr_factor = lr_factor
        self.freeze(lambda part, _: not part.pretrained)

    def group(self, part: Part, lr: float) -> dict[str, Any]:
        """The raised rate."""
        return {"lr": lr * self.lr_factor}
