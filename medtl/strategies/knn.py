"""Nearest neighbours: no training, the training cases are stored."""

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
    """Trains nothing: the k nearest training cases vote, by cosine similarity of the frozen encoder's features.

    The saved model holds one feature vector per training case (without augmentation; for a volume, the mean over its
    slices). These vectors are patient data, just as the scans are.

    Args:
        model: a `Classifier` without a dense layer before its head.
        k: number of neighbours that vote; `knn:5` sets it in the name.
    """

    on_features: ClassVar[bool] = True
    trains: ClassVar[bool] = False
    alone: ClassVar[str] = "it trains nothing, so nothing could be adapted"
    argument: ClassVar[str | None] = "k"
    tasks: ClassVar[frozenset[str]] = frozenset({"binary", "multiclass"})
    why_not: ClassVar[str] = "it compares whole cases, each with one label"

    def __init__(self, model: nn.Module, *, k: int = 5) -> None:
        if isinstance(model, Classifier) and not model.bottleneck:
            model.set_neighbours(k)  # before super(): the base class must see the model's final shape
        super().__init__(model)
        if not isinstance(getattr(model, "head", None), NeighbourHead):
            raise ConfigError(
                "KNN compares the encoder's features of a Classifier and has no use for a layer before the head. "
                "Leave --head out."
            )
        self.k = k
        self.freeze(lambda *_: False)

    @torch.no_grad()
    def on_fit_start(
        self, loaders: Mapping[str, Iterable[Batch]], criterion: nn.Module | None = None
    ) -> None:
        """Stores the features and labels of the source's cases."""
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
        """As `Strategy.plan`, with a row for the stored cases."""
        row = {"part": f"the {self.k} nearest cases", "layers": 0, "parameters": 0, "trained": "remembered"}
        return [*super().plan(lr), {**row, "learning rate": "-", "BatchNorm": "-"}]
