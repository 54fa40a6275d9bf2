"""An ImageNet encoder: images in [0, 1] in, one feature vector an image out."""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.models import group_parameters
from timm.models.vgg import VGG
from torch import Tensor, nn

from medtl.errors import ConfigError
from medtl.models.weights import PACKAGED_ENCODER, KeyReport, check_encoder_name, load_pretrained

__all__ = ["PACKAGED_ENCODER", "Encoder", "build_encoder"]

MAX_DEPTHS = 6
"""Networks with more blocks of one width (transformers) give features at so many depths, evenly spaced."""

_SIZES = (32, 48, 64, 75, 80, 96, 112, 128, 144, 160, 192, 224, 256, 299, 384, 512)


class Encoder(nn.Module):
    """A timm network without its head, behind the normalisation that its weights were trained with.

    The normalisation is part of the module, so that a checkpoint cannot be used with another one. Unless the input has
    three channels, each channel is normalised by the mean of the three. The two 4096-wide layers of VGG are a part of
    its ImageNet head and are left out: its features are the pooled last map.

    Attributes:
        name: timm's name of the architecture.
        num_features: F, the width of the features.
        weights: where the weights came from.
        key_report: how the tensors of the weights met those of the network.
        image_size: side of the images that it was made for, or None: any that the network allows.
        channel_rule: how the first convolution was adapted from RGB, `sum` or `mean`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        name: str,
        in_channels: int,
        key_report: KeyReport,
        *,
        image_size: int | None = None,
        channel_rule: str = "sum",
    ) -> None:
        super().__init__()
        config = network.pretrained_cfg
        self.name = name
        self.weights = key_report.origin
        self.key_report = key_report
        self.in_channels = in_channels
        self.image_size = image_size
        self.channel_rule = channel_rule
        width = network.num_features if isinstance(network, VGG) else network.head_hidden_size
        self.num_features = int(width)  # type: ignore[arg-type]
        self.network = network.to(memory_format=torch.channels_last)
        for key in ("mean", "std"):
            value = torch.tensor(config[key], dtype=torch.float32)  # type: ignore[index]
            value = value if in_channels == 3 else value.mean().repeat(in_channels)
            self.register_buffer(key, value.view(1, -1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Encodes images (B, C, H, W) with values in [0, 1] to features (B, F)."""
        features: Tensor = self.network(self._normalised(image))
        return features

    def features_at(self, image: Tensor) -> dict[str, Tensor]:
        """Features at several depths, each averaged over the image: `stage1` (shallow), ..., `stageN`.

        The last one equals what `forward` gives.

        Args:
            image: (B, C, H, W) with values in [0, 1].

        Returns:
            (B, F_d) by the name of the depth.
        """
        network: Any = self.network
        last, maps = network.forward_intermediates(self._normalised(image), norm=False)
        if len(maps) > MAX_DEPTHS:
            maps = [maps[round((d + 1) * len(maps) / MAX_DEPTHS) - 1] for d in range(MAX_DEPTHS)]
        pooled = [m.mean((2, 3)) for m in maps[:-1]]
        pooled.append(network.forward_head(last))
        return {f"stage{depth}": features for depth, features in enumerate(pooled, 1)}

    def parameter_stages(self) -> list[list[str]]:
        """Names of the encoder's parameters by stage, the stem first, as timm groups them for the layer decay of rates.

        Every parameter is in exactly one stage; the names are those of `named_parameters` of this module.
        """
        network: Any = self.network
        groups = group_parameters(network, network.group_matcher(coarse=True))
        return [[f"network.{name}" for name in groups[key]] for key in sorted(groups) if groups[key]]

    def spec(self) -> dict[str, Any]:
        """What `build_encoder` needs to make this network again, as plain values; what is left out is the default."""
        spec: dict[str, Any] = {"name": self.name, "in_channels": self.in_channels}
        if self.image_size is not None and self.network.pretrained_cfg.get("fixed_input_size"):  # type: ignore[union-attr]
            spec["image_size"] = self.image_size
        return spec

    def _normalised(self, image: Tensor) -> Tensor:
        return ((image - self.mean) / self.std).contiguous(memory_format=torch.channels_last)


def build_encoder(
    name: str = PACKAGED_ENCODER,
    *,
    weights: str | None = "imagenet",
    in_channels: int = 3,
    channel_rule: str = "sum",
    image_size: int | None = None,
) -> Encoder:
    """Builds an encoder with pretrained weights.

    Args:
        name: any timm architecture, for example `resnet50`, `vgg16`, `inception_v3`, `convnext_tiny`,
            `vit_small_patch16_224`, `swin_tiny_patch4_window7_224`, `tf_efficientnet_lite0`.
        weights: `imagenet` (the extra `offline`, the hub's cache, or a download), the path of a file, or
            `random`, which has to be asked for; None if a checkpoint is loaded next.
        in_channels: channels of the images; the RGB weights of the first convolution are adapted.
        channel_rule: `sum` or `mean`, see `load_pretrained`.
        image_size: side of the images. It is checked at once; transformers are made for it, their embeddings of
            positions resampled.

    Raises:
        ConfigError: timm does not know `name`; the network does not take images of this size.
        WeightsError: the weights are absent, altered, or of another architecture.
    """
    check_encoder_name(name)
    if image_size is not None:
        _check_size(name, image_size)
    network = make_network(name, in_channels, image_size)
    if weights is None:
        report = KeyReport("checkpoint")
    else:
        report = load_pretrained(network, name, weights, in_channels, channel_rule)
    return Encoder(network, name, in_channels, report, image_size=image_size, channel_rule=channel_rule)


def make_network(name: str, in_channels: int = 3, image_size: int | None = None) -> nn.Module:
    """The timm network without its head (and without VGG's wide layers), with random weights."""
    config: Any = timm.get_pretrained_cfg(name)
    options: dict[str, Any] = {"num_classes": 0, "in_chans": in_channels}
    if image_size is not None and config is not None and config.fixed_input_size:
        options["img_size"] = image_size
    network: nn.Module = timm.create_model(name, **options)
    if isinstance(network, VGG):
        network.pre_logits = nn.Identity()  # type: ignore[assignment]
    return network


def _takes(name: str, size: int) -> bool:
    """Whether the network takes images of this size: their shapes go through it, without values."""
    try:
        with torch.device("meta"):
            network = make_network(name, 3, size).eval()
            patch = getattr(getattr(network, "patch_embed", None), "patch_size", (1, 1))
            network(torch.empty(1, 3, size, size))
    except (RuntimeError, AssertionError, ValueError):
        return False
    return all(size % int(p) == 0 for p in patch)


def _check_size(name: str, size: int) -> None:
    if _takes(name, size):
        return
    larger = next((s for s in range(size + 1, size + 33) if s % 8 == 0 and _takes(name, s)), None)
    larger = larger or next((s for s in _SIZES if s > size and _takes(name, s)), None)
    smallest = next((s for s in _SIZES if _takes(name, s)), None)
    hint = (
        f"Sizes that it takes: {', '.join(map(str, sorted({s for s in (smallest, larger) if s})))}."
        if larger
        else ""
    )
    raise ConfigError(
        f"Encoder {name} does not take images of {size} x {size} pixels: they are too small for it, or no multiple of "
        f"its patches. {hint} Set --image-size, or choose another encoder, for example {PACKAGED_ENCODER}."
    )
