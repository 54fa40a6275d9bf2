"""A 3D network around a 2D encoder with ImageNet weights.

Medical volumes are few and often have thick slices, and ImageNet weights exist only in 2D. Therefore:

1. every slice is encoded in 2D with the unchanged pretrained weights;
2. the maps of each level are mixed across slices by a depthwise 3x1x1 convolution that starts as the identity (the
   factorised kernels of P3D: Qiu et al. 2017), and projected to the decoder's width with BatchNorm;
3. a 3D decoder (MONAI's U-Net blocks) upsamples only in the plane, by transposed 1x2x2 convolutions (anisotropic
   as in nnU-Net for thick slices: Isensee et al. 2021), and joins the levels;
4. the last level sees the image itself through a small 3D convolution, to recover edges lost at stride 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.blocks.dynunet_block import UnetBasicBlock, UnetOutBlock, UnetUpBlock
from torch import Tensor, nn

from medtl.models.networks import build_maps

_NORM = "batch"
_ACT = ("relu", {"inplace": True})


class ThroughPlane(nn.Module):
    """Mixes maps (N, F, D, h, w) along D, then projects them to `width` channels.

    At the start, a volume of equal slices and a single slice give the same maps.
    """

    def __init__(self, num_features: int, width: int) -> None:
        super().__init__()
        self.mix = nn.Conv3d(
            num_features,
            num_features,
            (3, 1, 1),
            padding=(1, 0, 0),
            groups=num_features,
            bias=False,
        )
        nn.init.dirac_(self.mix.weight, groups=num_features)
        self.project = nn.Conv3d(num_features, width, 1, bias=False)
        self.norm = nn.BatchNorm3d(width)
        self.act = nn.ReLU(inplace=True)

    def forward(self, maps: Tensor) -> Tensor:
        """Returns (N, width, D, h, w)."""
        return self.act(self.norm(self.project(self.mix(maps))))  # type: ignore[no-any-return]


class VolumeNetwork(nn.Module):
    """A 2D encoder on slices, mixing across slices, and a 3D decoder.

    Args:
        encoder: timm's name.
        in_channels: channels of the volumes.
        num_classes: K.
        width: the decoder has half as many channels at full resolution; they double at each level, up to 8 times.
        depth: number of encoder levels used; the deepest has stride 2**depth.

    Attributes:
        num_features: channels of the map that the head sees.
        stride: rows and columns must be multiples of this.
    """

    def __init__(self, encoder: str, in_channels: int, num_classes: int, width: int, depth: int) -> None:
        super().__init__()
        self.encoder = build_maps(encoder, in_channels, depth=depth)
        channels = [int(c) for c in self.encoder.out_channels]
        widths = [max(4, min(width * 2**i // 2, width * 4)) for i in range(depth + 1)]
        self.stem = UnetBasicBlock(3, in_channels, widths[0], 3, 1, _NORM, _ACT)
        # Some encoders start at stride 4: they have no map, and no skip connection, at stride 2.
        self.levels = [i for i in range(1, depth + 1) if channels[i] > 0]
        self.mixing = nn.ModuleList(ThroughPlane(channels[i], widths[i]) for i in self.levels)
        ups = []
        for deeper, level in zip([*self.levels[1:], None], self.levels, strict=True):
            if deeper is not None:
                ups.append(_up(widths[deeper], widths[level], 2 ** (deeper - level)))
        self.ups = nn.ModuleList(ups)
        self.last = _up(widths[self.levels[0]], widths[0], 2 ** self.levels[0])
        self.head = UnetOutBlock(3, widths[0], num_classes)
        self.num_features = widths[0]
        self.stride: int = 2**depth

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (N, C, D, H, W) to logits (N, K, D, H, W) and the head's input (N, F, D, H, W)."""
        batch, channels, depth, height, width = image.shape
        slices = image.transpose(1, 2).reshape(batch * depth, channels, height, width)
        maps = self.encoder(slices.contiguous(memory_format=torch.channels_last))
        volumes = [maps[i].reshape(batch, depth, *maps[i].shape[1:]).transpose(1, 2) for i in self.levels]
        mixed: Sequence[Tensor] = [mix(v) for mix, v in zip(self.mixing, volumes, strict=True)]
        decoded = mixed[-1]
        for up, skip in zip(reversed(list(self.ups)), reversed(mixed[:-1]), strict=True):
            decoded = up(decoded, skip)
        decoded = self.last(decoded, self.stem(image))
        return self.head(decoded), decoded


def _up(in_channels: int, out_channels: int, factor: int) -> Any:
    return UnetUpBlock(3, in_channels, out_channels, 3, 1, (1, factor, factor), _NORM, _ACT)
