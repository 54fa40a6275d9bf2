"""Adapts any network: returns its logits and the features that they are computed from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from medtl.errors import ConfigError, near_matches
from medtl.models.output import Output

_Conv = nn.modules.conv._ConvNd


class WithFeatures(nn.Module):
    """Your own network, wrapped to return `Output(logits, features)`; made by `with_features`.

    Args:
        module: the network.
        layer: name of the layer whose input or output is the features.
        before: take the layer's input, not its output.

    Attributes:
        num_features: F, the width of the features.
    """

    def __init__(self, module: nn.Module, layer: str, num_features: int, *, before: bool) -> None:
        super().__init__()
        self.module = module
        self.layer = layer
        self.num_features = num_features
        self._before = before

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute; the head is a layer of the network."""
        if name == "head":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def head(self) -> nn.Module:
        """The layer that maps the features to logits.

        Raises:
            ConfigError: it is unknown, because the features are the output of a named layer.
        """
        if not self._before:
            raise ConfigError(
                f"The features are the output of layer {self.layer!r}; which layers map them to logits is not known. "
                "Leave layer out of with_features: the features are then the input of the last layer, the head."
            )
        return self.module.get_submodule(self.layer)

    @head.setter
    def head(self, head: nn.Module) -> None:
        self.module.set_submodule(self.layer, head)

    def forward(self, image: Tensor) -> Output:
        """Runs the network.

        If the logits are maps (B, K, *S), the features are maps too, (B, F, *s). Otherwise spatial axes of the features
        are averaged, which gives (B, F).

        Raises:
            ConfigError: the layer did not run exactly once, has another width, or the network gives no logits.
        """
        caught: list[Tensor] = []
        target = self.module.get_submodule(self.layer)
        if self._before:
            handle = target.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
        else:
            handle = target.register_forward_hook(lambda _, __, output: caught.append(output))
        try:
            logits = self.module(image)
        finally:
            handle.remove()
        if isinstance(logits, Mapping) and "out" in logits:  # torchvision's segmentation networks
            logits = logits["out"]
        if not isinstance(logits, Tensor) or logits.ndim not in (2, image.ndim):
            what = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ConfigError(
                f"The network gives {what} for images {tuple(image.shape)}. Expected: logits (B, K), or maps of logits "
                "(B, K, *S). Switch off further outputs (deep supervision, auxiliary heads)."
            )
        if len(caught) != 1:
            raise ConfigError(
                f"Layer {self.layer!r} ran {len(caught)} times in one forward pass, expected once. "
                "Name another layer in with_features."
            )
        features = caught[0]
        if features.ndim < 2 or features.shape[1] != self.num_features:
            raise ConfigError(
                f"The features of layer {self.layer!r} are {tuple(features.shape)}; expected {self.num_features} along "
                "the second axis. Name another layer, or its width, in with_features."
            )
        if logits.ndim == 2 and features.ndim > 2:
            features = features.flatten(2).mean(dim=2)
        return Output(logits, features)


def with_features(
    module: nn.Module, *, layer: str | None = None, num_features: int | None = None
) -> WithFeatures:
    """Wraps a network so that adaptation methods can use it.

    Args:
        module: any network that maps a batch of images to logits (B, K), or to maps of logits (B, K, *S).
        layer: the name of the layer whose output is the features, as in `module.named_modules()`. By default,
            the features are the input of the last layer with weights (linear or convolution, in the order of
            `named_modules`), which fits the networks of MONAI and torchvision. In a segmentation network these features
            have full resolution; aligning a deeper layer is cheaper and more stable, but you have to name it.
        num_features: F; by default read from the layer (`out_features`, `out_channels`, `num_features`).

    Raises:
        ConfigError: there is no such layer, or its width is not known.

    Example:
        >>> from torchvision.models import resnet18
        >>> with_features(resnet18()).num_features
        512
    """
    modules = dict(module.named_modules())
    if layer is None:
        weighted = [(name, m) for name, m in modules.items() if isinstance(m, (nn.Linear, _Conv))]
        if not weighted:
            raise ConfigError(
                "The network has neither linear layers nor convolutions whose input could serve as its features. "
                "Name the layer: with_features(module, layer=..., num_features=...)."
            )
        name, last = weighted[-1]
        inputs = last.in_features if isinstance(last, nn.Linear) else last.in_channels
        return WithFeatures(module, name, num_features or inputs, before=True)
    if layer not in modules or not layer:
        raise ConfigError(
            f"The network has no layer {layer!r}. {near_matches(layer, [m for m in modules if m])}"
        )
    if num_features is None:
        for attribute in ("out_features", "out_channels", "num_features"):
            if isinstance(width := getattr(modules[layer], attribute, None), int):
                num_features = width
                break
        else:
            raise ConfigError(
                f"The output width of layer {layer!r} is not known. Give it: with_features(..., num_features=F)."
            )
    return WithFeatures(module, layer, num_features, before=False)
