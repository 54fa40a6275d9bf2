"""Histogram matching: source images with the target's distribution of grey values or colours."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal, Unpack, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medtl.adapters.contract.adapter import Adapter, Common
from medtl.data.tensors.batch import Batch
from medtl.errors import ConfigError

Match = Literal["image", "batch"]
PADDING = 0.1
"""From this share of an image on, exact zeros in all channels count as padding, or as air below a window."""
_MOST = (
    2**17
)  # values of the reference that are looked at: quantiles need no more, and sorting takes the time


def match(image: NDArray[Any], references: list[NDArray[Any]]) -> NDArray[Any]:
    """Matches the histogram of each channel of `image` to the pooled histogram of `references` (Gonzalez and Woods).

    Args:
        image: (C, *S), values in [0, 1].
        references: images of C channels. Padding, in them or in `image`, is ignored and stays zero.

    Returns:
        float32, shaped as `image`; unchanged if either side is nothing but padding.
    """
    from skimage.exposure import match_histograms

    empty = (image == 0).all(axis=0)
    padded = [(r == 0).all(axis=0) for r in references]
    if max(e.mean() for e in (empty, *padded)) > PADDING:
        inside, outside = ~empty, [~p for p in padded]
    else:
        inside, outside = np.ones_like(empty), [np.ones_like(p) for p in padded]
    values = np.concatenate([r[:, o] for r, o in zip(references, outside, strict=True)], axis=1)
    matched = np.array(image, dtype=np.float32)
    if inside.any() and values.shape[1]:
        values = values[:, :: max(1, values.shape[1] // _MOST)]
        for channel, reference in enumerate(values):
            matched[channel, inside] = match_histograms(image[channel, inside], reference)
    return matched


class Histogram(Adapter):
    """Trains on source images whose grey-value histograms are matched to the target's, channel by channel.

    Works on images and volumes. Labels stay valid because the order of grey values is kept; for the same reason the
    method cannot undo an inverted contrast (T1 against T2). Where the share of a structure differs between images,
    matching shifts its grey values; `match=batch` does so less.

    Args:
        model: `model(image) -> Output(logits, features)`.
        match: the reference: one random `image` of the target's batch for each source image, or the whole `batch`.
        probability: probability that a source image is matched in a step.
        norm, statistics, label_smoothing: see `Adapter`; the model sees the target only if statistics=target.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"source", "target"})
    norms: ClassVar[frozenset[str]] = frozenset({"separate", "frozen"})

    def __init__(
        self,
        model: nn.Module,
        *,
        match: Match = "image",
        probability: float = 1.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(model, **common)
        if match not in get_args(Match) or not 0 < probability <= 1:
            raise ConfigError(
                f"Histogram: match is {match!r} and probability {probability}; expected image or batch, and a "
                "probability above 0 and at most 1: at 0 nothing would be matched."
            )
        self.match = match
        self.probability = probability

    def forward(self, source: Batch | None, target: Batch | None, *, progress: float) -> dict[str, Tensor]:
        """Computes the source's loss on the matched images."""
        source, target = self._given(source, "source"), self._given(target, "target")
        partner = torch.randint(len(target), (len(source),)).tolist()
        chosen = (torch.rand(len(source)) < self.probability).tolist()
        images, references = source.image.float().cpu().numpy(), list(target.image.float().cpu().numpy())
        matched = [
            match(image, references if self.match == "batch" else [references[p]]) if use else image
            for image, p, use in zip(images, partner, chosen, strict=True)
        ]
        image = torch.from_numpy(np.stack(matched)).to(source.image.device)
        output = self.forward_source(dataclasses.replace(source, image=image))
        loss = self.supervised_loss(output.logits, source.label)
        change = (image - source.image).abs().mean()
        return {"loss": loss, "source_loss": loss.detach(), "image_change": change}
