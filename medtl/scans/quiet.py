"""Silences the reading libraries: their warnings quote header values, including patients' names."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGERS = ("pydicom", "nibabel.global", "PIL", "tifffile")
_lock = threading.Lock()
_depth = 0
_filters = warnings.catch_warnings()
_levels: dict[str, int] = {}


@contextmanager
def quiet_readers() -> Iterator[None]:
    """Drops warnings and log records of pydicom, nibabel and Pillow while any thread is inside.

    `warnings.catch_warnings` alone is not safe in threads: two that overlap can leave the filters changed
    permanently. Here the first thread in changes them and the last one out restores them. Whatever matters to a
    user about a file becomes a rejection or an error with medtl's own text.
    """
    global _depth, _filters
    with _lock:
        _depth += 1
        if _depth == 1:
            _filters = warnings.catch_warnings()
            _filters.__enter__()
            warnings.simplefilter("ignore")
            for name in _LOGGERS:
                logger = logging.getLogger(name)
                _levels[name] = logger.level
                logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                for name, level in _levels.items():
                    logging.getLogger(name).setLevel(level)
                _filters.__exit__(None, None, None)
