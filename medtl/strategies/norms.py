"""Fine-tuning of normalisation layers alone."""

from __future__ import annotations

from typing import Any, ClassVar, Unpack

from torch import nn

from medtl.errors import ConfigError
from medtl.models.parts import is_norm
from medtl.strategies.contract.stages import Part
from medtl.strategies.contract.strategy import Strategy, StrategyOptions


class Norms(Strategy):
    """Trains the head and the scales and offsets of the encoder's norm layers (Frankle et al. 2021).

    Args:
        model: a `Classifier`, or any network with an `encoder` or a `head`.
        lr_factor: multiplies the learning rate: the few trained parameters have to move far.
        common: see `Strategy`.
    """

    trained_part: ClassVar[str] = "norms"

    def __init__(
        self, model: nn.Module, *, lr_factor: float = 3.0, **common: Unpack[StrategyOptions]
    ) -> None:
        super().__init__(model, **common)
        self._check("lr_factor", lr_factor, lr_factor > 0, "above 0")
        self.lr_factor = lr_factor
        scales = {
            f"{name}.{key}" if name else key
            for name, layer in model.named_modules()
            if is_norm(layer)
            for key, _ in layer.named_parameters(recurse=False)
        }
        self.freeze(lambda part, name: not part.pretrained or name in scales)
        if not any(n in scales for part in self.pretrained for n in part.parameters):
            raise ConfigError("Norms trains norm layers, and the encoder has none. Use bitfit, head or lora.")

    def group(self, part: Part, lr: float) -> dict[str, Any]:
        """Raises the rate by `lr_factor`."""
        return {"lr": lr * self.lr_factor}
