"""Fine-tuning with a strategy, for tests."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from medtl.adapters import Adapter, build_adapter
from medtl.models import Output


def tuned(
    name: str,
    model: nn.Module,
    *,
    seed: int = 0,
    criterion: nn.Module | None = None,
    label_smoothing: float = 0.0,
    **hparams: Any,
) -> Adapter:
    """Fine-tuning on the source with a strategy."""
    return build_adapter(
        "finetune",
        model,
        strategy=name,
        strategy_hparams=hparams,
        seed=seed,
        criterion=criterion,
        label_smoothing=label_smoothing,
    )


def output(adapter: Adapter, image: Tensor) -> Output:
    """What the model gives while the strategy is at work."""
    with adapter.strategy.watching():
        found: Output = adapter.model(image)
    return found
