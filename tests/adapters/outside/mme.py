"""Minimax entropy, as a user would write it: a head of its own, and a few labels of the target."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from medtl.adapters import Adapter, Batch
from medtl.adapters.contract.adversarial import reverse_gradient
from medtl.adapters.contract.parts import entropy
from medtl.models.parts import classes_of


class Prototypes(nn.Module):
    """Cosine similarity with one vector a class, divided by a temperature."""

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(0.1 * nn.init.normal_(nn.Linear(num_features, num_classes).weight))

    def forward(self, features: Tensor) -> Tensor:
        """Maps (B, F) to (B, K)."""
        return F.linear(F.normalize(features, dim=1), F.normalize(self.vectors, dim=1)) / 0.05


class MME(Adapter):
    """The head maximises the target's entropy, the encoder minimises it (Saito et al. 2019, equation 4).

    Args:
        model: the network; its head becomes one of prototypes.
        weight: of the entropy.
    """

    needs: ClassVar = frozenset({"source", "target", "labelled_target"})
    tasks: ClassVar = frozenset({"binary", "multiclass"})
    aligns: ClassVar = True

    def __init__(self, model: nn.Module, *, weight: float = 0.1) -> None:
        model.head = Prototypes(model.num_features, classes_of(model, "MME"))
        super().__init__(model)
        self.weight = weight

    def forward(
        self, source: Batch | None, target: Batch | None, *, labelled_target: Batch | None, progress: float
    ):
        """Computes the losses of all labels, and the entropy behind a reversed gradient."""
        few = self._given(labelled_target, "labelled target")
        from_source, from_target = self.forward_domains(source, target)
        loss = self.supervised_loss(from_source.logits, source.label)
        few_loss = self.supervised_loss(self.model(few.image).logits, few.label, role="labelled target")
        unsure = entropy(self.model.head(reverse_gradient(from_target.features, 1.0)))
        return {
            "loss": loss + few_loss - self.weight * unsure,
            "few_loss": few_loss.detach(),
            "entropy": unsure.detach(),
        }
