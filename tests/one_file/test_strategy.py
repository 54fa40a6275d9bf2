"""A new way of fine-tuning costs one file: it is listed, built, configured and trained."""

from __future__ import annotations

from tests.one_file.conftest import Copy

STRATEGY = '''"""Encoder and head at learning rates of their own."""

from __future__ import annotations

from typing import Any

from torch import nn

from medtl.strategies.contract.stages import Part
from medtl.strategies.contract.strategy import Strategy


class TwoRates(Strategy):
    """Trains everything, the encoder more slowly than the head.

    Args:
        model: as in `Strategy`.
        slower: learning rate of the encoder as a fraction of the head's.
        common: as in `Strategy`.
    """

    def __init__(self, model: nn.Module, *, slower: float = 0.1, **common: Any) -> None:
        super().__init__(model, **common)
        self.slower = slower

    def group(self, part: Part, lr: float) -> dict[str, Any]:
        return {"lr": lr * (self.slower if part.pretrained else 1.0)}
'''
STEP = """
import torch
from torch import nn
from medtl import build_adapter, parse_strategy_hparams, with_features
from medtl.adapters import Batch

torch.manual_seed(0)
given = parse_strategy_hparams("two_rates", ["slower=0", "two_rates.mixup=0.1"])
model = with_features(nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2)))
adapter = build_adapter("dann", model, strategy="two_rates", strategy_hparams=given)
before = [p.detach().clone() for p in model.parameters()]
optimizer = torch.optim.SGD(adapter.param_groups(0.1))
source = Batch(torch.rand(6, 1, 4, 4), label=torch.tensor([0, 1] * 3))
losses = adapter(source, source, progress=0.5)
losses["loss"].backward()
optimizer.step()
print(type(adapter.strategy).__name__, adapter.strategy.slower, adapter.strategy.mixup)
print([bool((p != q).any()) for p, q in zip(before, model.parameters())])
"""


def test_one_file_adds_a_strategy(copy: Copy) -> None:
    assert "two_rates" not in copy.medtl("list", "strategies")
    copy.add("medtl/strategies/two_rates.py", STRATEGY)
    (row,) = [line for line in copy.medtl("list", "strategies").splitlines() if "two_rates" in line]
    assert "Trains everything, the encoder more slowly than the head." in row
    shown = copy.medtl("list", "strategies", "two_rates")
    assert all(name in shown for name in ("slower", "mixup", "ema"))
    assert copy.python(STEP).splitlines() == ["TwoRates 0.0 0.1", "[False, False, True, True]"]
