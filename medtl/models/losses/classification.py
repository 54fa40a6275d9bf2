"""Losses of classification for classes of unequal frequency, and what each does to the probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medtl.errors import ConfigError, DataError, near_matches

__all__ = ["IMBALANCE", "ClassificationLoss", "calibration_note", "check_imbalance", "class_weights"]

FOCUS = 2.0
"""Gamma of the focal loss, the paper's."""

_EQUAL = (
    "probabilities are those of a population in which all classes are equally frequent, too high for rare classes "
    "where they are rare; the order of cases within a class is kept"
)
IMBALANCE: Mapping[str, str] = {
    "none": "",
    "class_weights": (
        f"Classes were weighted by the inverse of their frequency: {_EQUAL}. Recalibrate with an intercept (Platt, a "
        "new prevalence); a temperature alone does not mend it."
    ),
    "balanced_sampling": (
        f"Classes were drawn equally often: {_EQUAL}, and the few cases of a rare class were seen often, so that the "
        "model may be too sure of them. Recalibrate with an intercept (Platt, a new prevalence); a temperature alone "
        "does not mend it."
    ),
    "focal": (
        "The focal loss is no proper scoring rule: it pulls probabilities towards the middle, so that they are less "
        "sure than the data allow where the model fits, and often better than those of an overconfident network. A "
        "temperature mends most of it; rare classes are not made more frequent."
    ),
    "logit_adjusted": (
        f"Logits were adjusted by the classes' frequency in training, not in prediction: {_EQUAL}. The logarithm of a "
        "class's frequency added to its logit gives the probabilities of the training population."
    ),
}
"""What may be done about rare classes, and the sentence on its calibration."""


def check_imbalance(name: str) -> None:
    """Checks the name of a remedy.

    Raises:
        ConfigError: it is none of `IMBALANCE`.
    """
    if name not in IMBALANCE:
        raise ConfigError(f"There is no imbalance {name!r}. {near_matches(name, IMBALANCE)}")


def calibration_note(name: str) -> str:
    """What the report says about the probabilities of a model that was trained with this remedy; empty for none."""
    check_imbalance(name)
    return IMBALANCE[name]


def class_weights(counts: Sequence[int]) -> tuple[float, ...]:
    """Weights N / (K n_k): the mean over all N cases is 1, and every class weighs as much as any other.

    The limit beta -> 1 of the class-balanced weights of Cui et al. 2019 (scikit-learn's "balanced").

    Raises:
        DataError: a class has no case.
    """
    if len(counts) < 2 or min(counts) < 1:
        raise DataError(f"Weights need at least two classes with a case each, got {list(counts)} cases.")
    return tuple(sum(counts) / (len(counts) * count) for count in counts)


class ClassificationLoss(nn.Module):
    """Mean over the labelled cases of a batch, in float32; linear in the target, so that targets can be mixed.

    | Name | Loss of a case of class y |
    |---|---|
    | `cross_entropy`, `none`, `balanced_sampling` | -log p_y |
    | `class_weights` | -w_y log p_y, w as in `class_weights` |
    | `focal` | -(1 - p_y)^2 log p_y (Lin et al. 2017, equation 4) |
    | `logit_adjusted` | -log softmax(z + log pi)_y, pi the classes' frequency (Menon et al. 2021, equation 10, tau 1) |

    The weighted loss is divided by the number of cases, not by the sum of their weights: a batch without the rare class
    would otherwise count the others in full, and the rare class less than it should.

    Args:
        name: one of them.
        counts: K numbers of training cases of each class.

    Raises:
        ConfigError: an unknown name.
        DataError: weights or frequencies of a class without a case.
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
            weights = torch.tensor(class_weights(counts))
        # log pi up to a constant, which softmax does not see
        shift = -weights.log() if name == "logit_adjusted" else torch.zeros(len(counts))
        self.register_buffer(
            "weights", torch.ones_like(weights) if name == "logit_adjusted" else weights, False
        )
        self.register_buffer("shift", shift, False)

    @classmethod
    def of_labels(
        cls, name: str, labels: Sequence[int] | None, num_classes: int
    ) -> ClassificationLoss | None:
        """The loss for training cases of these classes; None, for cross-entropy, where nothing is done."""
        if name == "none":
            return None
        return cls(name, np.bincount(labels or (), minlength=num_classes).tolist())

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Computes the loss of logits (N, K) with classes (N,), negative where not labelled.

        Raises:
            ConfigError: another number of classes, or labels that are no classes.
        """
        if logits.ndim != 2 or logits.shape[1] != len(self.weights) or label.is_floating_point():
            raise ConfigError(
                f"The loss {self.name} is for logits (N, {len(self.weights)}) and one class a case, got logits "
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
