"""A moving average of weights and buffers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average(nn.Module):
    """Exponential moving average of tensors (Polyak and Juditsky 1992; the warm-up is TensorFlow's).

    average <- d average + (1 - d) value, d = min(decay, (1 + t) / (10 + t)) after t updates. Counts are copied.

    Args:
        values: the tensors by name; the average starts from them.
        decay: in (0, 1).

    Attributes:
        done: whether the averages are in the model for good.
    """

    updates: Tensor
    done: Tensor

    def __init__(self, values: Mapping[str, Tensor], decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("updates", torch.tensor(0))
        self.register_buffer("done", torch.tensor(False))
        for name, value in values.items():
            self.register_buffer(self._key(name), value.detach().clone())

    @staticmethod
    def _key(name: str) -> str:
        return name.replace(".", "/")  # buffer names must not contain dots

    @torch.no_grad()
    def update(self, values: Mapping[str, Tensor]) -> None:
        """Updates the average with the values of one more step."""
        self.updates += 1
        step = int(self.updates)
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in values.items():
            mine = self.get_buffer(self._key(name))
            if mine.is_floating_point():
                mine.lerp_(value, 1 - decay)  # unchanged values stay bit-equal
            else:
                mine.copy_(value)

    @torch.no_grad()
    def copy_from(self, values: Mapping[str, Tensor]) -> None:
        """Restarts the average from these values."""
        for name, value in values.items():
            self.get_buffer(self._key(name)).copy_(value)

    @torch.no_grad()
    def copy_to(self, values: Mapping[str, Tensor]) -> None:
        """Writes the averages into the tensors."""
        for name, value in values.items():
            value.copy_(self.get_buffer(self._key(name)))

    @contextmanager
    def swapped(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Within it, the tensors hold the averages."""
        self._swap(values)
        try:
            yield
        finally:
            self._swap(values)

    def _swap(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            mine = self.get_buffer(self._key(name))
            value.data, mine.data = mine.data, value.data
