"""Full fine-tuning with batch spectral shrinkage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn

from medtl.models.output import Output
from medtl.strategies.contract.strategy import Strategy, StrategyOptions


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

    def __init__(
        self, model: nn.Module, *, eta: float = 1e-3, k: int = 1, **common: Unpack[StrategyOptions]
    ) -> None:
        super().__init__(model, **common)
        self._check("eta", eta, eta >= 0, "at least 0")
        self._check("k", k, k >= 1, "at least 1")
        self.eta, self.k = eta, k
        self._features: list[Tensor] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within it, catches the features of every pass with a gradient."""
        self._features = []

        def catch(_: nn.Module, __: Any, output: Output) -> None:
            if torch.is_grad_enabled():
                self._features.append(output.features)

        handle = self.model.register_forward_hook(catch)
        try:
            yield
        finally:
            handle.remove()

    def penalties(self) -> dict[str, Tensor]:
        """The penalty, a mean over passes, in float32: there is no singular value decomposition in half precision."""
        caught, self._features = self._features, []
        terms = []
        for features in caught:
            with torch.autocast(features.device.type, enabled=False):
                terms.append(torch.linalg.svdvals(features.float())[-self.k :].square().sum())
        return {"bss": self.eta * torch.stack(terms).mean()} if terms else {}
