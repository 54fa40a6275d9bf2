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
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from medtl.data.tensors.batch import Batch

Norm = Literal["separate", "joint", "domain_specific", "frozen"]
Statistics = Literal["running", "target"]
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The layers of `model` that keep running batch statistics (1D, 2D and 3D)."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Restores the train or eval mode of every module on exit."""
    modes = {m: m.training for m in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@torch.no_grad()
def reestimate_statistics(model: nn.Module, batches: Iterable[Batch]) -> int:
    """Sets the running statistics to the average over `batches` (AdaBN: Li et al. 2018).

    Only the BatchNorm layers are in training mode meanwhile: dropout stays off, and all modes are restored.

    Returns:
        The number of images or volumes used; if it is 0, the statistics are unchanged. A batch of one joins the next
        batch, and is left out if there is none, because layers without spatial axes cannot normalise it.
    """
    layers = batch_norms(model)
    if not layers:
        return 0
    momenta = [layer.momentum for layer in layers]
    device = next(model.parameters()).device
    seen = 0
    with modes_kept(model):
        model.eval()
        for layer in layers:
            layer.train()
        try:
            for image in _none_alone(batch.image for batch in batches):
                seen += len(image)
                for layer in layers:  # the average over cases: the first batch replaces the old statistics
                    layer.momentum = len(image) / seen
                model(image.to(device))
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum
    return seen


def _none_alone(images: Iterable[Tensor]) -> Iterator[Tensor]:
    """Joins batches of one with the next batch; the last one is yielded alone only if there was no other."""
    alone: Tensor | None = None
    some = False
    for image in images:
        if alone is not None and alone.shape[1:] == image.shape[1:]:
            image = torch.cat([alone, image])
        elif alone is not None:  # of another size
            some = True
            yield alone
        alone = image if len(image) == 1 else None
        if alone is None:
            some = True
            yield image
    if alone is not None and not some:
        yield alone


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
