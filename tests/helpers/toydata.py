"""Data sets in memory that look like `CaseDataset` to the training loop."""

from __future__ import annotations

import torch

from medtl.adapters import Batch
from medtl.data.seeds import derive_seed
from tests.adapters.toys import domains


class ToyData:
    """Images of one domain; noise is drawn from (seed, epoch, index) alone, as augmentation is."""

    def __init__(self, role: str, num: int, *, labelled: bool = True, seed: int = 0, offset: int = 0) -> None:
        source, target, label = domains(num, 50 + offset)
        self.images = source.image if role == "source" else target.image
        self.labels = (source.label if role == "source" else label) if labelled else None
        self.seed = seed
        self.role = role
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Batch:
        index = int(index)
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.role, self.epoch, index))
        noise = 0.01 * torch.randn(self.images[index].shape, generator=generator)
        label = None if self.labels is None else self.labels[index]
        return Batch(image=self.images[index] + noise, label=label)
