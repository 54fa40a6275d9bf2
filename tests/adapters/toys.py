"""Small networks and domains with a known shift, for tests of adapters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medtl.adapters import Batch
from medtl.models import WithFeatures, with_features


def network(dims: int = 2, num_classes: int = 2, channels: int = 1, seed: int = 0) -> WithFeatures:
    """A small network with BatchNorm for images (dims 2) or volumes (dims 3)."""
    conv, norm, pool = {
        2: (nn.Conv2d, nn.BatchNorm2d, nn.AdaptiveAvgPool2d),
        3: (nn.Conv3d, nn.BatchNorm3d, nn.AdaptiveAvgPool3d),
    }[dims]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return with_features(
            nn.Sequential(
                conv(channels, 8, 3, padding=1),
                norm(8),
                nn.ReLU(),
                conv(8, 16, 3, stride=2, padding=1),
                norm(16),
                nn.ReLU(),
                pool(1),
                nn.Flatten(),
                nn.Linear(16, num_classes),
            )
        )


def images(label: Tensor, seed: int, dims: int = 2, size: int = 8) -> Tensor:
    """Noisy images whose left half is brighter in class 1, and whose right half is in class 0."""
    generator = torch.Generator().manual_seed(seed)
    image = 0.3 + 0.1 * torch.randn((len(label), 1, *[size] * dims), generator=generator)
    half = torch.arange(size) < size // 2
    stripes = torch.where(torch.arange(size) % 2 == 0, 0.3, 0.0)
    across = (
        half * stripes
    )  # class 1: fine stripes along the last axis on one half; class 0: flat, of the same mean
    flat = half * stripes.mean()
    return image + torch.where(label.bool().view(-1, *[1] * (dims + 1)), across, flat)


def shift(image: Tensor) -> Tensor:
    """The other scanner: lower contrast, brighter ground."""
    return 0.35 * image + 0.5


def domains(num: int, seed: int, dims: int = 2) -> tuple[Batch, Batch, Tensor]:
    """A labelled source batch, an unlabelled target batch of another class share, and the target's labels."""
    generator = torch.Generator().manual_seed(1000 + seed)
    source = (torch.rand(num, generator=generator) < 0.5).long()
    target = (torch.rand(num, generator=generator) < 0.4).long()
    return (
        Batch(image=images(source, 2 * seed, dims), label=source),
        Batch(image=shift(images(target, 2 * seed + 1, dims))),
        target,
    )
