"""Adaptive batch normalisation: the target's statistics in a network trained on the source."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from medtl.adapters.base import Adapter
from medtl.adapters.norm import batch_norms, modes_kept, statistics_fixed
from medtl.data.batch import Batch
from medtl.errors import ConfigError


class AdaBN(Adapter):
    """Trains on the source and predicts with BatchNorm statistics of the target (Li et al. 2018).

    The weights see the source's loss alone and end where fine-tuning ends. Source batches leave the running
    statistics untouched; each step, the target's batch updates them without a gradient, so that a checkpoint of
    any step predicts for the target. `medtl.fit` replaces this moving average by the exact average at the end.

    It acts on BatchNorm only, and refuses a model without.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"source", "target"})
    norms: ClassVar[frozenset[str]] = frozenset({"separate"})

    def __init__(self, model: nn.Module, *, label_smoothing: float = 0.0) -> None:
        super().__init__(model, label_smoothing=label_smoothing)
        if not batch_norms(model):
            raise ConfigError(
                "AdaBN replaces BatchNorm statistics, and the model has none, so it would change nothing. "
                "Choose an encoder with BatchNorm (resnet, efficientnet, ...) or another method (`medtl list methods`)."
            )
        self.statistics = "target"

    def forward(self, source: Batch | None, target: Batch | None, *, progress: float) -> dict[str, Tensor]:
        """Computes the source's loss, and moves the running statistics towards the target's batch."""
        source, target = self._given(source, "source"), self._given(target, "target")
        with statistics_fixed(self.model):
            logits = self.forward_source(source).logits
        loss = self.supervised_loss(logits, source.label)
        with torch.no_grad(), modes_kept(self.model):
            self.model.eval()
            for layer in batch_norms(self.model):
                layer.train(self.training)
            self.model(target.image)
        return {"loss": loss, "source_loss": loss.detach()}

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """All trainable parameters at `lr`: the same as fine-tuning."""
        return super().param_groups(lr)
