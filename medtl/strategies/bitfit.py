"""Bias-only fine-tuning."""

from __future__ import annotations

from typing import Any, ClassVar, Unpack

from torch import nn

from medtl.errors import ConfigError
from medtl.strategies.contract.stages import Part
from medtl.strategies.contract.strategy import Strategy, StrategyOptions


class BitFit(Strategy):
    """Trains the head and the encoder's biases, including those of its norm layers (Ben Zaken et al. 2022).

    BatchNorm layers whose bias learns keep updating their running statistics.

    Args:
        model: a `Classifier`, or any network with an `encoder` or a `head`.
        lr_factor: multiplies the learning rate: the few trained parameters have to move far.
        common: see `Strategy`.
    """

    trained_part: ClassVar[str] = "biases"

    def __init__(
        self, model: nn.Module, *, lr_factor: float = 3.0, **common: Unpack[StrategyOptions]
    ) -> None:
        super().__init__(model, **common)
        self._check("lr_factor", lr_factor, lr_factor > 0, "above 0")
        self.lr_factor = lr_factor
        self.freeze(lambda part, name: not part.pretrained or name.endswith("bias"))
        if not any(n.endswith("bias") for part in self.pretrained for n in part.parameters):
            raise ConfigError("BitFit trains biases, and the encoder has none. Use norms, head or lora.")

    def group(self, part: Part, lr: float) -> dict[str, Any]:
        """Raises the rate by `lr_factor`."""
        return {"lr": lr * self.lr_factor}
