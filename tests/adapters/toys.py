"""Small networks and domains with a known shift, for tests of adapters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medtl.adapters import Batch
from medtl.models import Output, WithFeatures, with_features

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
NORM = {
    "batch": {2: nn.BatchNorm2d, 3: nn.BatchNorm3d},
    "instance": {
        2: lambda c: nn.InstanceNorm2d(c, affine=True),
        3: lambda c: nn.InstanceNorm3d(c, affine=True),
    },
    "group": dict.fromkeys((2, 3), lambda c: nn.GroupNorm(2, c)),
}


def network(
    dims: int = 2, num_classes: int = 2, channels: int = 1, seed: int = 0, norm: str = "batch"
) -> WithFeatures:
    """A small classifier with BatchNorm, or another norm, for images (dims 2) or volumes (dims 3)."""
    conv, layer = CONV[dims], NORM[norm][dims]
    pool = {2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}[dims]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return with_features(
            nn.Sequential(
                conv(channels, 8, 3, padding=1),
                layer(8),
                nn.ReLU(),
                conv(8, 16, 3, stride=2, padding=1),
                layer(16),
                nn.ReLU(),
                pool(1),
                nn.Flatten(),
                nn.Linear(16, num_classes),
            )
        )


class Segmenter(nn.Module):
    """A small segmentation network: an encoder that halves the axes, a decoder, a head of kernel 1."""

    task = "segmentation"

    def __init__(self, dims: int, num_classes: int, channels: int, norm: str) -> None:
        super().__init__()
        conv, layer = CONV[dims], NORM[norm][dims]
        self.encoder = nn.Sequential(conv(channels, 8, 3, padding=1), layer(8), nn.ReLU())
        self.down = nn.Sequential(conv(8, 8, 3, stride=2, padding=1), layer(8), nn.ReLU())
        self.up = nn.Upsample(scale_factor=2)
        self.decoder = nn.Sequential(conv(16, 8, 3, padding=1), layer(8), nn.ReLU())
        self.head = conv(8, num_classes, 1)
        self.num_features, self.num_classes = 8, num_classes

    def forward(self, image: Tensor) -> Output:
        fine = self.encoder(image)
        features = self.decoder(torch.cat([fine, self.up(self.down(fine))], dim=1))
        return Output(self.head(features), features)


def segmenter(
    dims: int = 2, num_classes: int = 2, channels: int = 1, seed: int = 0, norm: str = "batch"
) -> Segmenter:
    """A small segmentation network, drawn from `seed`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Segmenter(dims, num_classes, channels, norm)


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


def views(image: Tensor, seed: int, start: int = 0) -> Batch:
    """An unlabelled target batch with a strong view (other contrast, noise) and its places from `start` on."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(image), *[1] * (image.ndim - 1))
    mean = image.mean(dim=tuple(range(1, image.ndim)), keepdim=True)
    contrast = 0.8 + 0.4 * torch.rand(shape, generator=generator)
    strong = mean + contrast * (image - mean) + 0.02 * torch.randn(image.shape, generator=generator)
    return Batch(image=image, strong=strong, index=start + torch.arange(len(image)))


def domains(num: int, seed: int, dims: int = 2, start: int = 0) -> tuple[Batch, Batch, Tensor]:
    """A labelled source batch, an unlabelled target batch of another class share, and the target's labels."""
    generator = torch.Generator().manual_seed(1000 + seed)
    source = (torch.rand(num, generator=generator) < 0.5).long()
    target = (torch.rand(num, generator=generator) < 0.4).long()
    return (
        Batch(image=images(source, 2 * seed, dims), label=source),
        views(shift(images(target, 2 * seed + 1, dims)), seed, start),
        target,
    )


def blobs(num: int, seed: int, dims: int = 2, size: int = 16) -> tuple[Tensor, Tensor]:
    """Noisy images (N, 1, *S) with a brighter ball each, and its mask (N, *S)."""
    generator = torch.Generator().manual_seed(seed)
    radius = size * (0.15 + 0.12 * torch.rand(num, generator=generator))
    centre = size * (0.3 + 0.4 * torch.rand((num, dims), generator=generator))
    place = torch.stack(torch.meshgrid(*[torch.arange(size)] * dims, indexing="ij"))
    distance = (place[None] - centre.view(num, dims, *[1] * dims)).square().sum(1).sqrt()
    mask = distance <= radius.view(num, *[1] * dims)
    image = 0.2 + 0.35 * mask + 0.05 * torch.randn(mask.shape, generator=generator)
    return image[:, None].clamp(0, 1), mask.long()


def masks(num: int, seed: int, dims: int = 2, start: int = 0, size: int = 16) -> tuple[Batch, Batch, Tensor]:
    """As `domains`, for segmentation: a tenth of the voxels of the source's masks is void."""
    image, mask = blobs(num, 2 * seed, dims, size)
    mask[torch.rand(mask.shape, generator=torch.Generator().manual_seed(seed)) < 0.1] = -1
    other, truth = blobs(num, 2 * seed + 1, dims, size)
    return Batch(image=image, label=mask), views(shift(other), seed, start), truth


def dice(logits: Tensor, mask: Tensor) -> float:
    """Dice of class 1, of all voxels together that are not void."""
    found = (logits.argmax(dim=1) == 1) & (mask >= 0)
    return float(2 * (found & (mask == 1)).sum() / (found.sum() + (mask == 1).sum()).clamp(min=1))
