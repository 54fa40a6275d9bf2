"""Parts of adversarial methods: reversed gradients, a discriminator of features, and its loss."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F


class _ReverseGradient(Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, lambda_: float) -> Tensor:
        ctx.lambda_ = lambda_
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.lambda_ * gradient, None


def reverse_gradient(features: Tensor, lambda_: float) -> Tensor:
    """Identity in the forward pass; multiplies the gradient by -lambda in the backward pass (Ganin et al. 2016)."""
    reversed_features: Tensor = _ReverseGradient.apply(features, lambda_)
    return reversed_features


def reversal_strength(progress: float, gamma: float = 10.0) -> float:
    """lambda(p) = 2 / (1 + exp(-gamma p)) - 1, p the fraction of training done (Ganin et al. 2016, section 5.2)."""
    return 2.0 / (1.0 + math.exp(-gamma * progress)) - 1.0


def feature_discriminator(num_features: int, hidden: int, dropout: float) -> nn.Sequential:
    """Two hidden layers that map features (N, F) to logits (N, 1).

    It has no BatchNorm: with one call per domain it would hide the shift that the discriminator looks for.
    """
    return nn.Sequential(
        nn.Linear(num_features, hidden),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, 1),
    )


def as_cases(features: Tensor, most: int) -> Tensor:
    """Features (N, F), or each location of maps (N, F, *S) as a case, at most `most` of them drawn at random."""
    if features.ndim == 2:
        return features
    rows = features.movedim(1, -1).flatten(0, -2)
    return rows[torch.randperm(len(rows))[:most].to(rows.device)] if len(rows) > most else rows


def domain_loss(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and balanced accuracy of a discriminator; each domain has weight one half, whatever its size.

    Args:
        source: logits of the source for "from the source", any shape.
        target: those of the target.
    """
    loss = 0.5 * (F.softplus(-source).mean() + F.softplus(target).mean())
    accuracy = 0.5 * ((source > 0).float().mean() + (target <= 0).float().mean())
    return loss, accuracy
