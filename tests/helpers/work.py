"""How much work a piece of code does, counted and not timed, so that a busy or slow machine changes nothing."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable
from types import FrameType


def calls(do: Callable[[], object]) -> int:
    """The number of calls that `do` makes, of Python functions and of compiled ones: the same in every later run.

    Run once what is compared before, so that what is loaded or remembered at the first use does not count.
    """
    count = 0

    def seen(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(seen)
    try:
        do()
    finally:
        sys.setprofile(before)
    return count


def peak(do: Callable[[], object]) -> int:
    """The most memory in bytes that `do` holds at a time: Python's objects and NumPy's arrays."""
    tracemalloc.start()
    try:
        do()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
