"""Encoders by name, with their weights: what is ranked, and what scans are encoded with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from medtl.data.tensors.spec import Preprocess
from medtl.encoders.source_head import source_head
from medtl.errors import ConfigError
from medtl.models.encoder import Encoder, build_encoder
from medtl.runs import shareable_path


@dataclass(frozen=True)
class Pretrained:
    """An encoder with its weights.

    Attributes:
        encoder: the network without its head.
        head: the linear head that the weights were trained with, or None if it is not known.
    """

    encoder: Encoder
    head: nn.Module | None = None

    @classmethod
    def build(cls, encoder: str, weights: str, preprocess: Preprocess, *, seed: int = 0) -> Pretrained:
        """Builds an encoder for preprocessed scans; random weights come from `seed` alone.

        Args:
            encoder: timm's name.
            weights: as in `build_encoder`.
            preprocess: preprocessing of the scans, which sets their channels and size.
            seed: seed of random weights.

        Raises:
            ConfigError: timm does not know the encoder, or it does not take images of this size.
            WeightsError: the weights are missing, altered, or belong to another architecture.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = build_encoder(
                encoder,
                weights=weights,
                in_channels=preprocess.channels,
                image_size=preprocess.image_size,
            )
        return cls(network, source_head(network, weights))


def parse_candidates(
    entries: Sequence[str], weights: str = "imagenet", *, smoke: bool = False
) -> dict[str, tuple[str, str]]:
    """Encoder and weights of each candidate, by a name without folders.

    Args:
        entries: `ENCODER`, or `ENCODER=FILE` (or `=random`) for other weights.
        weights: weights of candidates that name none.
        smoke: whether to use random weights throughout, as in a trial.

    Raises:
        ConfigError: there are no candidates, or two have the same name.

    Example:
        >>> parse_candidates(["resnet50", "resnet50=/far/away/own.pth"])
        {'resnet50': ('resnet50', 'imagenet'), 'resnet50=own.pth': ('resnet50', '/far/away/own.pth')}
    """
    pairs: dict[str, tuple[str, str]] = {}
    for entry in entries:
        encoder, equals, own = entry.partition("=")
        name = f"{encoder}={shareable_path(Path(own))}" if equals else encoder
        if name in pairs:
            raise ConfigError(f"Two candidates are called {name}: rename one of the weights files.")
        pairs[name] = (encoder, "random" if smoke else own if equals else weights)
    if not pairs:
        raise ConfigError("There is no candidate: name one encoder or several.")
    return pairs
