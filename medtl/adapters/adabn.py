"""Adaptive batch normalisation: a network trained on the source, normalised with the target's statistics."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from medtl.adapters.contract.adapter import Adapter, StartsFrom
from medtl.adapters.contract.parts import batch_norms, modes_kept
from medtl.adapters.contract.phase import Phase
from medtl.data.tensors.batch import Batch


class AdaBN(Adapter):
    """Trains on the source and predicts with BatchNorm statistics of the target (Li et al. 2018).

    `medtl.fit` takes no steps: it starts from a model that was trained on the source, and sets the statistics of the
    target, pooled over all of its cases. The source's stay beside them, for predictions at the source.

    In a training loop of your own, only the source's loss updates the weights, and each domain updates its own running
    statistics, so that the model can predict for the target at any step.

    The method acts on BatchNorm layers only and refuses a model that has none.

    Args:
        model: the network, with BatchNorm layers.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"source", "target"})
    norms: ClassVar[frozenset[str]] = frozenset({"domain_specific"})
    starts_from: ClassVar[StartsFrom] = "source_only"
    phases: ClassVar[tuple[Phase, ...]] = ()

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, norm="domain_specific", statistics="target")

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
