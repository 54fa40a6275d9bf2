"""A new adaptation method costs one file: it is listed, built, configured and trained."""

from __future__ import annotations

from tests.one_file.conftest import Copy

METHOD = '''"""Distance of mean features."""

from __future__ import annotations

from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn

from medtl.adapters.contract.adapter import Adapter, Common
from medtl.data.tensors.batch import Batch


class FirstMoment(Adapter):
    """Pulls the mean features of both domains together.

    Args:
        model: `model(image) -> Output(logits, features)`.
        weight: weight of the distance.
        norm, statistics, label_smoothing: see `Adapter`.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"source", "target"})

    def __init__(self, model: nn.Module, *, weight: float = 1.0, **common: Unpack[Common]) -> None:
        super().__init__(model, **common)
        self.weight = weight

    def forward(self, source: Batch | None, target: Batch | None, *, progress: float) -> dict[str, Tensor]:
        a, b = self.forward_domains(source, target)
        own = self.supervised_loss(a.logits, self._given(source, "source").label)
        far = (a.features.mean(0) - b.features.mean(0)).square().sum()
        return {"loss": own + self.weight * far, "source_loss": own.detach(), "distance": far.detach()}
'''
STEP = """
import torch
from torch import nn
from medtl import build_adapter, parse_hparams, with_features
from medtl.adapters import Batch, FirstMoment

torch.manual_seed(0)
given = parse_hparams("first_moment", ["weight=2.5", "norm=joint", "label_smoothing=0.1"])
model = with_features(nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2)))
adapter = build_adapter("first_moment", model, **given)
source = Batch(torch.rand(6, 1, 4, 4), label=torch.tensor([0, 1] * 3))
target = Batch(torch.rand(5, 1, 4, 4) + 1)
optimizer = torch.optim.SGD(adapter.param_groups(0.05))
distances = []
for step in range(20):
    losses = adapter(source, target, progress=step / 20)
    optimizer.zero_grad()
    losses["loss"].backward()
    optimizer.step()
    distances.append(float(losses["distance"]))
print(type(adapter) is FirstMoment, adapter.weight, adapter.norm, adapter.label_smoothing)
print(distances[-1] < 0.5 * distances[0])
"""


def test_one_file_adds_a_method(copy: Copy) -> None:
    assert "first_moment" not in copy.medtl("list", "methods")
    copy.add("medtl/adapters/first_moment.py", METHOD)
    (row,) = [line for line in copy.medtl("list", "methods").splitlines() if "first_moment" in line]
    assert "Pulls the mean features of both domains together." in row
    shown = copy.medtl("list", "methods", "first_moment")
    assert all(name in shown for name in ("weight", "norm", "statistics", "label_smoothing"))
    assert copy.python(STEP).splitlines() == ["True 2.5 joint 0.1", "True"]
