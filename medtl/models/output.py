"""The output of every model in medtl."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

MODEL_TASKS = frozenset({"binary", "multiclass", "multilabel", "segmentation"})
"""What a model may be for: its attribute `task`, if it has one."""


class Output(NamedTuple):
    """The output for a batch of B images or volumes.

    Attributes:
        logits: (B, K), before softmax (or before K sigmoids in a multi-label task). In segmentation: (B, K, *S), one
            class score per pixel or voxel.
        features: (B, F), the input of the model's `head`; adaptation methods align these. In segmentation: the
            decoder's last map (B, F, *s), which may be smaller than the image.
    """

    logits: Tensor
    features: Tensor
