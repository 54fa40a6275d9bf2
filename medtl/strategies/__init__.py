"""Fine-tuning strategies: which part of a pretrained model learns, how fast, and what regularises it.

One per file, discovered by file name like adaptation methods. To add a strategy, put a file `mine.py` with a class
`Mine(Strategy)` into this folder; nothing else has to be registered. Code that strategies share lives in `contract`.
"""

from medtl.strategies.contract.discovery import (
    available,
    build_strategy,
    parse_strategy_hparams,
    strategy_class,
)
from medtl.strategies.contract.strategy import Strategy

__all__ = ["Strategy", "available", "build_strategy", "parse_strategy_hparams", "strategy_class"]
