"""Linear probing, then full fine-tuning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Unpack

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from medtl.data.tensors.batch import Batch
from medtl.errors import ConfigError, DataError
from medtl.models.parts import batch_norms, modes_kept
from medtl.strategies.contract.stages import Part
from medtl.strategies.contract.strategy import Strategy, StrategyOptions

_BALANCED = ("balanced_sampling", "class_weights", "logit_adjusted")
"""Remedies for class imbalance under which the probe, too, must weigh classes equally."""


class LpFt(Strategy):
    """Sets the head to a converged linear probe, then trains all weights gently (Kumar et al. 2022).

    A random head sends gradients through the encoder that distort its features before the head has learnt anything; a
    converged head does not. The probe is logistic regression with an L2 penalty, on features that are centred and
    divided by their common spread, solved to convergence before the first step. BatchNorm keeps the pretrained
    statistics: with batch statistics, the features would differ from those of the probe from the first step on.

    Args:
        model: a model with a linear `head`, and nothing new before it except the pooling of slices.
        penalty: inverse strength of the probe's L2 penalty (scikit-learn's C).
        lr_factor: multiplies the learning rate of all weights: the start is good, so small steps are enough.
        common: see `Strategy`.
    """

    sets_head: ClassVar[bool] = True

    def __init__(
        self,
        model: nn.Module,
        *,
        penalty: float = 1.0,
        lr_factor: float = 0.3,
        **common: Unpack[StrategyOptions],
    ) -> None:
        super().__init__(model, **common)
        self._check("penalty", penalty, penalty > 0, "above 0")
        self._check("lr_factor", lr_factor, 0 < lr_factor <= 1, "above 0 and at most 1")
        if not isinstance(getattr(model, "head", None), nn.Linear):
            raise ConfigError(
                f"lp_ft begins with a linear probe of the encoder's features, and {type(model).__name__} has no linear "
                "head to put it into. Use head or full."
            )
        if getattr(model, "bottleneck", None):
            raise ConfigError(
                "lp_ft begins with a linear probe of the encoder's features, but the dense layer before the head is "
                "new: a probe behind it would rest on random weights. Use the linear head, or the strategy full."
            )
        self.penalty, self.lr_factor = penalty, lr_factor

    def group(self, part: Part, lr: float) -> dict[str, Any]:
        """Lowers the rate of all weights by `lr_factor`."""
        return {"lr": lr * self.lr_factor}

    def hold(self) -> None:
        """As `Strategy.hold`; BatchNorm stays in eval mode."""
        super().hold()
        for layer in batch_norms(self.model):
            layer.eval()

    @torch.no_grad()
    def on_fit_start(
        self, loaders: Mapping[str, Iterable[Batch]], criterion: nn.Module | None = None
    ) -> None:
        """Solves the probe on the training cases and copies it into the head."""
        features, labels = [], []
        device = next(self.model.parameters()).device
        with modes_kept(self.model):
            self.model.eval()
            for batch in loaders["source"]:
                if batch.label is None or batch.label.is_floating_point():
                    raise ConfigError(
                        "lp_ft needs one class per case for its probe. Use full for several findings."
                    )
                features.append(self.model(batch.image.to(device)).features.double().cpu().numpy())
                labels.append(batch.label.numpy())
        x, y = np.concatenate(features), np.concatenate(labels)
        x, y = x[y >= 0], y[y >= 0]
        if len(np.unique(y)) < 2:
            raise DataError(
                "LpFt needs at least two classes for its probe, and the training cases have one class alone."
            )
        # One scale for all features: those with little variance keep small weights, whatever their units.
        mean, std = x.mean(0), np.sqrt(x.var(0).mean()) + 1e-12
        balanced = "balanced" if getattr(criterion, "name", "") in _BALANCED else None
        solved = LogisticRegression(C=self.penalty, max_iter=2000, class_weight=balanced).fit(
            (x - mean) / std, y
        )
        weight = solved.coef_ / std
        bias = solved.intercept_ - weight @ mean
        if len(weight) == 1:  # binary: the logit of the second class against the first
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        head: Any = self.model.head
        head.weight[solved.classes_] = torch.tensor(weight, dtype=head.weight.dtype, device=device)
        head.bias[solved.classes_] = torch.tensor(bias, dtype=head.bias.dtype, device=device)
        if self.average is not None:
            self.average.copy_from(self.learned())
