"""Full fine-tuning that keeps feature maps close to those of the pretrained encoder."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from medtl.errors import ConfigError
from medtl.models.parts import encoder_of
from medtl.strategies.contract.strategy import Strategy, StrategyOptions

MAPS = 4
"""At most this many feature maps are compared, spread over the depth of the encoder."""


class Delta(Strategy):
    """Trains all weights and penalises changes of the encoder's feature maps (DELTA: Li et al. 2019).

    The penalty is weight / 2 times the sum over maps of E ||f(x) - f0(x)||^2 / E ||f0(x)||^2, where f0 is a frozen copy
    of the pretrained encoder and E the mean over the batch. All channels have equal weight: the paper's attention,
    which weighs each channel by how much the loss rises without it, is left out. Each map is measured relative to its
    own size, because sizes differ between networks by orders of magnitude. The price is a second forward pass,
    without a gradient.

    Args:
        model: a `Classifier`, or any network with an `encoder`.
        weight: weight of the penalty.
        common: see `Strategy`.
    """

    def __init__(self, model: nn.Module, *, weight: float = 0.1, **common: Unpack[StrategyOptions]) -> None:
        super().__init__(model, **common)
        self._check("weight", weight, weight >= 0, "at least 0")
        encoder = encoder_of(model)
        if encoder is None:
            raise ConfigError(
                f"Delta compares the feature maps of an encoder, and {type(model).__name__} has no module of that "
                "name. Use build_classifier, or l2_sp, which penalises changes of the weights instead."
            )
        self.weight = weight
        self.pretrained_encoder = copy.deepcopy(encoder).requires_grad_(False).eval()
        self._moved: list[Tensor] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within it, every pass of the encoder with a gradient is repeated by the pretrained one, and compared."""
        encoder = encoder_of(self.model)
        assert encoder is not None
        self._moved = []
        with _caught(encoder) as (maps, inputs):

            def compare(*_: Any) -> None:
                if torch.is_grad_enabled():
                    self._compare(list(maps), list(inputs))
                maps.clear()
                inputs.clear()

            handle = encoder.register_forward_hook(compare)
            try:
                yield
            finally:
                handle.remove()

    def _compare(self, maps: list[Tensor], inputs: list[Tensor]) -> None:
        with torch.no_grad(), _caught(self.pretrained_encoder) as (begin, _):
            self.pretrained_encoder(*inputs)
        moved = [
            (f.float() - f0.float()).square().sum() / f0.float().square().sum().clamp_min(1e-12)
            for f, f0 in zip(maps, begin, strict=True)
        ]
        self._moved.append(torch.stack(moved).sum())

    def penalties(self) -> dict[str, Tensor]:
        """How far the feature maps have moved, a mean over passes."""
        moved, self._moved = self._moved, []
        return {"delta": self.weight / 2 * torch.stack(moved).mean()} if moved else {}

    def train(self, mode: bool = True) -> Delta:
        """Sets the mode; the pretrained encoder stays in eval mode."""
        super().train(mode)
        self.pretrained_encoder.eval()
        return self


@contextmanager
def _caught(encoder: nn.Module) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Within it, collects the feature maps and the inputs of each pass of `encoder`."""
    maps: list[Tensor] = []
    inputs: list[Tensor] = []
    handles = [encoder.register_forward_pre_hook(lambda _, given: inputs.extend(given))]
    for layer in _mapping_layers(encoder):
        handles.append(
            layer.register_forward_hook(
                lambda _, __, made: maps.extend([made] if isinstance(made, Tensor) else made)
            )
        )
    try:
        yield maps, inputs
    finally:
        for handle in handles:
            handle.remove()


def _mapping_layers(encoder: nn.Module) -> list[nn.Module]:
    """The last layer of each stage, by timm's names; the encoder itself if its outputs are the maps."""
    network: Any = getattr(encoder, "network", None)
    names = [info["module"] for info in getattr(network, "feature_info", ())]
    if not names:
        return [encoder]
    number = min(MAPS, len(names))
    chosen = [names[round((n + 1) * len(names) / number) - 1] for n in range(number)]
    return [network.get_submodule(name) for name in chosen]
