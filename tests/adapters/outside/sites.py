"""A discriminator of sites, as a user would write it: it is made when the sites are known."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medtl.adapters import Adapter, Batch, Facts
from medtl.adapters.contract.adversarial import (
    as_cases,
    feature_discriminator,
    reversal_strength,
    reverse_gradient,
)


class Sites(Adapter):
    """Features do not tell any site from another (Ganin et al. 2016, with one class a site).

    Args:
        model: the network.
        hidden: width of the discriminator.
    """

    needs: ClassVar = frozenset({"source", "target"})
    aligns: ClassVar = True

    def __init__(self, model: nn.Module, *, hidden: int = 32) -> None:
        super().__init__(model)
        self.hidden = hidden

    def on_data(self, facts: Facts) -> None:
        """Makes the discriminator, with one logit a site."""
        self.names = facts.sites
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layers = feature_discriminator(self._num_features(), self.hidden, dropout=0.0)
            layers[-1] = nn.Linear(self.hidden, len(facts.sites))
        self.discriminator = layers

    def forward(self, source: Batch | None, target: Batch | None, *, progress: float) -> dict[str, Tensor]:
        """Computes the source's loss and the cross-entropy of sites."""
        outputs = self.forward_domains(source, target)
        loss = self.supervised_loss(outputs[0].logits, source.label)
        strength, found = reversal_strength(progress), []
        for output, batch in zip(outputs, (source, target), strict=True):
            rows = as_cases(output.features, 10**9).float()
            places = batch.site.repeat_interleave(len(rows) // len(batch))
            found.append(F.cross_entropy(self.discriminator(reverse_gradient(rows, strength)), places))
        domain = torch.stack(found).mean()
        return {"loss": loss + domain, "source_loss": loss.detach(), "site_loss": domain.detach()}
