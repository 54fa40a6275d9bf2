"""Fine-tuning on the source alone: the baseline for every adaptation method."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from medtl.adapters.contract.adapter import Adapter
from medtl.data.tensors.batch import Batch


class FineTune(Adapter):
    """Trains all weights on the source's labels and ignores the target ("source-only").

    The loss is cross-entropy, or binary cross-entropy if a case can have several findings.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"source"})
    on_features: ClassVar[bool] = True
    norms: ClassVar[frozenset[str]] = frozenset({"separate", "frozen"})

    def forward(
        self, source: Batch | None, target: Batch | None = None, *, progress: float
    ) -> dict[str, Tensor]:
        """Computes the source's loss; `target` is not used."""
        source = self._given(source, "source")
        loss = self.supervised_loss(self.forward_source(source).logits, source.label)
        return {"loss": loss, "source_loss": loss.detach()}
