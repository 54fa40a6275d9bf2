"""An ImageNet encoder: images in [0, 1] in, one feature vector an image out."""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn

from medtl.models.weights import PACKAGED_ENCODER, check_encoder_name, load_pretrained

__all__ = ["PACKAGED_ENCODER", "Encoder", "build_encoder"]


class Encoder(nn.Module):
    """A timm network without its head, behind the normalisation that its weights were trained with.

    The normalisation is part of the module, so that a checkpoint cannot be used with another one. With one
    input channel it is the mean of the three.

    Attributes:
        name: timm's name of the architecture.
        num_features: F, the width of the features.
        weights: where the weights came from.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, name: str, in_channels: int, weights: str) -> None:
        super().__init__()
        config = network.pretrained_cfg
        self.name = name
        self.weights = weights
        self.in_channels = in_channels
        self.num_features = int(network.head_hidden_size)  # type: ignore[arg-type]
        self.network = network.to(memory_format=torch.channels_last)
        for key in ("mean", "std"):
            value = torch.tensor(config[key], dtype=torch.float32)  # type: ignore[index]
            value = value if in_channels == 3 else value.mean().repeat(in_channels)
            self.register_buffer(key, value.view(1, -1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Encodes images (B, C, H, W) with values in [0, 1] to features (B, F)."""
        image = ((image - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        features: Tensor = self.network(image)
        return features


def build_encoder(
    name: str = PACKAGED_ENCODER, *, weights: str | None = "imagenet", in_channels: int = 3
) -> Encoder:
    """Builds an encoder with pretrained weights.

    Args:
        name: any timm architecture, for example `resnet50`, `convnext_tiny`, `tf_efficientnet_lite0`.
        weights: `imagenet` (the extra `offline`, the hub's cache, or a download), the path of a file, or
            `random`, which has to be asked for; None if a checkpoint is loaded next.
        in_channels: channels of the images; the RGB weights of the first convolution are adapted.

    Raises:
        ConfigError: timm does not know `name`.
        WeightsError: the weights are absent, altered, or of another architecture.
    """
    check_encoder_name(name)
    network = timm.create_model(name, num_classes=0, in_chans=in_channels)
    origin = "checkpoint" if weights is None else load_pretrained(network, name, weights, in_channels)
    return Encoder(network, name, in_channels, origin)
