"""Efficient anti-forgetting test-time adaptation, as a user would write it: it keeps statistics of the source."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medtl.adapters import TestTimeAdapter
from medtl.models.parts import classes_of, norm_parameters


class EATA(TestTimeAdapter):
    """Learns from confident cases that are new, held back where the source needs the weights (Niu et al. 2022).

    Args:
        model: trained on the source.
        lr: learning rate.
        margin: largest entropy of a case, as a share of log K.
    """

    needs: ClassVar = frozenset({"source", "target"})
    tasks: ClassVar = frozenset({"binary", "multiclass"})

    def __init__(self, model: nn.Module, *, lr: float = 1e-3, margin: float = 0.9) -> None:
        super().__init__(model, norm_parameters(model), lr=lr)
        self.norms, self.margin = norm_parameters(model), margin
        self.register_buffer("mean", torch.zeros(classes_of(model, "EATA")))
        for n, p in enumerate(self.norms):
            self.register_buffer(f"start_{n}", p.detach().clone())
            self.register_buffer(f"fisher_{n}", torch.zeros_like(p))

    def on_fit_start(self, loaders) -> None:
        """Keeps the squared gradients of the source's own predictions (equation 9)."""
        self.model.eval()
        for batch in loaders["source"]:
            logits = self.model(batch.image.to(self.mean.device)).logits
            gradients = torch.autograd.grad(F.cross_entropy(logits, logits.argmax(1)), self.norms)
            for n, gradient in enumerate(gradients):
                self.get_buffer(f"fisher_{n}").add_(gradient.square() / len(loaders["source"]))

    def losses(self, image: Tensor) -> dict[str, Tensor]:
        """Computes the weighted entropy of the chosen cases, and the penalty."""
        log_p = self.model(image).logits.float().log_softmax(1)
        entropy = -(log_p.exp() * log_p).sum(1)
        new = F.cosine_similarity(self.mean[None], log_p.exp().detach()) < 0.95
        least = self.margin * math.log(log_p.shape[1])
        chosen = (entropy.detach() < least) & (new | (self.mean.sum() == 0))
        self.mean.lerp_(log_p.exp().detach().mean(0), 0.1)
        weight = torch.exp(least - entropy.detach()) * chosen
        held = torch.zeros(())
        for n, p in enumerate(self.norms):
            held = held + (self.get_buffer(f"fisher_{n}") * (p - self.get_buffer(f"start_{n}")) ** 2).sum()
        return {"loss": (weight * entropy).mean() + held}
