"""Adversarial discriminative domain adaptation, as a user would write it: a start of its own, two phases."""

from __future__ import annotations

import copy
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medtl.adapters import Adapter, Batch, Phase
from medtl.adapters.contract.adversarial import as_cases, domain_loss, feature_discriminator
from medtl.models.parts import head_of


class ADDA(Adapter):
    """A copy of the source's encoder learns to fool a discriminator; the head stays (Tzeng et al. 2017, section 4).

    Args:
        model: trained on the source.
        hidden: width of the discriminator.
    """

    needs: ClassVar = frozenset({"source", "target"})
    starts_from: ClassVar = "source_only"
    aligns: ClassVar = True
    phases: ClassVar = (
        Phase("discriminator", learns=("discriminator",)),
        Phase("encoder", learns=("model",)),
    )

    def __init__(self, model: nn.Module, *, hidden: int = 32) -> None:
        super().__init__(model)
        self.of_source = copy.deepcopy(model).requires_grad_(False).eval()
        self.discriminator = feature_discriminator(self._num_features(), hidden, dropout=0.0)

    def hold(self, strategy) -> None:
        """The head is the source's."""
        strategy.keep_frozen(head_of(self.model, "ADDA"))
        super().hold(strategy)

    def forward(
        self, source: Batch | None, target: Batch | None, *, progress: float, phase: str = "discriminator"
    ) -> dict[str, Tensor]:
        """Computes the discriminator's loss, or that of the encoder, whose domain labels are exchanged."""
        source, target = self._given(source, "source"), self._given(target, "target")
        features = self.model(target.image).features
        if phase == "encoder":
            return {"loss": F.softplus(-self._from_source(features)).mean()}
        with torch.no_grad():
            theirs = self.of_source.eval()(source.image).features
        loss, accuracy = domain_loss(self._from_source(theirs), self._from_source(features.detach()))
        return {"loss": loss, "domain_accuracy": accuracy.detach()}

    def _from_source(self, features: Tensor) -> Tensor:
        return self.discriminator(as_cases(features.float(), 1024))
