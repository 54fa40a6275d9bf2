"""Adversarial entropy minimisation for segmentation."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from medtl.adapters.contract.adapter import Adapter, Statistic
from medtl.adapters.contract.adversarial import domain_loss
from medtl.adapters.contract.parts import classes_of, information_map
from medtl.data.tensors.batch import Batch
from medtl.errors import ConfigError


class Discriminator(nn.Module):
    """Five convolutions with 4-wide kernels and leaky ReLUs (Vu et al. 2019, after Radford et al. 2016), 2D or 3D.

    Each layer halves the axes that are more than half as long as the longest one. Shorter axes, and axes of one voxel,
    keep their size, so that thin and small patches survive all five layers. There is no normalisation: it would hide
    the domain shift.

    Args:
        dims: 2 or 3.
        num_classes: channels of the maps, K.
        width: channels behind the first layer; each of the next three doubles them.
    """

    def __init__(self, dims: int, num_classes: int, width: int) -> None:
        super().__init__()
        conv = nn.Conv3d if dims == 3 else nn.Conv2d
        widths = (num_classes, width, 2 * width, 4 * width, 8 * width, 1)
        self.dims = dims
        self.layers = nn.ModuleList(conv(a, b, kernel_size=4) for a, b in pairwise(widths))

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (N, K, *S) to logits (N, 1, *s); a 2D discriminator treats the slices of a volume as images."""
        x = maps.transpose(1, 2).flatten(0, 1) if self.dims == 2 and maps.ndim == 5 else maps
        convolve = F.conv3d if self.dims == 3 else F.conv2d
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, nn.Conv2d | nn.Conv3d)
            sizes = x.shape[2:]
            strides = [2 if size > 1 and 2 * size > max(sizes) else 1 for size in sizes]
            padding = [p for stride in reversed(strides) for p in ((1, 1) if stride == 2 else (1, 2))]
            x = F.leaky_relu(x, 0.2) if number else x
            x = convolve(F.pad(x, padding), layer.weight, layer.bias, stride=strides)
        return x


class AdvEnt(Adapter):
    """Aligns the entropy maps of source and target adversarially, or minimises entropy directly (Vu et al. 2019).

    A discriminator sees the weighted self-information of every class at every voxel (K channels at full size). The
    network learns to make the target's maps look like the source's. With `adversarial_weight=0` and a positive
    `entropy_weight`, the method is the paper's MinEnt (section 3.1); otherwise it is AdvEnt (section 3.2).

    The discriminator is 3D if the model has 3D convolutions; otherwise it judges single slices. For segmentation only.

    Args:
        model: `model(image) -> Output(logits, features)`.
        adversarial_weight: weight of the loss that makes the target's maps look like the source's.
        entropy_weight: weight of the mean entropy of the target's predictions, as a fraction of log K.
        width: channels of the discriminator's first layer.
        head_lr: learning rate of the discriminator, as a multiple of the model's.
        norm, statistics, strategy: see `Adapter`.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"source", "target"})
    tasks: ClassVar[frozenset[str]] = frozenset({"segmentation"})
    why_not: ClassVar[str] = (
        "its discriminator compares maps of uncertainty, and classification gives one prediction per case"
    )

    def __init__(
        self,
        model: nn.Module,
        *,
        adversarial_weight: float = 0.001,
        entropy_weight: float = 0.0,
        width: int = 64,
        head_lr: float = 1.0,
        **common: Unpack[Statistic],
    ) -> None:
        super().__init__(model, **common)
        if adversarial_weight < 0 or entropy_weight < 0 or adversarial_weight + entropy_weight == 0:
            raise ConfigError(
                f"AdvEnt: adversarial_weight is {adversarial_weight} and entropy_weight {entropy_weight}; expected "
                "numbers of at least 0, at least one of them positive: otherwise the target would change nothing."
            )
        self.adversarial_weight = adversarial_weight
        self.entropy_weight = entropy_weight
        self.head_lr = head_lr
        dims = 3 if any(isinstance(m, nn.Conv3d) for m in model.modules()) else 2
        self.discriminator = (
            Discriminator(dims, classes_of(model, "AdvEnt"), width) if adversarial_weight else None
        )

    def forward(self, source: Batch | None, target: Batch | None, *, progress: float) -> dict[str, Tensor]:
        """Computes the source's loss, the target's contribution and the discriminator's own loss."""
        from_source, from_target = self.forward_domains(source, target)
        source_loss = self.supervised_loss(from_source.logits, self._given(source, "source").label)
        if from_target.logits.ndim == 2:
            self._check_task("multiclass")
        with torch.autocast(source_loss.device.type, enabled=False):
            of_source, of_target = information_map(from_source.logits), information_map(from_target.logits)
            entropy = of_target.sum(dim=1).mean()
            loss = source_loss + self.entropy_weight * entropy
            losses = {"source_loss": source_loss.detach(), "entropy": entropy.detach()}
            if self.discriminator is not None:
                # First the model's turn, with a constant discriminator; then the discriminator's, with constant maps.
                frozen = {k: v.detach() for k, v in self.discriminator.named_parameters()}
                passes = F.softplus(-functional_call(self.discriminator, frozen, (of_target,))).mean()
                is_source = self.discriminator(of_source.detach())
                is_target = self.discriminator(of_target.detach())
                domain, accuracy = domain_loss(is_source, is_target)
                loss = loss + self.adversarial_weight * passes + domain
                losses |= {
                    "adversarial_loss": passes.detach(),
                    "domain_loss": domain.detach(),
                    "domain_accuracy": accuracy.detach(),
                }
        return {"loss": loss, **losses}
