"""Makes any network fit: its logits, and the features that they are computed from."""

from __future__ import annotations

from torch import Tensor, nn

from medtl.errors import ConfigError, near_matches
from medtl.models.output import Output


class WithFeatures(nn.Module):
    """A user's own network that returns `Output(logits, features)`; made by `with_features`.

    Attributes:
        num_features: F, the width of the features.
    """

    def __init__(self, module: nn.Module, layer: str, num_features: int, *, before: bool) -> None:
        super().__init__()
        self.module = module
        self.layer = layer
        self.num_features = num_features
        self._before = before

    def forward(self, image: Tensor) -> Output:
        """Runs the network; spatial axes of the features are averaged, so that they are (B, F)."""
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
        if len(caught) != 1:
            raise ConfigError(
                f"Layer {self.layer!r} ran {len(caught)} times in one forward pass, expected once. "
                "Name another layer in with_features."
            )
        features = caught[0]
        return Output(logits, features.flatten(2).mean(dim=2) if features.ndim > 2 else features)


def with_features(
    module: nn.Module, *, layer: str | None = None, num_features: int | None = None
) -> WithFeatures:
    """Wraps a network so that an adapter can use it.

    Args:
        module: any network that maps a batch of images to logits (B, K).
        layer: the name of the layer whose output is the features, as in `module.named_modules()`. Without
            it, the features are the input of the last `nn.Linear`.
        num_features: F; read off the layer where it says so (`out_features`, `out_channels`, `num_features`).

    Raises:
        ConfigError: no such layer, or its width is not known.

    Example:
        >>> from torchvision.models import resnet18
        >>> with_features(resnet18()).num_features
        512
    """
    modules = dict(module.named_modules())
    if layer is None:
        linears = [(name, m) for name, m in modules.items() if isinstance(m, nn.Linear)]
        if not linears:
            raise ConfigError(
                "The network has no nn.Linear whose input could be its features. Name the layer: "
                "with_features(module, layer=..., num_features=...)."
            )
        name, last = linears[-1]
        return WithFeatures(module, name, num_features or last.in_features, before=True)
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
                f"Layer {layer!r} does not say how wide its output is. Give it: with_features(..., num_features=F)."
            )
    return WithFeatures(module, layer, num_features, before=False)
