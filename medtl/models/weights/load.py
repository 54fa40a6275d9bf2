"""Loads pretrained weights into a network: ImageNet weights (`hub`), or those of a file.

Weights are never random without notice: a name that cannot be resolved raises `WeightsError`, which says how to
fetch the file on another machine and where to put it. Reading a file never executes code in it: safetensors, or
`torch.load(weights_only=True)`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import timm
import torch
from timm.models.vgg import VGG
from torch import Tensor, nn

from medtl.errors import ConfigError, WeightsError, near_matches
from medtl.models.weights.hub import PACKAGED_ENCODER, check_packaged, hub_state, packaged_file
from medtl.models.weights.keys import input_statistics, own_names
from medtl.models.weights.torchvision import check_torchvision

logger = logging.getLogger(__name__)

CHANNEL_RULES = ("sum", "mean")

_WRAPPERS = ("state_dict", "model_state_dict", "model")


def check_encoder_name(name: str) -> None:
    """Raises `ConfigError`, naming near matches, unless timm knows the architecture `name`."""
    if not timm.is_model(name):
        raise ConfigError(
            f"There is no encoder {name!r}. {near_matches(name, timm.list_models())[:300]} "
            "`medtl list encoders PATTERN` lists them."
        )


def make_network(name: str, in_channels: int = 3, image_size: int | None = None) -> nn.Module:
    """Builds the timm network without its head (and without VGG's wide layers), with random weights."""
    fixed = getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False)
    options: dict[str, Any] = {"img_size": image_size} if image_size is not None and fixed else {}
    if timm.models.is_model_in_modules(name, ["vgg"]):
        options["mlp_ratio"] = 1 / 4096  # its wide layers are 120 million numbers to draw and then to drop
    network: nn.Module = timm.create_model(name, num_classes=0, in_chans=in_channels, **options)
    if isinstance(network, VGG):
        network.pre_logits = nn.Identity()  # type: ignore[assignment]
    return network


@dataclass(frozen=True)
class KeyReport:
    """How the tensors of a weights file matched those of an encoder.

    Attributes:
        origin: where the weights came from, in a few words without a path.
        matched: number of encoder tensors that got a value: all of them, or loading fails.
        ignored: tensors of the file that the encoder does not have, such as those of a head.
        statistics: whose input mean and standard deviation apply, if not timm's.
        mean: mean of each channel, or one for all; empty for timm's.
        std: standard deviation, likewise.
    """

    origin: str
    matched: int = 0
    ignored: tuple[str, ...] = ()
    statistics: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def text(self) -> str:
        """One line for a log."""
        rest = (
            f"; {len(self.ignored)} of the file were not used (first: {self.ignored[0]})"
            if self.ignored
            else ""
        )
        inputs = f" Inputs are normalised as for {self.statistics}." if self.statistics else ""
        return f"{self.origin}: all {self.matched} tensors of the encoder matched{rest}.{inputs}"


def load_pretrained(
    network: nn.Module, name: str, weights: str, in_channels: int, channel_rule: str = "sum"
) -> KeyReport:
    """Loads `weights` into a timm network without its head.

    Args:
        network: the timm network, made with `num_classes=0` and `in_chans=in_channels`.
        name: its timm name.
        weights: `imagenet`, `random` (noted in the log), or the path of a .safetensors, .pth or .pt file.
        in_channels: channels of the network's input.
        channel_rule: how the first convolution's RGB kernels are adapted to C other channels. `sum`: equal channels
            give the response that a grey image gave in RGB (1 channel: the kernels are summed; more: they are repeated,
            scaled by 3/C and shifted equally to keep the sum). `mean`: each channel gets the mean of the three, so that
            the response grows with C; one channel gives a third of it.

    Returns:
        Where the weights came from, and which tensors matched.

    Raises:
        ConfigError: the rule is unknown.
        WeightsError: the weights are missing, altered, or belong to another architecture.
    """
    if channel_rule not in CHANNEL_RULES:
        raise ConfigError(f"Unknown channel_rule {channel_rule!r}. There are: {', '.join(CHANNEL_RULES)}.")
    if weights == "random":
        logger.warning("Encoder %s starts from random weights, as asked.", name)
        return KeyReport("random")
    if weights != "imagenet":
        path = Path(weights)
        report = _load_state(network, read_state(path), name, f"file {path.name}", in_channels, channel_rule)
        logger.info(
            "Weights of %s, %s", name, replace(report, origin="your file").text()
        )  # names may name people
        return report
    if name == PACKAGED_ENCODER and (packaged := packaged_file()) is not None:
        check_packaged(packaged)
        # The package keeps its author's layer names; their order and shapes are timm's.
        state = dict(zip(timm.create_model(name).state_dict(), read_state(packaged).values(), strict=True))
        return _load_state(network, state, name, "imagenet (offline package)", in_channels, channel_rule)
    state, origin = hub_state(name)
    return _load_state(network, state, name, origin, in_channels, channel_rule)


def load_pretrained_maps(
    features: nn.Module, name: str, weights: str, in_channels: int, slices: int = 1
) -> KeyReport:
    """Loads `weights` into the features-only variant of a timm network, through the whole network and its checks.

    timm renames layers there (`stages.0` becomes `stages_0`, with a prefix `model.` or `body.`) and leaves out those
    behind the last map. Every remaining tensor must get a pretrained value.

    Args:
        features: made with `features_only=True` and `in_chans=in_channels * slices`.
        name: its timm name.
        weights: as in `load_pretrained`.
        in_channels: channels of one slice.
        slices: number of slices stacked as channels. The weights of the first convolution are repeated and divided by
            this number, so that equal slices give the response of a single slice.

    Returns:
        As `load_pretrained`.

    Raises:
        WeightsError: as `load_pretrained`; or the whole network lacks a tensor.
    """
    if weights == "random":
        return load_pretrained(features, name, weights, in_channels)
    whole = make_network(name, in_channels)
    report = load_pretrained(whole, name, weights, in_channels)
    values = {map_name(key): value for key, value in whole.state_dict().items()}
    first = {map_name(f"{conv}.weight") for conv in _first_convolutions(whole)}
    state, missing = {}, []
    for key, own in features.state_dict().items():
        plain = map_name(key)
        value = values.get(plain)
        if value is not None and plain in first and slices > 1:
            value = value.repeat(1, slices, 1, 1) / slices
        if value is None or value.shape != own.shape:
            missing.append(key)
        else:
            state[key] = value
    if missing:
        raise WeightsError(
            f"{len(missing)} tensors of encoder {name} (first: {missing[0]}) would not get pretrained weights when it "
            f"gives feature maps with {in_channels * slices} input channels. Choose another encoder, for example "
            f"{PACKAGED_ENCODER} or resnet34, or ask for --weights random."
        )
    features.load_state_dict(state)
    return report


def map_name(name: str) -> str:
    """The part of a tensor's name that a network and its features-only variant have in common."""
    return name.removeprefix("model.").removeprefix("body.").replace(".", "_")


def channel_values(values: Sequence[float], in_channels: int) -> Tensor:
    """(1, C, 1, 1): per-channel mean or standard deviation; unless C is 3, every channel gets the mean of RGB's."""
    value = torch.tensor(values, dtype=torch.float32)
    value = value.expand(3) if len(value) == 1 else value
    value = value if len(value) == in_channels else value.mean().repeat(in_channels)
    return value.view(1, -1, 1, 1)


def read_state(path: Path) -> dict[str, Tensor]:
    """Reads a state dict from safetensors, or from a PyTorch file without executing pickled code.

    Raises:
        WeightsError: there is no such file, or it is not a plain dictionary of tensors.
    """
    if not path.is_file():
        raise WeightsError(
            f"There is no weights file {path.name!r} at the given place. Expected: a .safetensors, .pth or .pt file. "
            "Check --weights, or leave it out for ImageNet weights."
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise WeightsError(
            f"{path.name} is not a readable weights file ({type(error).__name__}). Expected: safetensors, or a "
            "PyTorch file that holds tensors only. Save it again with safetensors.torch.save_file."
        ) from error
    except (
        Exception
    ) as error:  # safetensors raises its own type, which it does not export under a stable name
        if type(error).__name__ != "SafetensorError":
            raise
        raise WeightsError(
            f"{path.name} is not a valid safetensors file: it is cut short or altered."
        ) from error
    for key in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise WeightsError(f"{path.name} holds no state dict. Expected: layer names mapped to tensors.")
    return dict(loaded)


def _load_state(
    network: nn.Module,
    state: Mapping[str, Tensor],
    name: str,
    origin: str,
    in_channels: int,
    channel_rule: str,
) -> KeyReport:
    """Loads the encoder's tensors from `state`; each must be there, with its shape."""
    own = network.state_dict()
    statistics = input_statistics(state) or ("", (), ())
    given = own_names(state, own, [child for child, _ in network.named_children()])
    if statistics[0] == "torchvision":
        check_torchvision(name, given, origin)
    state = dict(given)
    for conv in _first_convolutions(network):
        key = f"{conv}.weight"
        if key not in state or key not in own or state[key].ndim != 4:
            continue
        kernel = state[key]
        if kernel.shape[1] == 3 != in_channels:
            state[key] = _other_channels(kernel, in_channels, channel_rule)
        elif kernel.shape[1] == 1 < in_channels and own[key].shape[1] == in_channels:
            state[key] = kernel.repeat(1, in_channels, 1, 1) / in_channels  # weights of a grey-scale encoder
    config: Any = network.pretrained_cfg
    if config.get("fixed_input_size"):
        fit = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
        if fit is not None:  # resamples position embeddings
            state = dict(fit(state, network))
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    other = [k for k in own if k in state and own[k].shape != state[k].shape]
    matched = sum(k in state for k in own) - len(other)
    if missing or other:
        raise WeightsError(
            f"The weights in {origin} are not those of encoder {name}: of its {len(own)} tensors "
            f"{matched} match, {len(missing)} are missing (first: "
            f"{(missing or ['none'])[0]}) and {len(other)} have another shape (first: {(other or ['none'])[0]}). Name "
            "the encoder that they belong to with --encoder."
        )
    network.load_state_dict({k: state[k] for k in own if k in state}, strict=False)
    return KeyReport(origin, matched, tuple(k for k in given if k not in own), *statistics)


def _other_channels(kernel: Tensor, in_channels: int, rule: str) -> Tensor:
    """Adapts RGB kernels (F, 3, h, w) to other channels; see `load_pretrained`."""
    if rule == "mean":
        return kernel.mean(dim=1, keepdim=True).repeat(1, in_channels, 1, 1)
    total = kernel.sum(dim=1, keepdim=True)
    if in_channels == 1:
        return total
    # Repeated, because contrasts between channels come from contrasts between the three; then shifted to keep the sum.
    repeated = kernel[:, [c % 3 for c in range(in_channels)]] * (3 / in_channels)
    return repeated + (total - repeated.sum(dim=1, keepdim=True)) / in_channels


def _first_convolutions(network: nn.Module) -> list[str]:
    first = network.pretrained_cfg["first_conv"]  # type: ignore[index]
    return [first] if isinstance(first, str) else list(first or ())
