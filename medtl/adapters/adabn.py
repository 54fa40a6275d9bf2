"""Adaptive batch normalisation: the target's statistics in a network trained on the source."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from medtl.adapters.contract.adapter import Adapter
from medtl.adapters.contract.norm import batch_norms, modes_kept
from medtl.data.tensors.batch import Batch


class AdaBN(Adapter):
    """Trains on the source and predicts with BatchNorm statistics of the target (Li et al. 2018).

    The weights see the source's loss alone and end where fine-tuning ends. There are two sets of statistics: a
    source batch moves the source's, and the target's batch moves the target's, without a gradient, so that a
    checkpoint of any step predicts for the target. `medtl.fit` replaces the target's moving average by the exact
    average at the end.

    It acts on BatchNorm only, and refuses a model without.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"source", "target"})
    norms: ClassVar[frozenset[str]] = frozenset({"domain_specific"})
    source_weights: ClassVar[bool] = True

    def __init__(self, model: nn.Module, *, label_smoothing: float = 0.0) -> None:
        super().__init__(model, norm="domain_specific", statistics="target", label_smoothing=label_smoothing)

    def forward(self, source: Batch | None, target: Batch | None, *, progress: float) -> dict[str, Tensor]:
        """Computes the source's loss, and moves the target's statistics towards its batch."""
        source, target = self._given(source, "source"), self._given(target, "target")
        loss = self.supervised_loss(self.forward_source(source).logits, source.label)
        with torch.no_grad(), modes_kept(self.model):
            self.model.eval()
            for layer in batch_norms(self.model):
                layer.train(self.training)
            self.model(target.image)
        return {"loss": loss, "source_loss": loss.detach()}
