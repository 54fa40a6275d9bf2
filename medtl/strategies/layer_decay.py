"""Full fine-tuning with lower learning rates for earlier stages."""

from __future__ import annotations

from typing import Any, Unpack

from torch import nn

from medtl.strategies.contract.stages import Part
from medtl.strategies.contract.strategy import Strategy, StrategyOptions


class LayerDecay(Strategy):
    """Trains all weights, each stage of the encoder at a lower rate than the next one (Clark et al. 2020).

    Stage s of S, counted from the stem (0), learns at lr * decay^(S - s); the head learns at lr.

    Args:
        model: a `Classifier`.
        decay: ratio of the rates of a stage and the next one.
        common: see `Strategy`.
    """

    def __init__(self, model: nn.Module, *, decay: float = 0.7, **common: Unpack[StrategyOptions]) -> None:
        super().__init__(model, **common)
        self._check("decay", decay, 0 < decay < 1, "above 0 and below 1")
        self.decay = decay
        self._depth = {part.name: len(self.stages()) - s for s, part in enumerate(self.stages())}

    def group(self, part: Part, lr: float) -> dict[str, Any]:
        """Sets the rate for the part's depth."""
        return {"lr": lr * self.decay ** self._depth.get(part.name, 0)}
