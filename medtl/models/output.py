"""What every model of medtl returns."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Output(NamedTuple):
    """A model's answer for a batch of B images or volumes.

    Attributes:
        logits: (B, K), before softmax (or before K sigmoids in a multi-label task). Of a segmentation: (B, K, *S), a
            class for each pixel or voxel.
        features: (B, F), what the logits are computed from; adaptation methods align these. Of a segmentation: the
            deepest map (B, F, *s), with s the sides of the image divided by the encoder's stride.
    """

    logits: Tensor
    features: Tensor
