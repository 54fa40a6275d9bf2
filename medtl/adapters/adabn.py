"""Adaptive batch normalisation: a network trained on the source, normalised with the target's statistics."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from medtl.adapters.contract.adapter import Adapter
from medtl.adapters.contract.norm import batch_norms, modes_kept
from medtl.data.tensors.batch import Batch


class AdaBN(Adapter):
    """Trains on the source and predicts with BatchNorm statistics of the target (Li et al. 2018).

    Only the source's loss updates the weights, so they end where plain fine-tuning ends. The model keeps two sets of
    running statistics: source batches update the source's, target batches the target's (without a gradient), so that
    a checkpoint of any step can predict for the target. At the end, `medtl.fit` replaces the target's moving average
    by the exact average over all cases.

    The method acts on BatchNorm layers only and refuses a model that has none.

    Args:
        model: the network, with BatchNorm layers.
        label_smoothing: label smoothing of the source's cross-entropy, in [0, 1).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"source", "target"})
    norms: ClassVar[frozenset[str]] = frozenset({"domain_specific"})
    source_weights: ClassVar[bool] = True

    def __init__(self, model: nn.Module, *, label_smoothing: float = 0.0) -> None:
        super().__init__(model, norm="domain_specific", statistics="target", label_smoothing=label_smoothing)

    def forward(self, source: Batch | None, target: Batch | None, *, progress: float) -> dict[str, Tensor]:
        """Computes the source's loss and updates the target's statistics with its batch."""
        source, target = self._given(source, "source"), self._given(target, "target")
        loss = self.supervised_loss(self.forward_source(source).logits, source.label)
        with torch.no_grad(), modes_kept(self.model):
            self.model.eval()
            for layer in batch_norms(self.model):
                layer.train(self.training)
            self.model(target.image)
        return {"loss": loss, "source_loss": loss.detach()}
