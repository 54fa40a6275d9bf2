"""Continual test-time adaptation, as a user would write it: the teacher predicts, and weights come back at random."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from medtl.adapters import TestTimeAdapter
from medtl.adapters.contract.test_time import Reset


class CoTTA(TestTimeAdapter):
    """A student learns a teacher's soft labels, a few weights return to the source's (Wang et al. 2022, section 3).

    Args:
        model: trained on the source.
        lr: learning rate.
        decay: of the teacher.
        restore: share of the weights that return in each step.
        reset: see `TestTimeAdapter`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1e-3,
        decay: float = 0.9,
        restore: float = 0.01,
        reset: Reset = "never",
    ) -> None:
        super().__init__(model, list(model.parameters()), lr=lr, reset=reset)
        self.decay, self.restore = decay, restore
        self.teacher = copy.deepcopy(model).requires_grad_(False)
        self.of_source = copy.deepcopy(model).requires_grad_(False)
        self.predictor = self.teacher

    def losses(self, image: Tensor) -> dict[str, Tensor]:
        """Computes the cross-entropy with the teacher's probabilities."""
        with torch.no_grad(), self._mode(network=self.teacher):
            wanted = self.teacher(image).logits.float().softmax(1)
        loss = -(wanted * self.model(image).logits.float().log_softmax(1)).sum(1).mean()
        return {"loss": loss}

    def after_step(self) -> None:
        """Moves the teacher, and restores some of the student's weights."""
        generator = torch.Generator().manual_seed(int(self.step))
        parts = (self.model.parameters(), self.teacher.parameters(), self.of_source.parameters())
        for mine, teacher, start in zip(*parts, strict=True):
            teacher.lerp_(mine, 1 - self.decay)
            back = torch.rand(mine.shape, generator=generator).to(mine.device) < self.restore
            mine.copy_(torch.where(back, start, mine))
