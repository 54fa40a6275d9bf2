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
from contextlib import contextmanager, suppress
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
AT_ONCE = 1 << 22
"""A target of at most this many values of its images goes through the network as one batch."""


@torch.no_grad()
def reestimate_statistics(model: nn.Module, batches: Iterable[Batch]) -> int:
    """Sets the running statistics of every BatchNorm layer to those of all cases together (AdaBN: Li et al. 2018).

    Mean and variance are pooled over all cases, whatever the size of a batch and the order of cases; the mean of batch
    variances would lose the variance between batches. What a layer sees depends on the layers before it, so they are
    set one after the other, in the order in which they run. A target that fits into one batch takes one pass; a larger
    one takes a pass for each layer, which ends at that layer. Setting all layers in every pass would take fewer, but
    small errors of early layers grow from layer to layer and do not settle. What lies beyond a scan (`Batch.outside`)
    does not count. All modes are restored, and dropout stays off.

    Args:
        model: any network.
        batches: the cases.

    Returns:
        The number of images or volumes used; if it is 0, the statistics are unchanged.
    """
    layers = batch_norms(model)
    if not layers:
        return 0
    device = next(model.parameters()).device
    if iter(batches) is batches:  # could be passed only once
        batches = list(batches)
    with modes_kept(model):
        model.eval()
        if (whole := _together(batches)) is not None:
            _set_in_one_pass(model, layers, whole.to(device))
            return len(whole)
        return _set_one_by_one(model, layers, batches, device)


def _together(batches: Iterable[Batch]) -> Batch | None:
    """All cases as one batch, or None if there are none, too many, or some of another size."""
    images: list[Tensor] = []
    outside: list[Tensor | None] = []
    for batch in batches:
        images.append(batch.image)
        outside.append(batch.outside)
        if images[0].shape[1:] != batch.image.shape[1:] or sum(i.numel() for i in images) > AT_ONCE:
            return None
    if not images:
        return None
    margins = [margin for margin in outside if margin is not None]
    return Batch(torch.cat(images), outside=torch.cat(margins) if len(margins) == len(images) else None)


def _set_in_one_pass(model: nn.Module, layers: list[_BatchNorm], whole: Batch) -> None:
    """Sets each layer to the statistics of what arrives at it, just before it uses them."""

    def set_now(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        tally = _Tally(margin)
        tally(layer, inputs)
        assert isinstance(layer, _BatchNorm)
        tally.write(layer)

    margin = _Margin(whole.outside)
    handles = [layer.register_forward_pre_hook(set_now) for layer in layers]
    try:
        model(whole.image)
    finally:
        for handle in handles:
            handle.remove()


class _Enough(Exception):  # noqa: N818
    """Ends a pass at the layer whose input was wanted."""


def _set_one_by_one(
    model: nn.Module, layers: list[_BatchNorm], batches: Iterable[Batch], device: torch.device
) -> int:
    seen = 0
    for layer in _in_order(model, layers, batches, device):
        margin = _Margin()
        tally = _Tally(margin)

        def enough(layer: nn.Module, inputs: tuple[Tensor, ...], tally: _Tally = tally) -> None:
            tally(layer, inputs)
            raise _Enough

        handle, seen = layer.register_forward_pre_hook(enough), 0
        try:
            for batch in batches:
                given = batch.to(device)
                margin.outside, seen = given.outside, seen + len(given)
                with suppress(_Enough):
                    model(given.image)
        finally:
            handle.remove()
        tally.write(layer)
    return seen


def _in_order(
    model: nn.Module, layers: list[_BatchNorm], batches: Iterable[Batch], device: torch.device
) -> list[_BatchNorm]:
    """The layers in the order in which they run; none if there are no cases."""
    order: dict[nn.Module, None] = {}
    handles = [layer.register_forward_pre_hook(lambda layer, _: order.setdefault(layer)) for layer in layers]
    try:
        for batch in batches:
            model(batch.image.to(device))
            break
    finally:
        for handle in handles:
            handle.remove()
    return [layer for layer in order if isinstance(layer, _BatchNorm)]


class _Margin:
    """What of the present batch lies beyond the scan."""

    def __init__(self, outside: Tensor | None = None) -> None:
        self.outside = outside

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

    def write(self, layer: _BatchNorm) -> None:
        """Sets the layer's statistics, the variance with Bessel's correction as torch has it."""
        if self.count < 2 or layer.running_mean is None or layer.running_var is None:
            return
        layer.running_mean.copy_(self.mean)
        layer.running_var.copy_(self.squares / (self.count - 1))
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked += 1


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
