"""What is new, on images."""

from __future__ import annotations

from typing import Any

from torch import nn

from medtl.strategies.base import Strategy


class Head(Strategy):
    """Trains what is new on a frozen encoder, which sees each image anew: augmentation is live.

    Args:
        model: a `Classifier`, or any network with an `encoder` or a `head`.
        common: see `Strategy`.
    """

    def __init__(self, model: nn.Module, **common: Any) -> None:
        super().__init__(model, **common)
        self.freeze(lambda part, _: not part.pretrained)
