"""Domain-adversarial training of neural networks."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from medtl.adapters.contract.adapter import Adapter
from medtl.adapters.contract.norm import Norm, Statistics
from medtl.data.tensors.batch import Batch


class _ReverseGradient(Function):
    """Identity in the forward pass; multiplies the gradient by -lambda in the backward pass."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, lambda_: float) -> Tensor:
        ctx.lambda_ = lambda_
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.lambda_ * gradient, None


def reversal_strength(progress: float, gamma: float = 10.0) -> float:
    """lambda(p) = 2 / (1 + exp(-gamma p)) - 1, p the fraction of training done (Ganin et al. 2016, section 5.2)."""
    return 2.0 / (1.0 + math.exp(-gamma * progress)) - 1.0


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
        norm, statistics, label_smoothing: see `Adapter`.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"source", "target"})

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
        norm: Norm = "separate",
        statistics: Statistics = "running",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(model, norm=norm, statistics=statistics, label_smoothing=label_smoothing)
        self.weight = weight
        self.gamma = gamma
        self.head_lr = head_lr
        self.locations = locations
        # No BatchNorm here: with one call per domain it would hide the shift that the discriminator looks for.
        self.discriminator = nn.Sequential(
            nn.Linear(self._num_features(), hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, 1),
        )

    def forward(self, source: Batch | None, target: Batch | None, *, progress: float) -> dict[str, Tensor]:
        """Computes source loss plus domain loss, and the discriminator's balanced accuracy."""
        from_source, from_target = self.forward_domains(source, target)
        source_loss = self.supervised_loss(from_source.logits, self._given(source, "source").label)
        lambda_ = self.weight * reversal_strength(progress, self.gamma)
        is_source = self._discriminate(from_source.features, lambda_)
        is_target = self._discriminate(from_target.features, lambda_)
        domain_loss = 0.5 * (F.softplus(-is_source).mean() + F.softplus(is_target).mean())
        accuracy = 0.5 * ((is_source > 0).float().mean() + (is_target <= 0).float().mean())
        return {
            "loss": source_loss + domain_loss,
            "source_loss": source_loss.detach(),
            "domain_loss": domain_loss.detach(),
            "domain_accuracy": accuracy.detach(),
            "lambda": torch.tensor(lambda_),
        }

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """The model at `lr`, the discriminator at `lr * head_lr`."""
        return [
            {"params": [p for p in self.model.parameters() if p.requires_grad], "lr": lr},
            {"params": list(self.discriminator.parameters()), "lr": lr * self.head_lr},
        ]

    def _discriminate(self, features: Tensor, lambda_: float) -> Tensor:
        """Logits (M,) for "from the source", one per case or map location; float32 outside autocast."""
        if features.ndim > 2:
            features = features.movedim(1, -1).flatten(0, -2)
            if len(features) > self.locations:
                features = features[torch.randperm(len(features))[: self.locations].to(features.device)]
        with torch.autocast(features.device.type, enabled=False):
            reversed_features: Tensor = _ReverseGradient.apply(features.float(), lambda_)
            logits: Tensor = self.discriminator(reversed_features)
        return logits.squeeze(1)
