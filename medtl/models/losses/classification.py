"""Classification losses for imbalanced classes, and what each one does to the probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medtl.errors import ConfigError, DataError, near_matches

__all__ = [
    "IMBALANCE",
    "ClassificationLoss",
    "calibration_note",
    "check_imbalance",
    "inverse_frequency_weights",
]

FOCUS = 2.0
"""Gamma of the focal loss, as in the paper."""

_EQUAL = (
    "the probabilities are those of a population in which all classes are equally frequent, too high for classes that "
    "are rare; the ranking of cases within a class is kept"
)
IMBALANCE: Mapping[str, str] = {
    "none": "",
    "class_weights": (
        f"Classes were weighted by the inverse of their frequency: {_EQUAL}. Recalibrate with an intercept (Platt, a "
        "new prevalence); a temperature alone does not correct it."
    ),
    "balanced_sampling": (
        f"Classes were sampled equally often: {_EQUAL}, and the few cases of a rare class were seen often, so the "
        "model may be overconfident on them. Recalibrate with an intercept (Platt, a new prevalence); a temperature "
        "alone does not correct it."
    ),
    "focal": (
        "The focal loss is not a proper scoring rule: it pulls probabilities towards the middle. They are less "
        "confident than the data allow if the model fits well, and often better than those of an overconfident "
        "network. A temperature corrects most of it; rare classes are not upweighted."
    ),
    "logit_adjusted": (
        f"Logits were adjusted by class frequency in training but not in prediction: {_EQUAL}. To get the "
        "probabilities of the training population, add the logarithm of a class's frequency to its logit."
    ),
}
"""Remedies for class imbalance, and what the report says about calibration after each."""


def check_imbalance(name: str) -> None:
    """Checks the name of a remedy.

    Raises:
            ConfigError: it is not one of `IMBALANCE`.
    """
    if name not in IMBALANCE:
        raise ConfigError(f"There is no imbalance {name!r}. {near_matches(name, IMBALANCE)}")


def calibration_note(name: str) -> str:
    """What the report says about probabilities of a model trained with this remedy; empty if nothing.

    Args:
        name: the remedy for rare classes.
    """
    check_imbalance(name)
    return IMBALANCE[name]


def inverse_frequency_weights(counts: Sequence[int]) -> tuple[float, ...]:
    """Weights N / (K n_k): their mean over all N cases is 1, and all classes have the same total weight.

    The limit beta -> 1 of the class-balanced weights of Cui et al. 2019 (scikit-learn's "balanced").

    Raises:
        DataError: a class has no case.
    """
    if len(counts) < 2 or min(counts) < 1:
        raise DataError(
            f"Class weights need at least two classes and a case of each, got {list(counts)} cases."
        )
    return tuple(sum(counts) / (len(counts) * count) for count in counts)


class ClassificationLoss(nn.Module):
    """Mean loss over the labelled cases of a batch, in float32; linear in the target, so that targets can be mixed.

    | Name | Loss of a case of class y |
    |---|---|
    | `cross_entropy`, `none`, `balanced_sampling` | -log p_y |
    | `class_weights` | -w_y log p_y, w as in `inverse_frequency_weights` |
    | `focal` | -(1 - p_y)^2 log p_y (Lin et al. 2017, equation 4) |
    | `logit_adjusted` | -log softmax(z + log pi)_y, pi the classes' frequency (Menon et al. 2021, equation 10, tau 1) |

    The weighted loss is divided by the number of cases, not by the sum of their weights: otherwise a batch without the
    rare class would give the other classes full weight, and the rare class would count for less than it should.

    Args:
        name: a name from the table.
        counts: number of training cases of each of the K classes.

    Raises:
        ConfigError: the name is unknown.
        DataError: weights or frequencies are asked for, and a class has no case.
    """

    weights: Tensor
    shift: Tensor

    def __init__(self, name: str, counts: Sequence[int]) -> None:
        super().__init__()
        if name != "cross_entropy":
            check_imbalance(name)
        self.name = name
        weights = torch.ones(len(counts))
        if name in ("class_weights", "logit_adjusted"):
            weights = torch.tensor(inverse_frequency_weights(counts))
        # log pi up to a constant, which softmax ignores
        shift = -weights.log() if name == "logit_adjusted" else torch.zeros(len(counts))
        self.register_buffer(
            "weights", torch.ones_like(weights) if name == "logit_adjusted" else weights, False
        )
        self.register_buffer("shift", shift, False)

    @classmethod
    def of_labels(
        cls, name: str, labels: Sequence[int] | None, num_classes: int
    ) -> ClassificationLoss | None:
        """The loss for training cases of these classes; None, for plain cross-entropy, if there is no remedy."""
        if name == "none":
            return None
        return cls(name, np.bincount(labels or (), minlength=num_classes).tolist())

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Computes the loss of logits (N, K) with classes (N,), negative if unlabelled.

        Raises:
            ConfigError: the number of classes differs, or the labels are not class indices.
        """
        if logits.ndim != 2 or logits.shape[1] != len(self.weights) or label.is_floating_point():
            raise ConfigError(
                f"The loss {self.name} expects logits (N, {len(self.weights)}) and one class per case, got logits "
                f"{tuple(logits.shape)} and labels {tuple(label.shape)} of {label.dtype}."
            )
        known = label >= 0
        with torch.autocast(logits.device.type, enabled=False):
            log_p = F.log_softmax(logits.float()[known] + self.shift.to(logits.device), dim=1)
            log_p = log_p.gather(1, label[known][:, None])[:, 0]
            weight = self.weights.to(logits.device)[label[known]]
            if self.name == "focal":
                weight = weight * (-torch.expm1(log_p)).clamp(min=0) ** FOCUS
            return -(weight * log_p).sum() / max(int(known.sum()), 1)
