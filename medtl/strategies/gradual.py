"""Gradual unfreezing, from the last stage to the first."""

from __future__ import annotations

from typing import Any, ClassVar, Unpack

from torch import nn

from medtl.strategies.contract.strategy import Strategy, StrategyOptions


class Gradual(Strategy):
    """Trains the head, then unfreezes the encoder stage by stage from the last (Howard and Ruder 2018, section 3.3).

    Which stages are unfrozen depends only on the progress of training, so a resumed run ends with the same weights.

    Args:
        model: a `Classifier`.
        until: share of training after which all stages are unfrozen.
        common: see `Strategy`.
    """

    head_first: ClassVar[bool] = True

    def __init__(self, model: nn.Module, *, until: float = 0.6, **common: Unpack[StrategyOptions]) -> None:
        super().__init__(model, **common)
        self._check("until", until, 0 < until <= 1, "above 0 and at most 1")
        self.until = until
        self._ladder = self.stages()[::-1]
        # The first pass freezes what is not due yet: with several processes, all parameters must be known before it.
        self._num_open = -1

    def _open(self, progress: float) -> None:
        """Unfreezes the stages that are due: the steps are equally long, and the first has no stage of the encoder."""
        steps = len(self._ladder)
        num_open = min(steps, int(progress / self.until * (steps + 1) + 1e-9))
        if num_open == self._num_open:
            return
        self._num_open = num_open
        for place, part in enumerate(self._ladder):
            for name, parameter in part.parameters.items():
                if self.learns(name, parameter):
                    parameter.requires_grad_(place < num_open)
                    (self._waiting.discard if place < num_open else self._waiting.add)(name)
        if self.training:
            self.model.train()
            self.hold()

    def on_progress(self, progress: float) -> None:
        """Unfreezes the stages that are due."""
        self._open(progress)

    def plan(self, lr: float) -> list[dict[str, Any]]:
        """As `Strategy.plan`, with the share of training after which each stage is unfrozen."""
        steps = len(self._ladder) + 1
        opens = {part.name: (place + 1) / steps * self.until for place, part in enumerate(self._ladder)}
        rows = super().plan(lr)
        for row in rows:
            row["opens after"] = f"{opens.get(row['part'], 0.0):.0%}"
            if row["part"] in opens:
                row["BatchNorm"] = row["BatchNorm"].replace("train", "train once open")
        return rows
