"""Fourier domain adaptation: source images with the coarse brightness and colour of the target."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn

from medtl.adapters.contract.adapter import Adapter, Common
from medtl.data.tensors.batch import Batch
from medtl.errors import ConfigError, DataError


def low_frequencies(shape: tuple[int, ...], beta: float) -> Tensor:
    """Marks the frequencies to swap for images of `shape`, in the layout of `torch.fft.rfftn`.

    The block is centred and has 2 b + 1 frequencies per axis, -b to b, with b = floor(beta * size) of that axis, so a
    thin axis of a volume gets a thinner block. beta = 0 marks none, a small beta only the mean, 0.5 all.
    """
    if beta == 0:
        return torch.zeros(*shape[:-1], shape[-1] // 2 + 1, dtype=torch.bool)
    block = torch.ones((), dtype=torch.bool)
    for axis, size in enumerate(shape):
        last = axis == len(shape) - 1
        # Rounded first: 0.1 * 30 must be 3, and floating point may give less.
        reach = math.floor(round(beta * size, 9))
        frequency = torch.fft.rfftfreq(size) if last else torch.fft.fftfreq(size)
        near = (frequency * size).round().abs() <= reach
        block = block & near.view([-1 if a == axis else 1 for a in range(len(shape))])
    return block


def swap_amplitude(source: Tensor, target: Tensor, beta: float) -> Tensor:
    """Replaces low-frequency amplitudes by the target's and keeps the phases (Yang and Soatto 2020, section 3.1).

    Args:
        source: (N, C, *S) images or volumes.
        target: same shape as `source`.
        beta: in [0, 0.5], see `low_frequencies`.

    Returns:
        (N, C, *S) float32, not clipped.
    """
    axes = tuple(range(2, source.ndim))
    shape = tuple(source.shape[2:])
    with torch.autocast(source.device.type, enabled=False):
        mine = torch.fft.rfftn(source.float(), dim=axes)
        theirs = torch.fft.rfftn(target.float(), dim=axes)
        block = low_frequencies(shape, beta).to(source.device)
        # Unswapped coefficients are kept as they are: their polar form would only round them.
        swapped = torch.where(block, torch.polar(theirs.abs(), mine.angle()), mine)
        image: Tensor = torch.fft.irfftn(swapped, s=shape, dim=axes)
    return image


def without_margin(batch: Batch) -> Tensor:
    """The images with what is beyond each scan at the scan's mean: a margin has low frequencies of its own."""
    if batch.outside is None:
        return batch.image
    inside = ~batch.outside[:, None]
    axes = tuple(range(2, batch.image.ndim))
    mean = (batch.image * inside).sum(axes, keepdim=True) / inside.sum(axes, keepdim=True).clamp(min=1)
    return torch.where(inside, batch.image, mean)


class FDA(Adapter):
    """Trains on source images with the target's low-frequency amplitudes (FDA: Yang and Soatto 2020, section 3.1).

    Each source image takes the amplitudes of a random image of the target's batch, channel by channel, in 2D and 3D.
    Labels stay valid because the phase, which carries the structure, is the source's. The paper's entropy term and its
    average over three networks are left out.

    Args:
        model: `model(image) -> Output(logits, features)`.
        beta: half the width of the swapped block of frequencies, as a fraction of each axis; the paper uses 0.01, 0.05
            and 0.09. Larger values cause artefacts. Below 1 / size only the mean of the image is swapped.
        probability: probability that a source image is changed in a step.
        norm, statistics, label_smoothing, strategy: see `Adapter`; the model sees the target only if statistics=target.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"source", "target"})
    norms: ClassVar[frozenset[str]] = frozenset({"separate", "frozen"})

    def __init__(
        self,
        model: nn.Module,
        *,
        beta: float = 0.01,
        probability: float = 1.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(model, **common)
        if not 0 < beta <= 0.5 or not 0 < probability <= 1:
            raise ConfigError(
                f"FDA: beta is {beta} and probability {probability}; expected beta above 0 and at most 0.5, and "
                "probability above 0 and at most 1: at 0 nothing would be swapped."
            )
        self.beta = beta
        self.probability = probability

    def forward(self, source: Batch | None, target: Batch | None, *, progress: float) -> dict[str, Tensor]:
        """Computes the source's loss on the changed images."""
        source, target = self._given(source, "source"), self._given(target, "target")
        if source.image.shape[1:] != target.image.shape[1:]:
            raise DataError(
                f"FDA needs images of one size; the source's are {tuple(source.image.shape[1:])}, the target's "
                f"{tuple(target.image.shape[1:])}. Use the same image size and patch size for both."
            )
        partner = torch.randint(len(target), (len(source),)).to(target.image.device)
        chosen = torch.rand(len(source)) < self.probability
        mine, theirs = without_margin(source), without_margin(target)
        # The margin changes as the scan in its place would, so that it still looks like the scan's border.
        changed = swap_amplitude(mine, theirs[partner], self.beta) + (source.image - mine)
        changed = changed.clamp(0, 1)
        chosen = chosen.view(-1, *[1] * (changed.ndim - 1)).to(changed.device)
        image = torch.where(chosen, changed, source.image)
        output = self.forward_source(dataclasses.replace(source, image=image))
        loss = self.supervised_loss(output.logits, source.label)
        change = (image - source.image).abs().mean()
        return {"loss": loss, "source_loss": loss.detach(), "image_change": change}
