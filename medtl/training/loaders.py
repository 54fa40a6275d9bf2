"""`AheadLoader`: prepares the next batch while the current one is used."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import joblib
import torch
from torch.utils.data import DataLoader


class AheadLoader(DataLoader[Any]):
    """A `DataLoader` that prepares the next batch in a thread while the current one is used.

    It stays one batch ahead, so that neither a GPU nor an idle core waits for augmentation; the batches and their order
    are the same. Errors of the data set are raised when the batch is requested. With worker processes, which work ahead
    anyway, it is a plain `DataLoader`, and also when torch computes on every core, because a thread would only compete
    with it. The data set must not use the global random state.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches = super().__iter__()
        return batches if self.num_workers or not _idle() else _ahead(batches)


def _idle() -> bool:
    """Whether a core is free to prepare batches while torch computes."""
    return torch.cuda.is_available() or torch.get_num_threads() < joblib.cpu_count()


def _ahead(batches: Iterator[Any]) -> Iterator[Any]:
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = thread.submit(next, batches, None)
            yield batch
