"""What is new, on features that are computed once."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from medtl.errors import ConfigError
from medtl.strategies.base import Strategy


class Probe(Strategy):
    """Trains what is new on features of the frozen encoder that are computed once: seconds instead of minutes.

    Args:
        model: a `Classifier`.
        views: augmented views of each training case whose features are kept; the epochs take them in turn.
        common: see `Strategy`; `cutmix` is not for features.
    """

    on_features: ClassVar[bool] = True

    def __init__(self, model: nn.Module, *, views: int = 1, **common: Any) -> None:
        super().__init__(model, **common)
        self._check("views", views, views >= 1, "at least 1")
        if self.cutmix:
            raise ConfigError("Probe: cutmix pastes boxes of images, and the probe sees features. Take mixup, or head.")
        self.views = views
        self.freeze(lambda part, _: not part.pretrained)
