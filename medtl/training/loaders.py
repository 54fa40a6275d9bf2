"""`AheadLoader`: the next batch is made while the present one is used."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import joblib
import torch
from torch.utils.data import DataLoader


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
