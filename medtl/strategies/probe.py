"""The head alone, on features that are computed once."""

from __future__ import annotations

from typing import Any, ClassVar, Unpack

from torch import nn

from medtl.errors import ConfigError
from medtl.strategies.contract.stages import Part
from medtl.strategies.contract.strategy import Strategy, StrategyOptions


class Probe(Strategy):
    """Trains only the head, on features of the frozen encoder that are computed once: seconds instead of minutes.

    Args:
        model: a `Classifier`.
        views: number of stored views per training case: the first is the plain image, the others are augmented, and
            the epochs use them in turn. With `--augment none` there is one.
        lr_factor: multiplies the learning rate: the head starts from scratch.
        common: see `Strategy`; `cutmix` does not apply to features.
    """

    on_features: ClassVar[bool] = True
    alone: ClassVar[str] = (
        "its features are computed once, from the plain images; take head, which sees every image anew"
    )
    tasks: ClassVar[frozenset[str]] = frozenset({"binary", "multiclass", "multilabel"})
    why_not: ClassVar[str] = (
        "its stored features are one vector per slice, and a decoder needs maps; take head"
    )

    def __init__(
        self, model: nn.Module, *, views: int = 4, lr_factor: float = 10.0, **common: Unpack[StrategyOptions]
    ) -> None:
        super().__init__(model, **common)
        self._check("lr_factor", lr_factor, lr_factor > 0, "above 0")
        self.lr_factor = lr_factor
        self._check("views", views, views >= 1, "at least 1")
        if self.cutmix:
            raise ConfigError(
                "Probe: cutmix pastes boxes of images, and the probe sees features. Use mixup, or the strategy head."
            )
        self.views = views
        self.freeze(lambda part, _: not part.pretrained)

    def group(self, part: Part, lr: float) -> dict[str, Any]:
        """Raises the rate by `lr_factor`."""
        return {"lr": lr * self.lr_factor}
