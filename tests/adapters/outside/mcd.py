"""Maximum classifier discrepancy, as a user would write it: three phases, four steps of the encoder."""

from __future__ import annotations

import copy
from typing import ClassVar

from torch import Tensor, nn

from medtl.adapters import Adapter, Batch, Phase
from medtl.models import Output
from medtl.models.parts import head_of


class MCD(Adapter):
    """Two heads disagree where the target differs, and the encoder makes them agree (Saito et al. 2018, section 3.3).

    Args:
        model: the network; its head is the first of the two.
    """

    needs: ClassVar = frozenset({"source", "target"})
    tasks: ClassVar = frozenset({"binary", "multiclass", "segmentation"})
    aligns: ClassVar = True
    phases: ClassVar = (
        Phase("source"),
        Phase("heads", learns=("model.head", "second")),
        Phase("encoder", learns=("model",), but=("model.head",), repeats=4),
    )

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.second = copy.deepcopy(head_of(model, "MCD"))
        for layer in self.second.modules():
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()

    def forward(self, source: Batch | None, target: Batch | None, *, progress: float, phase: str = "source"):
        """Computes the source's loss of both heads, and how far they differ on the target, as the phase needs them."""
        from_source, from_target = self.forward_domains(source, target)
        losses = [self.supervised_loss(logits, source.label) for logits in self._both(from_source)]
        p, q = (logits.softmax(1) for logits in self._both(from_target))
        differ = (p - q).abs().mean()
        of_source = losses[0] + losses[1]
        loss = {"source": of_source, "heads": of_source - differ, "encoder": differ}[phase]
        return {"loss": loss, "source_loss": of_source.detach(), "discrepancy": differ.detach()}

    def _both(self, output: Output) -> tuple[Tensor, Tensor]:
        first, second = output.logits.float(), self.second(output.features).float()
        size = tuple(slice(n) for n in first.shape[2:])
        return first, second[(..., *size)]
