"""Segmentation losses from MONAI, computed over the labelled voxels only.

How they are set up, and why:

- **The voxels of a batch are pooled** before Dice is computed (batch Dice, as in nnU-Net: Isensee et al. 2021). A patch
  often lacks a structure; the Dice of that patch alone would be undefined or driven by a handful of voxels.
- **Dice leaves out the background**: its Dice is nearly 1 from the start and would only dilute the structures'. The
  voxelwise term (cross-entropy, focal) covers the background. Only the generalized Dice, whose weights balance the
  classes, includes it (Sudre et al. 2017).
- **The prediction is not squared** in the denominator, so that the loss equals 1 - Dice as evaluated when the
  probabilities are 0 or 1.
- **One voxel is added** to numerator and denominator. A structure that a batch lacks then costs nothing once it is
  no longer predicted, and its false positives are still penalised; the usual 1e-5 gives a constant 1 with no gradient.
- The Tversky index weighs misses 0.7 and false positives 0.3 (Salehi et al. 2017).

Void voxels are removed before anything is computed, so that they affect no sum, mean or gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai.losses.dice import DiceLoss, GeneralizedDiceLoss
from monai.losses.focal_loss import FocalLoss
from monai.losses.tversky import TverskyLoss
from torch import Tensor, nn

from medtl.errors import ConfigError, DataError, near_matches

__all__ = ["LOSSES", "SegmentationLoss", "rare_structure_weights"]

RARE = 0.001
MAX_WEIGHT = 10.0
_SMOOTH = 1.0
_OVERLAP: dict[str, Any] = {
    "softmax": True,
    "to_onehot_y": True,
    "batch": True,
    "smooth_nr": _SMOOTH,
    "smooth_dr": _SMOOTH,
}


class _CrossEntropy(nn.CrossEntropyLoss):
    """Takes labels with a channel axis, as MONAI's losses do."""

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        return super().forward(logits, label[:, 0])


_TERMS: Mapping[str, Callable[[Tensor | None], nn.Module]] = {
    "dice": lambda _: DiceLoss(include_background=False, **_OVERLAP),
    "generalized_dice": lambda _: GeneralizedDiceLoss(include_background=True, **_OVERLAP),
    "tversky": lambda _: TverskyLoss(include_background=False, alpha=0.3, beta=0.7, **_OVERLAP),
    "ce": lambda weight: _CrossEntropy(weight),
    "focal": lambda weight: FocalLoss(use_softmax=True, to_onehot_y=True, gamma=2.0, weight=weight),
}
_VOXELWISE = frozenset({"ce", "focal"})

LOSSES: Mapping[str, tuple[str, ...]] = {
    "dice_ce": ("dice", "ce"),
    "dice_focal": ("dice", "focal"),
    "dice": ("dice",),
    "ce": ("ce",),
    "focal": ("focal",),
    "tversky": ("tversky",),
    "tversky_ce": ("tversky", "ce"),
    "generalized_dice": ("generalized_dice",),
    "generalized_dice_ce": ("generalized_dice", "ce"),
}
"""Loss names, and the terms that each one adds up."""


class SegmentationLoss(nn.Module):
    """A loss between logits and class indices; void voxels contribute nothing.

    Args:
        name: one of `LOSSES`.
        class_weights: weights of the K classes in the voxelwise term (cross-entropy, focal), background first; Dice
            weighs all structures equally without them.

    Raises:
        ConfigError: unknown name; weights for a loss without a voxelwise term, or weights that are not positive.
    """

    def __init__(self, name: str = "dice_ce", class_weights: Sequence[float] | None = None) -> None:
        super().__init__()
        if name not in LOSSES:
            raise ConfigError(f"There is no loss {name!r}. {near_matches(name, LOSSES)}")
        weight = None
        if class_weights is not None:
            if not _VOXELWISE & set(LOSSES[name]):
                raise ConfigError(
                    f"Class weights act on cross-entropy or focal terms, and loss {name!r} has none: "
                    "it weighs all structures equally. Leave them out, or choose dice_ce."
                )
            if any(not math.isfinite(w) or w < 0 for w in class_weights) or not any(class_weights):
                raise ConfigError(
                    f"Class weights must be numbers of at least 0, not all 0; got {list(class_weights)}."
                )
            weight = torch.tensor(class_weights, dtype=torch.float32)
        self.name = name
        self.class_weights = None if class_weights is None else tuple(class_weights)
        self.terms = nn.ModuleDict({term: _TERMS[term](weight) for term in LOSSES[name]})

    @classmethod
    def balanced(cls, name: str, voxel_counts: Sequence[int]) -> SegmentationLoss:
        """Builds the named loss with weights for rare structures, if it has a voxelwise term that takes weights.

        Args:
            name: one of `LOSSES`.
            voxel_counts: voxels of each class in the training set, as for `rare_structure_weights`.
        """
        plain = cls(name)
        return cls(name, rare_structure_weights(voxel_counts)) if _VOXELWISE & set(LOSSES[name]) else plain

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Computes the loss in float32, even under autocast.

        Args:
            logits: (N, K, *S), before softmax.
            label: (N, *S) int64 class indices; -1 means void or unlabelled.

        Returns:
            A scalar; 0 with a zero gradient if every voxel is void.

        Raises:
            DataError: the shapes do not agree, or the mask has a class that the logits lack.
        """
        num_classes = logits.shape[1]
        if label.shape != logits.shape[:1] + logits.shape[2:]:
            raise DataError(
                f"Logits {tuple(logits.shape)} and mask {tuple(label.shape)} do not agree: "
                "expected (N, K, *S) and (N, *S)."
            )
        known = label >= 0
        if label.numel() and int(label.max()) >= num_classes:
            raise DataError(
                f"The mask holds class {int(label.max())}; the network has {num_classes} classes."
            )
        if self.class_weights is not None and len(self.class_weights) != num_classes:
            raise ConfigError(
                f"Got {len(self.class_weights)} class weights for {num_classes} classes (background included)."
            )
        with torch.autocast(logits.device.type, enabled=False):
            voxels, classes = logits.float().transpose(0, 1).flatten(1), label.flatten()
            if not bool(known.all()):
                keep = known.flatten().nonzero()[:, 0]
                voxels, classes = voxels.index_select(1, keep), classes.index_select(0, keep)
            if len(classes) == 0:
                return voxels.sum()
            parts = [term(voxels[None], classes[None, None]) for term in self.terms.values()]
            return torch.stack(parts).sum()


def rare_structure_weights(voxel_counts: Sequence[int]) -> tuple[float, ...] | None:
    """Class weights for the voxelwise term if a structure is rare, from the training set's voxel counts.

    The weights are inverse square roots of the class shares, at most `MAX_WEIGHT` times that of the most common class,
    scaled to a mean of 1 over voxels. Plain inverse shares would let a structure of a few hundred voxels dominate.

    Args:
        voxel_counts: voxels of each class, background first; void is not counted.

    Returns:
        One weight per class, or None if no structure has less than `RARE` of the voxels: Dice is enough then. A class
        without voxels gets the largest weight in use.

    Raises:
        DataError: fewer than two classes, negative counts, or no voxels at all.
    """
    counts = [float(count) for count in voxel_counts]
    total = sum(counts)
    if len(counts) < 2 or min(counts) < 0 or total <= 0:
        raise DataError(
            f"Class weights need voxel counts of at least two classes, not all 0; got {list(voxel_counts)}."
        )
    shares = [count / total for count in counts]
    if min((share for share in shares[1:] if share > 0), default=1.0) >= RARE:
        return None
    common = max(shares)
    raw = [min(math.sqrt(common / share), MAX_WEIGHT) if share > 0 else 0.0 for share in shares]
    raw = [weight or max(raw) for weight in raw]
    mean = sum(weight * share for weight, share in zip(raw, shares, strict=True))
    return tuple(weight / mean for weight in raw)
