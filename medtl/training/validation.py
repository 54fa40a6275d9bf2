"""Figures of source validation, accumulated batch by batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]


class Validation:
    """Loss, and balanced accuracy (classes) or Dice (masks), over all batches given to `add`."""

    def __init__(self, loss: Loss) -> None:
        self._loss = loss
        self._logits: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._counts: Tensor | None = None
        self._loss_sum = 0.0
        self._num = 0

    @torch.no_grad()
    def add(self, logits: Tensor, label: Tensor) -> None:
        """Takes logits (N, K) with labels (N,) or (N, K), or logits (N, K, ...) with masks (N, ...)."""
        if logits.ndim == 2:
            self._logits.append(logits.float().cpu())
            self._labels.append(label.cpu())
            return
        # Volumes are many and large: store sums, not voxels.
        self._loss_sum += float(self._loss(logits, label)) * len(label)
        self._num += len(label)
        num_classes, known = logits.shape[1], label >= 0
        called, truth = logits.argmax(1)[known], label[known]
        both = torch.bincount(truth[called == truth], minlength=num_classes)
        either = torch.bincount(called, minlength=num_classes) + torch.bincount(truth, minlength=num_classes)
        counts = torch.stack([both, either]).double().cpu()
        self._counts = counts if self._counts is None else self._counts + counts

    def compute(self) -> dict[str, float]:
        """The figures by name; empty if nothing was added.

        Dice is 2 |A and B| / (|A| + |B|) over the voxels of all batches, averaged over the structures that occur.
        """
        if self._counts is not None:
            both, either = self._counts[:, 1:]
            dice = (2 * both / either)[either > 0]
            mean = float(dice.mean()) if len(dice) else 1.0
            return {"validation_loss": self._loss_sum / self._num, "validation_dice": mean}
        if not self._logits:
            return {}
        logits, label = torch.cat(self._logits), torch.cat(self._labels)
        figures = {"validation_loss": float(self._loss(logits, label))}
        if not label.is_floating_point():
            hits = logits.argmax(1) == label
            recalls = [hits[label == k].float().mean() for k in torch.unique(label)]
            figures["validation_balanced_accuracy"] = float(torch.stack(recalls).mean())
        return figures
