"""Classifies images, and volumes by their slices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from medtl.errors import ConfigError, DataError
from medtl.models.encoder import Encoder, build_encoder
from medtl.models.heads import build_head, describe_head
from medtl.models.neighbours import NeighbourHead
from medtl.models.output import Output

Pooling = Literal["attention", "mean", "max"]


class AttentionPool(nn.Module):
    """Gated attention over the slices of a volume (Ilse et al. 2018, equation 9).

    Slices (B, D, F) are averaged with weights softmax(w . (tanh(V h) * sigmoid(U h))). The last layer starts
    at zero, so training starts from the plain mean.
    """

    def __init__(self, num_features: int, hidden: int = 128) -> None:
        super().__init__()
        self.value = nn.Linear(num_features, hidden)
        self.gate = nn.Linear(num_features, hidden)
        self.score = nn.Linear(hidden, 1)
        nn.init.zeros_(self.score.weight)

    def forward(self, features: Tensor) -> Tensor:
        """Pools (B, D, F) to (B, F)."""
        scores = self.score(torch.tanh(self.value(features)) * torch.sigmoid(self.gate(features)))
        return (torch.softmax(scores, dim=1) * features).sum(dim=1)


class Classifier(nn.Module):
    """An encoder with a linear head; a volume is classified by encoding its slices and pooling them.

    The input is images, volumes, or features that the encoder computed from them, told apart by their dimensions: the
    head trains on stored features as it does on scans.

    Args:
        encoder: returns F features per image.
        num_classes: K logits; a binary task has two.
        bottleneck: width of a Linear-ReLU layer between features and head, or None for none.
        dropout: probability of dropping a feature before the head.
        pooling: how the slices of a volume become one vector; unused for images.
        head: the description of another head than the linear one, as `spec` gives it.

    Attributes:
        task: "binary" or "multiclass".
        num_features: F, the width of the head's input.
        head: the layer that maps features to logits.

    Raises:
        ConfigError: fewer than 2 classes, or an unknown pooling.
    """

    def __init__(
        self,
        encoder: Encoder,
        num_classes: int,
        *,
        bottleneck: int | None = None,
        dropout: float = 0.0,
        pooling: Pooling = "attention",
        head: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ConfigError(
                f"A classifier needs at least 2 classes, got {num_classes}; a binary task has 2 logits."
            )
        if pooling not in get_args(Pooling):
            raise ConfigError(f"Unknown pooling {pooling!r}. There are: {', '.join(get_args(Pooling))}.")
        self.encoder = encoder
        self.pooling = pooling
        self.pool = AttentionPool(encoder.num_features) if pooling == "attention" else None
        width = bottleneck or encoder.num_features
        self.neck = (
            nn.Sequential(nn.Linear(encoder.num_features, width), nn.ReLU()) if bottleneck else nn.Identity()
        )
        self.dropout = nn.Dropout(dropout)
        self.head: nn.Module = nn.Linear(width, num_classes) if head is None else build_head(head)
        self.num_features = width
        self.num_classes = num_classes
        self.task = "binary" if num_classes == 2 else "multiclass"
        self.bottleneck = bottleneck

    def set_neighbours(self, k: int) -> None:
        """Replaces the head by a `NeighbourHead`; slices of a volume are then averaged."""
        self.head = NeighbourHead(self.num_features, self.num_classes, k)
        self.pool, self.pooling = None, "mean"

    def forward(self, image: Tensor) -> Output:
        """Classifies images (B, C, H, W) or volumes (B, C, D, H, W) with values in [0, 1].

        Also takes the output of `encode`, (B, F) or (B, D, F).
        """
        return self.classify(image if image.ndim < 4 else self.encode(image))

    def encode(self, image: Tensor) -> Tensor:
        """Features of images (B, F), or of volumes slice by slice (B, D, F); constant if the encoder is frozen."""
        return encode_slices(self.encoder, image)

    def classify(self, features: Tensor) -> Output:
        """Logits from the output of `encode`.

        Raises:
            DataError: as `represent`.
        """
        features = self.represent(features)
        return Output(self.head(self.dropout(features)), features)

    def represent(self, features: Tensor) -> Tensor:
        """The head's input, (B, `num_features`), from the output of `encode`.

        Raises:
            DataError: the features have another width, so they come from another encoder.
        """
        if features.shape[-1] != self.encoder.num_features:
            raise DataError(
                f"Encoder {self.encoder.name} gives {self.encoder.num_features} features, got {tuple(features.shape)}: "
                "these come from another encoder. Extract them with this classifier's encoder."
            )
        pooled: Tensor = self.neck(self._pool(features) if features.ndim == 3 else features)
        return pooled

    def _pool(self, features: Tensor) -> Tensor:
        if self.pool is not None:
            pooled: Tensor = self.pool(features)
            return pooled
        return features.mean(dim=1) if self.pooling == "mean" else features.amax(dim=1)

    def spec(self) -> dict[str, Any]:
        """The arguments with which `build_classifier` rebuilds this network, as plain values."""
        plain = type(self.head) is nn.Linear and self.head.weight.shape == (
            self.num_classes,
            self.num_features,
        )
        return {
            **{"encoder" if k == "name" else k: v for k, v in self.encoder.spec().items()},
            "num_classes": self.num_classes,
            "bottleneck": self.bottleneck,
            "dropout": self.dropout.p,
            "pooling": self.pooling,
            **({} if plain else {"head": describe_head(self.head)}),
        }


def encode_slices(encoder: nn.Module, image: Tensor) -> Tensor:
    """Applies an image encoder to images (B, C, H, W), or to each slice of volumes (B, C, D, H, W).

    Returns:
        (B, F), or (B, D, F).
    """
    if image.ndim == 4:
        features: Tensor = encoder(image)
        return features
    slices = image.transpose(1, 2)
    return encoder(slices.flatten(0, 1)).unflatten(0, slices.shape[:2])  # type: ignore[no-any-return]


def build_classifier(
    encoder: str,
    num_classes: int,
    *,
    weights: str | None = "imagenet",
    in_channels: int = 3,
    channel_rule: str = "sum",
    image_size: int | None = None,
    bottleneck: int | None = None,
    dropout: float = 0.0,
    pooling: Pooling = "attention",
    head: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Classifier:
    """Builds a classifier on a named encoder; the new layers are initialised from `seed` alone.

    Args:
        encoder: timm's name.
        num_classes: K, see `Classifier`.
        weights: see `build_encoder`.
        in_channels: channels of the images.
        channel_rule: how the first convolution is adapted from RGB, see `build_encoder`.
        image_size: side of the images, see `build_encoder`.
        bottleneck: see `Classifier`.
        dropout: see `Classifier`.
        pooling: see `Classifier`.
        head: see `Classifier`.
        seed: of the new layers.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Classifier(
            build_encoder(
                encoder,
                weights=weights,
                in_channels=in_channels,
                channel_rule=channel_rule,
                image_size=image_size,
            ),
            num_classes,
            bottleneck=bottleneck,
            dropout=dropout,
            pooling=pooling,
            head=head,
        )
