"""Parts that several methods use: layers of a model, and quantities computed from its predictions."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from medtl.models.parts import (
    NORMS,
    batch_norms,
    classes_of,
    encoder_of,
    head_of,
    in_eval_mode,
    modes_kept,
    norm_parameters,
    normalised_by_batch,
)

__all__ = [
    "NORMS",
    "batch_norms",
    "classes_of",
    "encoder_of",
    "entropy",
    "head_of",
    "in_eval_mode",
    "information_map",
    "modes_kept",
    "norm_parameters",
    "normalised_by_batch",
    "per_class",
    "pseudo_labels",
]


def per_class(values: Tensor) -> Tensor:
    """(N, K, *S) to (M, K), one row for each case, pixel or voxel."""
    return values.movedim(1, -1).flatten(0, -2)


def entropy(logits: Tensor) -> Tensor:
    """Mean entropy of softmax(logits) over cases, pixels or voxels, in nats; float32, exact at probabilities of 0."""
    log_p = torch.log_softmax(logits.float(), dim=1)
    return -(log_p.exp() * log_p).sum(dim=1).mean()


def information_map(logits: Tensor) -> Tensor:
    """Weighted self-information I_c = -p_c log p_c / log K (Vu et al. 2019, section 3.2): K channels, float32."""
    log_p = torch.log_softmax(logits.float(), dim=1)
    return -log_p.exp() * log_p / math.log(logits.shape[1])


def pseudo_labels(features: Tensor, probabilities: Tensor, threshold: int = 0) -> Tensor:
    """Labels each case by its nearest class centroid (Liang et al. 2020, equations 4 to 6).

    Features get a constant 1 appended and are scaled to unit length. Centroids are means weighted by the probabilities
    in the first round and by the first round's labels in the second; the nearest has the largest cosine.

    Args:
        features: (n, F).
        probabilities: (n, K).
        threshold: a class predicted for this many cases or fewer is not assigned.

    Returns:
        (n,) int64.
    """
    x = F.normalize(F.pad(features.float(), (0, 1), value=1.0), dim=1)
    labels, weights = probabilities.argmax(dim=1), probabilities.float()
    num_classes = probabilities.shape[1]
    kept = (torch.bincount(labels, minlength=num_classes) > threshold).nonzero()[:, 0]
    if len(kept) == 0:
        return labels
    for _ in range(2):
        centroids = F.normalize(weights.T @ x / weights.sum(dim=0)[:, None].clamp(min=1e-8), dim=1)
        labels = kept[(x @ centroids[kept].T).argmax(dim=1)]
        weights = F.one_hot(labels, num_classes).float()
        kept = kept[weights.sum(dim=0)[kept] > 0]
    return labels
