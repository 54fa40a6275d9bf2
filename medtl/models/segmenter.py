"""Segments images, and volumes slice by slice, by slices with their neighbours, or in 3D."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from medtl.errors import ConfigError, DataError
from medtl.models.decoder3d import VolumeNetwork
from medtl.models.encoder import network_stages
from medtl.models.heads import build_head, describe_head
from medtl.models.networks import NETWORKS, STACKED, VOLUMETRIC, SliceNetwork, check_network_name
from medtl.models.output import Output
from medtl.models.weights.load import KeyReport, channel_values, load_pretrained_maps, make_network, map_name

__all__ = ["NETWORKS", "Segmenter", "build_segmenter"]


class Segmenter(nn.Module):
    """A segmentation network on an ImageNet encoder, including the normalisation of the encoder's weights.

    Images and volumes may have any size: the network pads them with their edge values to a multiple of the stride and
    crops the logits back. BatchNorm uses its running statistics when a batch holds one value per channel (pooled maps
    of a batch of one), because a single value has no variance.

    Args:
        encoder: timm's name.
        num_classes: K, background included.
        network: one of `NETWORKS`.
        in_channels: channels of the images.
        neighbours: slices on each side that a 2.5D network sees; other networks ignore it.
        width: scale of the decoder's channels.
        head: the description of another head than the network's own, as `spec` gives it.

    Attributes:
        task: "segmentation".
        num_features: F, channels of the map that the head sees.
        weights: where the encoder's weights came from.

    Raises:
        ConfigError: fewer than 2 classes, or a number of neighbours or a width that is too small.
    """

    task: ClassVar[str] = "segmentation"
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        encoder: str,
        num_classes: int,
        *,
        network: str = "unet",
        in_channels: int = 3,
        neighbours: int = 1,
        width: int = 16,
        head: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_network_name(network)
        if num_classes < 2:
            raise ConfigError(
                f"A segmentation network needs at least 2 classes, background included; got {num_classes}."
            )
        if neighbours < 1 or width < 4:
            raise ConfigError(
                f"neighbours={neighbours}, width={width}; expected at least 1 slice on each side and a width of 4."
            )
        self.encoder = encoder
        self.network = network
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.neighbours = neighbours
        self.width = width
        self.weights = "checkpoint"
        self.slices = 2 * neighbours + 1 if network.endswith(STACKED) else 1
        self.body: SliceNetwork | VolumeNetwork
        if network == VOLUMETRIC:
            self.body = VolumeNetwork(encoder, in_channels, num_classes, width, depth=4)
        else:
            plain = network.removesuffix(STACKED)
            self.body = SliceNetwork(encoder, plain, in_channels * self.slices, num_classes, width)
            self.body.to(memory_format=torch.channels_last)
        self._own_head = type(self.body.head)
        if head is not None:
            self.head = build_head(head)
        self.num_features = self.body.num_features
        for key in ("mean", "std"):
            self.register_buffer(key, torch.empty(1, in_channels, 1, 1))
        self.set_input_statistics(KeyReport("checkpoint"))
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.register_forward_pre_hook(_without_spread)
                module.register_forward_hook(_after, always_call=True)

    def set_input_statistics(self, report: KeyReport) -> None:
        """Sets the normalisation that the weights expect: that of `report`, or timm's for the architecture."""
        config: Any = self.body.encoder.model.pretrained_cfg
        for key in ("mean", "std"):
            value = channel_values(getattr(report, key) or config[key], self.in_channels)
            self.get_buffer(key).copy_(value)

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute; the head is the body's."""
        if name == "head":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def head(self) -> nn.Module:
        """The layers that map the decoder's last map to logits."""
        return self.body.head

    @head.setter
    def head(self, head: nn.Module) -> None:
        self.body.head = head

    def forward(self, image: Tensor) -> Output:
        """Segments images (N, C, H, W) or volumes (N, C, D, H, W) with values in [0, 1].

        Returns:
            Logits (N, K, H, W) or (N, K, D, H, W), and the head's input, with the rows and columns that were padded:
            (N, F, h, w) or (N, F, D, h, w).

        Raises:
            DataError: the number of channels or axes differs.
        """
        if image.ndim not in (4, 5) or image.shape[1] != self.in_channels:
            raise DataError(
                f"The network takes images (N, {self.in_channels}, H, W) or volumes (N, {self.in_channels}, D, H, W), "
                f"got shape {tuple(image.shape)}. Grey scans have 1 channel, colour scans 3: set in_channels when you "
                "build the network; ImageNet weights are adapted to it."
            )
        volume = image if image.ndim == 5 else image[:, :, None]
        height, width = volume.shape[-2:]
        logits, features = self._volume(self._prepared(volume))
        logits = logits[..., :height, :width]
        return Output(logits, features) if image.ndim == 5 else Output(logits[:, :, 0], features[:, :, 0])

    def _prepared(self, volume: Tensor) -> Tensor:
        """Normalises, and pads rows and columns at their ends."""
        volume = (volume - self.mean[..., None]) / self.std[..., None]
        pad = [-side % self.body.stride for side in volume.shape[-2:]]
        return F.pad(volume, (0, pad[1], 0, pad[0], 0, 0), mode="replicate") if any(pad) else volume

    def _volume(self, volume: Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(self.body, VolumeNetwork):
            return self.body(volume)  # type: ignore[no-any-return]
        batch, _, depth = volume.shape[:3]
        if self.slices > 1:
            volume = self._stacked(volume)
        slices = volume.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        logits, features = (maps.unflatten(0, (batch, depth)).transpose(1, 2) for maps in self.body(slices))
        return logits, features

    def _stacked(self, volume: Tensor) -> Tensor:
        """(N, C, D, H, W) to (N, slices * C, D, H, W); the first and last slice are repeated at the ends."""
        depth = volume.shape[2]
        place = torch.arange(depth, device=volume.device)
        shifts = range(-self.neighbours, self.neighbours + 1)
        return torch.cat([volume[:, :, (place + shift).clamp(0, depth - 1)] for shift in shifts], dim=1)

    def parameter_stages(self) -> list[list[str]]:
        """Names of the encoder's parameters by stage, the stem first; see `medtl.models.encoder.network_stages`.

        Stages whose maps the decoder does not use are left out.
        """
        with torch.device("meta"):
            stages = network_stages(make_network(self.encoder))
        number = {map_name(name): n for n, stage in enumerate(stages) for name in stage}
        found: dict[int, list[str]] = {}
        for name, _ in self.body.encoder.named_parameters():
            found.setdefault(number[map_name(name.removeprefix("model."))], []).append(f"body.encoder.{name}")
        return [found[n] for n in sorted(found)]

    def spec(self) -> dict[str, Any]:
        """The arguments with which `build_segmenter` rebuilds this network, as plain values."""
        return {
            "encoder": self.encoder,
            "num_classes": self.num_classes,
            "network": self.network,
            "in_channels": self.in_channels,
            "neighbours": self.neighbours,
            "width": self.width,
            **({} if type(self.head) is self._own_head else {"head": describe_head(self.head)}),
        }


def build_segmenter(
    encoder: str,
    num_classes: int,
    *,
    network: str = "unet",
    weights: str | None = "imagenet",
    in_channels: int = 3,
    neighbours: int = 1,
    width: int = 16,
    head: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Segmenter:
    """Builds a segmentation network on a named encoder; the new layers are initialised from `seed` alone.

    Args:
        encoder: any timm architecture with maps at strides 2 (or 4) to 32, such as `resnet34` or
            `tf_efficientnet_lite0`.
        num_classes: K, background included.
        network: one of `NETWORKS`.
        weights: `imagenet` (from the extra `offline`, the hub's cache, or a download), the path of a file, or `random`,
            which you have to ask for; None if a checkpoint is loaded next.
        in_channels: channels of the images; the RGB weights of the first convolution are adapted.
        neighbours: slices on each side that a 2.5D network sees.
        width: scale of the decoder's channels.
        head: see `Segmenter`.
        seed: seed of the decoder's and the head's weights.

    Raises:
        ConfigError: unknown encoder or network, or an encoder that does not return such maps.
        WeightsError: the weights are missing, altered, or belong to another architecture.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Segmenter(
            encoder,
            num_classes,
            network=network,
            in_channels=in_channels,
            neighbours=neighbours,
            width=width,
            head=head,
        )
        if weights is not None:
            maps: nn.Module = model.body.encoder.model
            report = load_pretrained_maps(maps, encoder, weights, in_channels, model.slices)
            model.weights = report.origin
            model.set_input_statistics(report)
    return model


def _without_spread(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Runs before a BatchNorm layer: a single value per channel cannot be normalised by itself."""
    x = inputs[0]
    layer.one_value = layer.training and x.numel() == x.shape[1]  # type: ignore[assignment]
    if layer.one_value:
        layer.training = False


def _after(layer: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
    if layer.one_value:
        layer.training = True
