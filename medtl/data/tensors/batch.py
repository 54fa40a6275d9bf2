"""`Batch`: the named fields that adapters receive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any

import joblib
import torch
from torch import Tensor
from torch.utils.data import DataLoader


@dataclass
class Batch:
    """One batch of one domain. Fields that a method may not see are None, not zeros.

    Attributes:
        image: (N, C, H, W) or (N, C, D, H, W) float32 in [0, 1].
        label: (N,) int64 class indices; for segmentation (N, H, W) or (N, D, H, W), -1 where nothing is to be
            learnt. None without labels: batches of the target carry none.
        index: (N,) int64 place of each case in its data set.
        site: (N,) int64 place of each case's site in the data set's `sites`.
        strong: A second, strongly augmented view, shaped as `image`; for segmentation voxel by voxel the same
            place, in other grey values.
    """

    image: Tensor
    label: Tensor | None = None
    index: Tensor | None = None
    site: Tensor | None = None
    strong: Tensor | None = None

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


class AheadLoader(DataLoader[Any]):
    """A `DataLoader` that makes the next batch in a thread while the present one is used.

    One batch is ahead, so that a GPU does not wait for augmentation, nor a core that torch leaves idle; what the
    batches hold and their order are the same. Errors of the data set are raised where the batch is asked for. It is
    a plain `DataLoader` with worker processes, which are ahead already, and where torch computes on every core: a
    thread would only take turns with it. The data set must draw nothing from the global random state.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches = super().__iter__()
        return batches if self.num_workers or not _idle() else _ahead(batches)


def _idle() -> bool:
    """Whether something has time to make batches while torch computes."""
    return torch.cuda.is_available() or torch.get_num_threads() < joblib.cpu_count()


def _ahead(batches: Iterator[Any]) -> Iterator[Any]:
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = thread.submit(next, batches, None)
            yield batch
