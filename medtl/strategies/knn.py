"""Nothing: the training cases are remembered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from medtl.data.tensors.batch import Batch
from medtl.errors import ConfigError, DataError
from medtl.models.classifier import Classifier
from medtl.models.neighbours import NeighbourHead
from medtl.strategies.contract.strategy import Strategy


class KNN(Strategy):
    """Trains nothing: the k nearest training cases vote, by cosine of the frozen encoder's features.

    The model that is saved holds one vector of each training case (without augmentation; of a volume the mean over its
    slices): it is data of patients as the scans are.

    Args:
        model: a `Classifier` without a dense layer before its head.
        k: how many vote; `knn:5` says it in the name.
    """

    on_features: ClassVar[bool] = True
    trains: ClassVar[bool] = False
    argument: ClassVar[str | None] = "k"
    tasks: ClassVar[frozenset[str]] = frozenset({"binary", "multiclass"})
    why_not: ClassVar[str] = "whole cases are compared, each with one label"

    def __init__(self, model: nn.Module, *, k: int = 5) -> None:
        if isinstance(model, Classifier) and not model.bottleneck:
            model.set_neighbours(k)  # first: what the base class finds is the model's final shape
        super().__init__(model)
        if not isinstance(getattr(model, "head", None), NeighbourHead):
            raise ConfigError(
                "KNN compares what the encoder of a Classifier gives, and has no use for a layer before the head. "
                "Leave --head out."
            )
        self.k = k
        self.freeze(lambda *_: False)

    @torch.no_grad()
    def on_fit_start(self, loaders: Mapping[str, Iterable[Batch]]) -> None:
        """Remembers the source's cases."""
        model = self.model.eval()
        assert isinstance(model, Classifier)
        assert isinstance(model.head, NeighbourHead)
        features, labels = [], []
        for batch in loaders["source"]:
            if batch.label is None:
                raise DataError("KNN needs labels in the source batch, and it has none.")
            image = batch.image.to(model.encoder.mean.device)
            features.append(model.represent(model.encode(image) if image.ndim > 3 else image))
            labels.append(batch.label)
        model.head.remember(torch.cat(features), torch.cat(labels))

    def plan(self, lr: float) -> list[dict[str, Any]]:
        """As `Strategy.plan`, with a row for what is remembered."""
        row = {"part": f"the {self.k} nearest cases", "layers": 0, "parameters": 0, "trained": "remembered"}
        return [*super().plan(lr), {**row, "learning rate": "-", "BatchNorm": "-"}]
