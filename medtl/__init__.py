"""medtl: take a model from one hospital's scans to another's, and know how far to trust it.

Scans -> cases -> batches -> adapter -> predictions -> report. The public names stand in `__init__.pyi` and are loaded
when they are first used, so `import medtl` is cheap.
"""

from __future__ import annotations

import importlib
from typing import Any

import lazy_loader

__version__ = "0.1.0"

_public, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name in __all__:
        return _public(name)
    if name[:1].isupper():  # any adaptation method, listed here or not
        adapters = importlib.import_module("medtl.adapters")
        if hasattr(adapters, name):
            return getattr(adapters, name)
    raise AttributeError(f"module 'medtl' has no attribute {name!r}")
