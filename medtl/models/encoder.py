"""An ImageNet encoder: maps images in [0, 1] to one feature vector each."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import timm
import torch
from timm.models import group_parameters
from timm.models.vgg import VGG
from torch import Tensor, nn

from medtl.errors import ConfigError
from medtl.models.weights.hub import PACKAGED_ENCODER
from medtl.models.weights.load import (
    KeyReport,
    channel_values,
    check_encoder_name,
    load_pretrained,
    make_network,
)

__all__ = ["PACKAGED_ENCODER", "Encoder", "build_encoder"]

MAX_DEPTHS = 6
"""Networks with more blocks of one width (transformers) return features at this many evenly spaced depths."""


class Encoder(nn.Module):
    """A timm network without its head, including the normalisation that its weights were trained with.

    The normalisation is part of the module, so that a checkpoint cannot be used with another one. It is timm's for the
    architecture, unless the weights are known to expect another (`key_report.statistics`). Unless the input has three
    channels, every channel is normalised with the mean of the three. The two 4096-wide layers of VGG belong to its
    ImageNet head and are left out: VGG's features are its pooled last map.

    Args:
        network: timm's network without its head.
        in_channels: channels of the images.

    Attributes:
        name: timm's name of the architecture.
        num_features: F, the width of the features.
        weights: where the weights came from.
        key_report: how the tensors of the weights matched those of the network.
        image_size: side of the images the network was built for, or None: any size that it allows.
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
            values: Any = getattr(key_report, key) or config[key]  # type: ignore[index]
            self.register_buffer(key, channel_values(values, in_channels))

    def forward(self, image: Tensor) -> Tensor:
        """Encodes images (B, C, H, W) with values in [0, 1] to features (B, F).

        Raises:
            ConfigError: the network does not take images of this size.
        """
        features: Tensor = self._run(self.network, image)
        return features

    def features_at(self, image: Tensor) -> dict[str, Tensor]:
        """Features at several depths, each averaged over the image: `stage1` (shallow), ..., `stageN`.

        The last one equals the output of `forward`. Earlier ones of transformers are averaged over the patches.

        Args:
            image: (B, C, H, W) with values in [0, 1].

        Returns:
            (B, F_d) by the name of the depth.
        """
        network: Any = self.network
        last, maps = self._maps(image)
        pooled = [m.mean((2, 3)) for m in maps[:-1]]
        pooled.append(network.forward_head(last))
        return {f"stage{depth}": features for depth, features in enumerate(pooled, 1)}

    def maps_at(self, image: Tensor) -> dict[str, Tensor]:
        """Feature maps at the depths of `features_at`, which are averages of them but for the last.

        Args:
            image: (B, C, H, W) with values in [0, 1].

        Returns:
            (B, F_d, h_d, w_d) by the name of the depth.
        """
        return {f"stage{depth}": features for depth, features in enumerate(self._maps(image)[1], 1)}

    def _maps(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """What the network's head takes, and the maps (B, F_d, h_d, w_d) at every depth."""
        network: Any = self.network
        last, maps = self._run(network.forward_intermediates, image)
        if len(maps) > MAX_DEPTHS:
            maps = [maps[round((d + 1) * len(maps) / MAX_DEPTHS) - 1] for d in range(MAX_DEPTHS)]
        return last, maps

    def parameter_stages(self) -> list[list[str]]:
        """Names of the encoder's parameters by stage, the stem first; see `network_stages`.

        Every parameter is in exactly one stage; names are those of this module's `named_parameters`.
        """
        return [[f"network.{name}" for name in stage] for stage in network_stages(self.network)]

    def spec(self) -> dict[str, Any]:
        """The arguments with which `build_encoder` rebuilds this network, as plain values; defaults are left out."""
        spec: dict[str, Any] = {"name": self.name, "in_channels": self.in_channels}
        config: Any = self.network.pretrained_cfg
        if self.image_size is not None and config.get("fixed_input_size"):
            spec["image_size"] = self.image_size
        return spec

    def _normalised(self, image: Tensor) -> Tensor:
        return ((image - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def _run(self, call: Callable[[Tensor], Any], image: Tensor) -> Any:
        try:
            return call(self._normalised(image))
        except (
            RuntimeError,
            AssertionError,
        ) as error:  # torch and timm name neither the network nor a remedy
            config: Any = self.network.pretrained_cfg
            own = self.image_size or config["input_size"][-1]
            if config.get("fixed_input_size") and image.shape[-2:] != (own, own):
                raise ConfigError(
                    f"Encoder {self.name} was built for images of {own} x {own} pixels, got {tuple(image.shape)}. Set "
                    "image_size (--image-size) when it is built: its position embeddings are then resampled."
                ) from error
            if not config.get("fixed_input_size"):
                _check_size(self.name, min(image.shape[-2:]))
            raise


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
        weights: `imagenet` (from the extra `offline`, the hub's cache, or a download), the path of a file, or
            `random`, which you have to ask for; None if a checkpoint is loaded next.
        in_channels: channels of the images; the RGB weights of the first convolution are adapted.
        channel_rule: `sum` or `mean`, see `load_pretrained`.
        image_size: side of the images. It is checked at once; transformers are built for it, with resampled position
            embeddings.

    Raises:
        ConfigError: timm does not know `name`; the network does not take images of this size.
        WeightsError: the weights are missing, altered, or belong to another architecture.
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


def network_stages(network: nn.Module) -> list[list[str]]:
    """Parameter names of a timm network by stage, the stem first, as timm groups them for layer-wise rate decay.

    VGG's stages lie between its poolings. A part without a weight matrix of its own (the norm after the last stage of
    ConvNeXt or Swin) belongs to the stage before it.
    """
    matcher: Any = network.group_matcher(coarse=True)  # type: ignore[operator]
    if isinstance(network, VGG):
        matcher = _vgg_block(network)
    stages: list[list[str]] = []
    for _, names in sorted(group_parameters(network, matcher).items()):
        if stages and all(network.get_parameter(name).ndim < 2 for name in names):
            stages[-1] += names
        else:
            stages.append(list(names))
    return stages


def _vgg_block(network: VGG) -> Callable[[str], int]:
    """Which block the parameter `features.N.*` is in."""
    return lambda name: bisect_left(network.feature_ends, int(name.split(".")[1]))


@lru_cache(maxsize=2)
def _shapes(name: str, size: int | None) -> nn.Module:
    """Builds the network without allocating its values."""
    with torch.device("meta"):
        return make_network(name, image_size=size).eval()


@lru_cache(maxsize=64)  # a run builds the same encoder for every model and seed
def _takes(name: str, size: int) -> bool:
    """Whether the network takes images of this size; checked by shapes alone, without computing values."""
    fixed = getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False)
    try:
        with torch.device("meta"):
            _shapes(name, size if fixed else None)(torch.empty(1, 3, size, size))
    except (RuntimeError, AssertionError, ValueError):
        return False
    return size % _patch(name) == 0


def _patch(name: str) -> int:
    embed = getattr(_shapes(name, None), "patch_embed", None)
    return max(getattr(embed, "patch_size", (1,)))


def _check_size(name: str, size: int) -> None:
    """Raises `ConfigError`, naming sizes that fit, unless the network takes square images of this side."""
    if _takes(name, size):
        return
    patch = _patch(name)
    sizes = range(patch, 32 * patch + 480, patch)
    smallest = sizes[min(bisect_left(sizes, True, key=lambda s: _takes(name, s)), len(sizes) - 1)]
    if not _takes(name, smallest):
        expected = f"{_shapes(name, None).pretrained_cfg['input_size'][-1]}, the size of its weights"  # type: ignore[index]
    elif size < smallest:
        expected = f"{smallest} or more"
    else:
        below = size - size % patch
        expected = f"multiples of {patch}, as {below} and {below + patch}"
    raise ConfigError(
        f"Encoder {name} does not take images of {size} x {size} pixels. Expected a side of {expected}. Set "
        f"--image-size, or choose another encoder, for example {PACKAGED_ENCODER}."
    )
