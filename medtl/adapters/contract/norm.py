"""Batch normalisation with two domains: one named option for training, and the statistics used at test time.

separate         one forward pass per domain: each is normalised by its own batch; the running statistics
                 follow both in turn (default)
joint            one forward pass over both: the textbook's batch; harmful where class shares differ
domain_specific  one set of running statistics per domain; prediction uses the target's (DSBN without its own
                 affine parameters: Chang et al. 2019)
frozen           the statistics stay those of the pretrained weights
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from medtl.data.tensors.batch import Batch
from medtl.models.parts import batch_norms, modes_kept

Norm = Literal["separate", "joint", "domain_specific", "frozen"]
Statistics = Literal["running", "target"]
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
MOST_PASSES = 8
"""Passes over the target at most: each makes the statistics of one more layer exact, and the others nearly so."""
CLOSE = 1e-3
"""Statistics that change by less than this share of a standard deviation are final."""


@torch.no_grad()
def reestimate_statistics(model: nn.Module, batches: Iterable[Batch]) -> int:
    """Sets the running statistics of every BatchNorm layer to those of all cases together (AdaBN: Li et al. 2018).

    Mean and variance are pooled over all cases, whatever the size of a batch and the order of cases; the mean of batch
    variances would lose the variance between batches. What a layer sees depends on the layers before it, so the cases
    are passed until nothing changes: pass n makes layer n exact. What lies beyond a scan (`Batch.outside`) does not
    count. All modes are restored, and dropout stays off.

    Args:
        model: any network.
        batches: can be iterated several times, such as a list or a loader.

    Returns:
        The number of images or volumes used; if it is 0, the statistics are unchanged.
    """
    layers = batch_norms(model)
    if not layers:
        return 0
    device = next(model.parameters()).device
    seen = 0
    with modes_kept(model):
        model.eval()
        for _ in range(min(len(layers), MOST_PASSES)):
            margin = _Margin()
            tallies = [_Tally(margin) for _ in layers]
            handles = [
                layer.register_forward_pre_hook(tally) for layer, tally in zip(layers, tallies, strict=True)
            ]
            try:
                seen = sum(_passed(model, batch.to(device), margin) for batch in batches)
            finally:
                for handle in handles:
                    handle.remove()
            changes = [tally.write(layer) for layer, tally in zip(layers, tallies, strict=True)]
            if max(changes) < CLOSE:
                break
    return seen


def _passed(model: nn.Module, batch: Batch, margin: _Margin) -> int:
    margin.outside = batch.outside
    model(batch.image)
    return len(batch)


class _Margin:
    """What of the present batch lies beyond the scan."""

    def __init__(self) -> None:
        self.outside: Tensor | None = None

    def inside(self, maps: Tensor) -> Tensor | None:
        """(N, *s) bool: which places of maps (N, F, *s) show the scan, at least in part; None if all count.

        Also of slices as images, (N D, F, h, w). Maps that are no finer or coarser version of the scan count whole.
        """
        if self.outside is None or maps.ndim < 4 or not bool(self.outside.any()):
            return None
        seen = (~self.outside).float()
        if maps.ndim == 4 and seen.ndim == 4:
            seen = seen.flatten(0, 1)
        if len(seen) != len(maps) or seen.ndim != maps.ndim - 1:
            return None
        pooled = F.adaptive_max_pool3d if seen.ndim == 4 else F.adaptive_max_pool2d
        chosen = pooled(seen[:, None], maps.shape[2:])[:, 0] > 0
        return chosen if bool(chosen.any()) else None


class _Tally:
    """Count, mean and sum of squared deviations of each channel that a layer sees (Chan et al. 1979), in float64."""

    def __init__(self, margin: _Margin) -> None:
        self.margin = margin
        self.count = 0
        self.mean: Any = 0.0
        self.squares: Any = 0.0

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        maps = inputs[0].detach()
        inside = self.margin.inside(maps)
        rows = maps.movedim(1, -1)
        rows = rows.flatten(0, -2) if inside is None else rows[inside]
        more = len(rows)
        var, mean = torch.var_mean(rows.float(), dim=0, correction=0)
        mean, step = mean.double(), mean.double() - self.mean
        total = self.count + more
        self.squares = self.squares + var.double() * more + step.square() * (self.count * more / total)
        self.mean = self.mean + step * (more / total)
        self.count = total

    def write(self, layer: _BatchNorm) -> float:
        """Sets the layer's statistics, the variance with Bessel's correction as torch has it.

        Returns:
            The largest change of a mean, in standard deviations, or of a standard deviation, as a share of it.
        """
        if self.count < 2 or layer.running_mean is None or layer.running_var is None:
            return 0.0
        var = (self.squares / (self.count - 1)).to(layer.running_var)
        mean = self.mean.to(layer.running_mean)
        std = (var + layer.eps).sqrt()
        moved = ((mean - layer.running_mean) / std).abs().max()
        widened = ((layer.running_var + layer.eps).sqrt() / std - 1).abs().max()
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(var)
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked += 1
        return float(torch.maximum(moved, widened))


class DomainStatistics(nn.Module):
    """The source's running statistics of all BatchNorm layers, swapped into the model when the source is used.

    The model itself holds the target's, so that it can be saved and used to predict without naming a domain.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.keep(model)

    def keep(self, model: nn.Module) -> None:
        """Stores the model's current statistics as the source's."""
        for number, layer in enumerate(batch_norms(model)):
            for key in _STATISTICS:
                if (value := getattr(layer, key)) is not None:
                    self.register_buffer(f"{key}_{number}", value.detach().clone())

    @contextmanager
    def swapped(self, model: nn.Module) -> Iterator[None]:
        """Within it, `model` reads and updates the source's statistics."""
        self._swap(model)
        try:
            yield
        finally:
            self._swap(model)

    def _swap(self, model: nn.Module) -> None:
        # Swap the tensors themselves; copying into them would break the graph of an earlier pass.
        for number, layer in enumerate(batch_norms(model)):
            for key in _STATISTICS:
                if getattr(layer, key) is not None:
                    mine, other = getattr(layer, key), getattr(self, f"{key}_{number}")
                    setattr(layer, key, other)
                    setattr(self, f"{key}_{number}", mine)
