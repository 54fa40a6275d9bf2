"""Domain-adversarial training of neural networks."""

from __future__ import annotations

from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn

from medtl.adapters.contract.adapter import Adapter, Common
from medtl.adapters.contract.adversarial import (
    as_cases,
    domain_loss,
    feature_discriminator,
    reversal_strength,
    reverse_gradient,
)
from medtl.data.tensors.batch import Batch


class DANN(Adapter):
    """Learns features that do not reveal the domain, against a discriminator (Ganin et al. 2016, eq. 9, 13 to 15).

    A discriminator learns to tell the source's features from the target's. The encoder receives its gradient reversed
    and scaled by lambda(p), and so learns features that do not tell the domains apart. Only the encoder's gradient is
    scaled: the discriminator always learns at full strength. Each domain has weight one half, whatever its batch size.

    In segmentation the features are a map, and every location is a sample: the domain loss, and with it the reversed
    gradient, is a mean over locations.

    Args:
        model: `model(image) -> Output(logits, features)`.
        weight: weight of the reversed gradient.
        gamma: how fast lambda rises with the progress of training.
        hidden: width of the discriminator's two hidden layers.
        dropout: dropout in the discriminator.
        head_lr: learning rate of the discriminator, as a multiple of the encoder's.
        locations: at most this many locations per domain are drawn in each step, which bounds memory.
        norm, statistics, label_smoothing, strategy: see `Adapter`.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"source", "target"})
    aligns: ClassVar[bool] = True

    def __init__(
        self,
        model: nn.Module,
        *,
        weight: float = 1.0,
        gamma: float = 10.0,
        hidden: int = 256,
        dropout: float = 0.5,
        head_lr: float = 1.0,
        locations: int = 4096,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(model, **common)
        self.weight = weight
        self.gamma = gamma
        self.head_lr = head_lr
        self.locations = locations
        self.discriminator = feature_discriminator(self._num_features(), hidden, dropout)

    def forward(self, source: Batch | None, target: Batch | None, *, progress: float) -> dict[str, Tensor]:
        """Computes source loss plus domain loss, and the discriminator's balanced accuracy."""
        from_source, from_target = self.forward_domains(source, target)
        source_loss = self.supervised_loss(from_source.logits, self._given(source, "source").label)
        lambda_ = self.weight * reversal_strength(progress, self.gamma)
        is_source = self._discriminate(from_source.features, lambda_)
        is_target = self._discriminate(from_target.features, lambda_)
        loss, accuracy = domain_loss(is_source, is_target)
        return {
            "loss": source_loss + loss,
            "source_loss": source_loss.detach(),
            "domain_loss": loss.detach(),
            "domain_accuracy": accuracy.detach(),
            "lambda": torch.tensor(lambda_),
        }

    def _discriminate(self, features: Tensor, lambda_: float) -> Tensor:
        """Logits (M,) for "from the source", one per case or map location; float32 outside autocast."""
        features = as_cases(features, self.locations)
        with torch.autocast(features.device.type, enabled=False):
            logits: Tensor = self.discriminator(reverse_gradient(features.float(), lambda_))
        return logits.squeeze(1)
