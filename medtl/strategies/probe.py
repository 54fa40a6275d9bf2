"""What is new, on features that are computed once."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from medtl.errors import ConfigError
from medtl.strategies.contract.stages import Part
from medtl.strategies.contract.strategy import Strategy


class Probe(Strategy):
    """Trains what is new on features of the frozen encoder that are computed once: seconds instead of minutes.

    Args:
        model: a `Classifier`.
        views: views of each training case whose features are kept, the first as it is, the others augmented; the epochs
            take them in turn. With `--augment none` there is one.
        lr_factor: of the learning rate: what is new has everything to learn.
        common: see `Strategy`; `cutmix` is not for features.
    """

    on_features: ClassVar[bool] = True
    tasks: ClassVar[frozenset[str]] = frozenset({"binary", "multiclass", "multilabel"})
    why_not: ClassVar[str] = (
        "the features that are computed once are one vector a slice, and a decoder needs maps; take head"
    )

    def __init__(self, model: nn.Module, *, views: int = 4, lr_factor: float = 10.0, **common: Any) -> None:
        super().__init__(model, **common)
        self._check("lr_factor", lr_factor, lr_factor > 0, "above 0")
        self.lr_factor = lr_factor
        self._check("views", views, views >= 1, "at least 1")
        if self.cutmix:
            raise ConfigError(
                "Probe: cutmix pastes boxes of images, and the probe sees features. Take mixup, or head."
            )
        self.views = views
        self.freeze(lambda part, _: not part.pretrained)

    def group(self, part: Part, lr: float) -> dict[str, Any]:
        """The raised rate."""
        return {"lr": lr * self.lr_factor}
