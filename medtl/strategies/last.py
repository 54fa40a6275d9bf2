"""The head and the last stages of the encoder."""

from __future__ import annotations

from typing import ClassVar, Unpack

from torch import nn

from medtl.strategies.contract.strategy import Strategy, StrategyOptions


class Last(Strategy):
    """Trains the head and the last stages of the encoder; the early, general features stay (Yosinski et al. 2014).

    Args:
        model: a `Classifier`.
        stages: number of encoder stages that learn; `last:2` sets it in the name.
        common: see `Strategy`.
    """

    argument: ClassVar[str] = "stages"

    def __init__(self, model: nn.Module, *, stages: int = 1, **common: Unpack[StrategyOptions]) -> None:
        super().__init__(model, **common)
        known = self.stages()
        self._check("stages", stages, 0 < stages <= len(known), f"1 to {len(known)}, the encoder's stages")
        open_stages = {part.name for part in known[-stages:]}
        self.freeze(lambda part, _: not part.pretrained or part.name in open_stages)
