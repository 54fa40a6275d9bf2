"""Adaptation methods: one file each, found by its name.

Add a file `mymethod.py` with a class `MyMethod(Adapter)` to this folder and it is a method: there is no list to
edit. Its hyper-parameters are the keyword arguments of the class, and their only home. What all methods share is in
`contract`.
"""

from __future__ import annotations

from typing import Any

from medtl.adapters.contract.adapter import Adapter
from medtl.adapters.contract.discovery import (
    adapter_class,
    available,
    build_adapter,
    hyper_parameters,
    parse_hparams,
)
from medtl.data.tensors.batch import Batch

__all__ = [
    "Adapter",
    "Batch",
    "adapter_class",
    "available",
    "build_adapter",
    "hyper_parameters",
    "parse_hparams",
]


def __getattr__(name: str) -> Any:
    """`from medtl.adapters import DANN`: any method by the name of its class."""
    for method in available():
        if name.lower() == method.replace("_", "") and (found := adapter_class(method)).__name__ == name:
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
