"""Training on the source together with a few labelled cases of the target."""

from __future__ import annotations

from typing import ClassVar, Unpack

from torch import Tensor, nn

from medtl.adapters.contract.adapter import Adapter, Common
from medtl.data.tensors.batch import Batch
from medtl.errors import ConfigError


class FewLabels(Adapter):
    """Trains on the source's labels and on the few of the target ("S+T", Saito et al. 2019, section 4).

    The loss is the weighted mean of the two domains' losses, so that few cases of the target count as much as many of
    the source. One to three labelled cases a class often match adaptation without labels: compare with this first.

    Args:
        model: `model(image) -> Output(logits, features)`.
        share: of the target's cases in the loss.
        norm, statistics, label_smoothing, strategy: see `Adapter`.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"source", "labelled_target"})

    def __init__(self, model: nn.Module, *, share: float = 0.5, **common: Unpack[Common]) -> None:
        super().__init__(model, **common)
        if not 0 < share < 1:
            raise ConfigError(f"FewLabels: share is {share}; expected a number between 0 and 1.")
        self.share = share

    def forward(
        self,
        source: Batch | None,
        target: Batch | None = None,
        *,
        labelled_target: Batch | None = None,
        progress: float,
    ) -> dict[str, Tensor]:
        """Computes the mean of the two losses."""
        few = self._given(labelled_target, "labelled target")
        from_source, from_target = self.forward_domains(source, few)
        source_loss = self.supervised_loss(from_source.logits, self._given(source, "source").label)
        target_loss = self.supervised_loss(from_target.logits, few.label, role="labelled target")
        return {
            "loss": (1 - self.share) * source_loss + self.share * target_loss,
            "source_loss": source_loss.detach(),
            "target_loss": target_loss.detach(),
        }
