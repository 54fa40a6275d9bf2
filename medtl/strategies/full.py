"""Full fine-tuning."""

from __future__ import annotations

from medtl.strategies.contract.strategy import Strategy


class Full(Strategy):
    """Trains all weights, starting from the pretrained ones, at one learning rate: the default."""
