"""A head that stores cases instead of being trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medtl.errors import ConfigError, DataError

TIE = 1e-3
"""The weight of the cosine in a vote; it breaks ties."""


class NeighbourHead(nn.Module):
    """Log-probabilities of the classes from the votes of the k nearest stored cases, by cosine similarity.

    One extra vote is spread evenly over the K classes, so that no class has probability 0: (votes + 1 / K) / (k + 1).
    A vote counts 1 plus a thousandth of its cosine: ties are decided by the nearer cases, not by the class order.

    Args:
        num_features: F.
        num_classes: K.
        k: number of neighbours that vote.

    Attributes:
        memory: (M, F) features of unit length; empty until `remember` is called.
        memory_label: (M,) their class indices.

    Raises:
        ConfigError: k is below 1.
    """

    memory: Tensor
    memory_label: Tensor

    def __init__(self, num_features: int, num_classes: int, k: int = 5) -> None:
        super().__init__()
        if k < 1:
            raise ConfigError(f"Nearest neighbours need at least one vote, got k = {k}.")
        self.num_features, self.num_classes, self.k = num_features, num_classes, k
        self.register_buffer("memory", torch.zeros(0, num_features))
        self.register_buffer("memory_label", torch.zeros(0, dtype=torch.long))

    def remember(self, features: Tensor, label: Tensor) -> None:
        """Stores (M, F) features and M class indices, replacing what was stored.

        Raises:
            DataError: there are fewer than k cases, or a class index is out of range.
        """
        if len(features) < self.k:
            raise DataError(
                f"There are {len(features)} training cases, too few for k = {self.k} neighbours. Choose a smaller k "
                "(knn:1), or add cases."
            )
        if int(label.min()) < 0 or int(label.max()) >= self.num_classes:
            raise DataError(f"Labels are class indices from 0 to {self.num_classes - 1}; got others.")
        self.memory = F.normalize(features.detach(), dim=1)
        self.memory_label = label.detach().to(features.device)

    def forward(self, features: Tensor) -> Tensor:
        """Maps (B, F) to (B, K).

        Raises:
            DataError: no cases are stored yet.
        """
        if not len(self.memory):
            raise DataError("The nearest neighbours are not known before `remember` (`fit` calls it).")
        nearest = (F.normalize(features, dim=1) @ self.memory.T).topk(self.k)
        ballots = F.one_hot(self.memory_label[nearest.indices], self.num_classes)
        votes = (ballots * (1 + TIE * nearest.values[..., None])).sum(dim=1)
        return ((votes + 1 / self.num_classes) / (votes.sum(dim=1, keepdim=True) + 1)).log()

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: object) -> None:
        """Resizes the memory first: only the file says how many cases were stored."""
        for name in ("memory", "memory_label"):
            if (kept := state_dict.get(prefix + name)) is not None:
                setattr(self, name, torch.empty_like(kept, device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *rest)
