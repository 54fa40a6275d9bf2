"""Full fine-tuning with batch spectral shrinkage."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from medtl.models.output import Output
from medtl.strategies.contract.strategy import Strategy


class BSS(Strategy):
    """Trains all weights and penalises the smallest singular values of the features (Chen et al. 2019).

    Batch spectral shrinkage: the penalty is eta times the sum of the k smallest sigma^2 of a batch's features (B, F).
    With few cases, the directions with small singular values carry what does not transfer.

    Args:
        model: any network that returns features (B, F).
        eta: weight of the penalty.
        k: number of singular values.
        common: see `Strategy`.
    """

    tasks: ClassVar[frozenset[str]] = frozenset({"binary", "multiclass", "multilabel"})
    why_not: ClassVar[str] = "it takes one vector of features per case"

    def __init__(self, model: nn.Module, *, eta: float = 1e-3, k: int = 1, **common: Any) -> None:
        super().__init__(model, **common)
        self._check("eta", eta, eta >= 0, "at least 0")
        self._check("k", k, k >= 1, "at least 1")
        self.eta, self.k = eta, k

    def penalties(self, output: Output) -> dict[str, Tensor]:
        """The penalty, in float32: there is no singular value decomposition in half precision."""
        with torch.autocast(output.features.device.type, enabled=False):
            values = torch.linalg.svdvals(output.features.float())
        return {"bss": self.eta * values[-self.k :].square().sum()}
