"""Domain-adaptation methods, one per file, discovered by file name.

To add a method, put a file `mymethod.py` with a class `MyMethod(Adapter)` into this folder; nothing else has to be
registered. The keyword arguments of the class are its hyper-parameters, and they are defined nowhere else. Code that
methods share lives in `contract`.
"""

from __future__ import annotations

from typing import Any

from medtl.adapters.contract.adapter import Adapter
from medtl.adapters.contract.discovery import adapter_class, available, build_adapter, parse_hparams
from medtl.adapters.contract.facts import Facts
from medtl.adapters.contract.phase import Phase
from medtl.adapters.contract.test_time import TestTimeAdapter
from medtl.data.tensors.batch import Batch
from medtl.discovery import hyper_parameters

__all__ = [
    "Adapter",
    "Batch",
    "Facts",
    "Phase",
    "TestTimeAdapter",
    "adapter_class",
    "available",
    "build_adapter",
    "hyper_parameters",
    "parse_hparams",
]


def __getattr__(name: str) -> Any:
    """Resolves any method by its class name: `from medtl.adapters import DANN`."""
    for method in available():
        if name.lower() == method.replace("_", "") and (found := adapter_class(method)).__name__ == name:
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
