"""Fine-tuning strategies: which part of a pretrained model learns, how fast, and what holds it back.

One file each, found by its name, as methods of adaptation are. Add a file `mine.py` with a class `Mine(Strategy)` to
this folder and it is a strategy: there is no list to edit. What all strategies share is in `contract`.
"""

from medtl.strategies.contract.discovery import (
    available,
    build_strategy,
    parse_strategy_hparams,
    strategy_class,
)
from medtl.strategies.contract.strategy import Strategy

__all__ = ["Strategy", "available", "build_strategy", "parse_strategy_hparams", "strategy_class"]
