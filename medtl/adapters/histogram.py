"""Histogram matching: source images with the target's distribution of grey values or colours."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
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


def match(
    image: NDArray[Any],
    references: Sequence[NDArray[Any]],
    outside: NDArray[np.bool_] | None = None,
    references_outside: Sequence[NDArray[np.bool_]] | None = None,
) -> NDArray[Any]:
    """Matches the histogram of each channel of `image` to the pooled histogram of `references` (Gonzalez and Woods).

    Args:
        image: (C, *S), values in [0, 1].
        references: images of C channels.
        outside: (*S) True where `image` shows what is beyond the scan, which takes no part in the histogram. It is
            changed as the scan's own values are, so that it still looks like the scan's border.
        references_outside: the same for each reference.

    Returns:
        float32, shaped as `image`; unchanged if either side has no values. Where more than `PADDING` of an image is
        exactly zero, zeros take no part either and stay zero.
    """
    from skimage.exposure import match_histograms

    images = [image, *references]
    nowhere = [np.zeros(i.shape[1:], dtype=np.bool_) for i in images]
    away = [nowhere[0] if outside is None else outside, *(references_outside or nowhere[1:])]
    scans = [~a for a in away]
    zeros = [(i == 0).all(axis=0) for i in images]
    if all(z[s].sum() <= PADDING * s.sum() for z, s in zip(zeros, scans, strict=True)):
        zeros = [np.zeros_like(z) for z in zeros]
    inside, *others = (s & ~z for s, z in zip(scans, zeros, strict=True))
    values = np.concatenate([r[:, o] for r, o in zip(references, others, strict=True)], axis=1)
    matched = np.array(image, dtype=np.float32)
    if not inside.any() or not values.shape[1]:
        return matched
    values = values[:, :: max(1, values.shape[1] // _MOST)]
    beyond = away[0] & ~zeros[0]
    for channel, reference in enumerate(values):
        before = image[channel, inside]
        after = match_histograms(before, reference)
        matched[channel, inside] = after
        if beyond.any():
            order = np.argsort(before)
            matched[channel, beyond] = np.interp(image[channel, beyond], before[order], after[order])
    return matched


def _outside(batch: Batch) -> NDArray[np.bool_]:
    """(N, *S) True beyond the scans; all False where the batch does not say."""
    if batch.outside is None:
        return np.zeros((len(batch), *batch.image.shape[2:]), dtype=np.bool_)
    return np.asarray(batch.outside.cpu().numpy(), dtype=np.bool_)


class Histogram(Adapter):
    """Trains on source images whose grey-value histograms are matched to the target's, channel by channel.

    Works on images and volumes. Labels stay valid because the order of grey values is kept; for the same reason the
    method cannot undo an inverted contrast (T1 against T2). Where the share of a structure differs between images,
    matching shifts its grey values; `match=batch` does so less.

    Args:
        model: `model(image) -> Output(logits, features)`.
        match: the reference: one random `image` of the target's batch for each source image, or the whole `batch`.
        probability: probability that a source image is matched in a step.
        norm, statistics, label_smoothing, strategy: see `Adapter`; the model sees the target only if statistics=target.
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
        images, references = source.image.float().cpu().numpy(), target.image.float().cpu().numpy()
        outside, references_outside = _outside(source), _outside(target)
        matched = []
        for number, (image, p, use) in enumerate(zip(images, partner, chosen, strict=True)):
            which = slice(None) if self.match == "batch" else slice(p, p + 1)
            others = list(references[which]), list(references_outside[which])
            matched.append(match(image, others[0], outside[number], others[1]) if use else image)
        image = torch.from_numpy(np.stack(matched)).to(source.image.device)
        output = self.forward_source(dataclasses.replace(source, image=image))
        loss = self.supervised_loss(output.logits, source.label)
        change = (image - source.image).abs().mean()
        return {"loss": loss, "source_loss": loss.detach(), "image_change": change}
