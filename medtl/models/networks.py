"""2D segmentation networks: decoders of segmentation-models-pytorch on timm encoders.

`unet`: Ronneberger et al. 2015; `fpn`: Lin et al. 2017 and Kirillov et al. 2019; `deeplabv3plus`: Chen et al. 2018;
`upernet`: Xiao et al. 2018.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from medtl.errors import ConfigError, near_matches
from medtl.models.weights.hub import PACKAGED_ENCODER
from medtl.models.weights.load import check_encoder_name

_PLAIN: Mapping[str, type[nn.Module]] = {
    "unet": smp.Unet,
    "fpn": smp.FPN,
    "deeplabv3plus": smp.DeepLabV3Plus,
    "upernet": smp.UPerNet,
}
STACKED = "_2.5d"
VOLUMETRIC = "unet_3d"
STRIDE = 32

NETWORKS: Mapping[str, str] = {
    **dict.fromkeys(_PLAIN, "images, or volumes slice by slice"),
    **{f"{name}{STACKED}": "volumes, each slice with its neighbours as channels" for name in _PLAIN},
    VOLUMETRIC: "volumes: slices encoded in 2D, through-plane mixing and a 3D decoder",
}
"""Segmentation networks by name, and what they are for."""


def check_network_name(name: str) -> None:
    """Raises `ConfigError`, naming near matches, unless `name` is one of `NETWORKS`."""
    if name not in NETWORKS:
        raise ConfigError(f"There is no segmentation network {name!r}. {near_matches(name, NETWORKS)}")


def choose_network(name: str, spatial_dims: int) -> str:
    """The network that `name` stands for: `auto` is `unet` for images and `unet_2.5d` for volumes.

    Args:
        name: one of `NETWORKS`, or `auto`.
        spatial_dims: 2 for images, 3 for volumes.

    Raises:
        ConfigError: there is no such network, or it is for volumes and the scans are images.
    """
    if name == "auto":
        return "unet" if spatial_dims == 2 else f"unet{STACKED}"
    check_network_name(name)
    if spatial_dims == 2 and (name == VOLUMETRIC or name.endswith(STACKED)):
        plain = name.removesuffix(STACKED) if name.endswith(STACKED) else "unet"
        raise ConfigError(
            f"{name} is for volumes, and the scans are single images. Choose --network {plain}, or auto."
        )
    return name


def build_maps(encoder: str, in_channels: int, **options: Any) -> Any:
    """A timm encoder that returns maps at strides 1, 2, 4, 8, 16 and 32; random weights, tested on a small image.

    Raises:
        ConfigError: the encoder does not return such maps for images of any size.
    """
    return _probed(
        encoder,
        in_channels,
        lambda **more: smp.encoders.get_encoder(
            f"tu-{encoder}", in_channels=in_channels, weights=None, **options, **more
        ),
    )


class SliceNetwork(nn.Module):
    """A 2D network: encoder, decoder and head.

    Attributes:
        num_features: channels of the map that the head sees.
        stride: rows and columns of an image must be multiples of this.
    """

    def __init__(self, encoder: str, network: str, in_channels: int, num_classes: int, width: int) -> None:
        super().__init__()
        all_options: dict[str, dict[str, Any]] = {
            "unet": {"decoder_channels": [max(width * 8 // 2**i, 8) for i in range(5)]},
            # For maps of one pixel, each of the 32 groups of GroupNorm needs more than one channel.
            "fpn": {
                "decoder_pyramid_channels": width * 8,
                "decoder_segmentation_channels": max(64, width * 4 // 32 * 32),
            },
            "deeplabv3plus": {"decoder_channels": width * 8},
            "upernet": {"decoder_channels": width * 8},
        }
        built = _probed(
            encoder,
            in_channels,
            lambda **more: _PLAIN[network](
                f"tu-{encoder}",
                encoder_weights=None,
                in_channels=in_channels,
                classes=num_classes,
                **all_options[network],
                **more,
            ),
            network,
        )
        self.encoder = built.encoder
        self.decoder = built.decoder
        self.head = built.segmentation_head
        self.num_features = width_into(self.head)
        self.stride = STRIDE

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (B, C, H, W), sides multiples of `stride`, to logits (B, K, H, W) and the head's input (B, F, h, w)."""
        decoded = self.decoder(self.encoder(image))
        return self.head(decoded), decoded


def width_into(head: nn.Module) -> int:
    """Channels that a head takes: those of its first convolution."""
    first = next(m for m in head.modules() if isinstance(m, _ConvNd))
    return int(first.in_channels)


def _probed(encoder: str, in_channels: int, build: Any, network: str | None = None) -> Any:
    """Builds the network and runs one small image; windowed transformers must be asked to take other sizes."""
    check_encoder_name(encoder)
    reason = ""
    for more in ({}, {"strict_img_size": False}):
        try:
            built = build(**more)
            maps = getattr(built, "encoder", built)
            training = built.training
            with torch.no_grad():
                found = maps.eval()(torch.zeros(1, in_channels, 2 * STRIDE, 3 * STRIDE))
            built.train(training)
        except Exception as error:  # timm's architectures raise many types
            reason = reason or f"{type(error).__name__}: {error}".splitlines()[0][:150]
            continue
        least = 16 if network == "deeplabv3plus" else STRIDE
        expected = [max(2 * STRIDE // 2**i, 2 * STRIDE // least) for i in range(len(found))]
        if [m.shape[2] for m in found] == expected:
            return built
        reason = reason or f"rows of its maps are {[m.shape[2] for m in found]}, expected {expected}"
    raise ConfigError(
        f"Encoder {encoder} does not fit segmentation network {network or VOLUMETRIC} ({reason}). Expected: maps at "
        f"strides 2 to {STRIDE} for images of any size. Choose another, for example {PACKAGED_ENCODER}, resnet34 or "
        "convnext_tiny."
    )
