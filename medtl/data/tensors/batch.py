"""`Batch`: the named fields that adaptation methods receive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass
class Batch:
    """One batch of one domain. Fields that a method must not see are None, not zeros.

    Attributes:
        image: (N, C, H, W) or (N, C, D, H, W) float32 in [0, 1].
        label: (N,) int64 class indices; for segmentation (N, H, W) or (N, D, H, W), -1 where nothing is to be
            learnt. Beyond the scan it is background. None without labels: batches of the target carry none.
        index: (N,) int64 position of each case in its data set.
        site: (N,) int64 position of each case's site in the data set's `sites`.
        strong: A second, strongly augmented view, shaped as `image`; for segmentation voxel by voxel the same
            place, in other grey values.
        outside: (N, H, W) or (N, D, H, W) bool, True where `image` shows what is beyond the scan: padding, or what a
            rotation or a shift brought in. Statistics of grey values leave it out. None where it is not known.
    """

    image: Tensor
    label: Tensor | None = None
    index: Tensor | None = None
    site: Tensor | None = None
    strong: Tensor | None = None
    outside: Tensor | None = None

    @property
    def inner_label(self) -> Tensor | None:
        """The label; of masks, with -1 beyond the scan, where evaluation counts nothing either."""
        if self.label is None or self.outside is None or self.label.shape != self.outside.shape:
            return self.label
        return self.label.masked_fill(self.outside, -1)

    def __len__(self) -> int:
        return int(self.image.shape[0])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """A copy with every tensor on `device`."""
        return Batch(**{name: value.to(device, non_blocking=non_blocking) for name, value in self._present()})

    def pin_memory(self) -> Batch:
        """A copy in page-locked memory; called by `DataLoader(pin_memory=True)`."""
        return Batch(**{name: value.pin_memory() for name, value in self._present()})

    def _present(self) -> list[tuple[str, Tensor]]:
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return [(name, value) for name, value in values if value is not None]


def collate(samples: Sequence[Batch] | Batch) -> Batch:
    """Stacks samples (batches without the leading axis) into a batch; for `DataLoader(collate_fn=collate)`.

    What a data set made as a batch at once (`__getitems__`) is left as it is.

    Args:
        samples: B samples, or a batch.

    Raises:
        ValueError: Some samples have a field that others lack.
    """
    if isinstance(samples, Batch):
        return samples
    stacked: dict[str, Tensor] = {}
    for field in fields(Batch):
        values = [getattr(sample, field.name) for sample in samples]
        present = [value for value in values if value is not None]
        if present and len(present) < len(values):
            raise ValueError(f"{len(values) - len(present)} of {len(values)} samples have no {field.name!r}.")
        if present:
            stacked[field.name] = torch.stack(present)
    return Batch(**stacked)
