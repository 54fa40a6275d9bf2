"""Output to the terminal, and whether there is one."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medtl.errors import MedtlError


def say(text: str = "") -> None:
    """Writes to stdout."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def on_terminal() -> bool:
    """Whether a progress bar makes sense."""
    return sys.stderr.isatty()


def progress(label: str) -> Callable[[int, int], None] | None:
    """A counter on the terminal that is called with (done, total); None where there is no terminal."""
    if not on_terminal():
        return None

    def show(done: int, total: int) -> None:
        sys.stderr.write(f"\r{label} {done}/{total}{chr(10) if done == total else ''}")
        sys.stderr.flush()

    return show


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same keys as aligned columns; numbers to the right."""
    if not rows:
        return ""
    heads = list(dict.fromkeys(head for row in rows for head in row))
    cells = [[str(row.get(h, "")) for h in heads] for row in rows]
    widths = [max(len(h), *(len(c[i]) for c in cells)) for i, h in enumerate(heads)]
    right = [
        all(not c[i] or c[i].lstrip("+-").replace(".", "", 1).isdigit() for c in cells)
        for i in range(len(heads))
    ]

    def line(values: Sequence[str]) -> str:
        parts = (v.rjust(w) if r else v.ljust(w) for v, w, r in zip(values, widths, right, strict=True))
        return "  ".join(parts).rstrip()

    return "\n".join([line(heads), line(["-" * w for w in widths]), *map(line, cells)])


def complain(text: str) -> None:
    """Writes an error to stderr as one paragraph."""
    remark(f"error: {text}")


def remark(text: str) -> None:
    """Writes to stderr as one paragraph."""
    width = min(shutil.get_terminal_size((100, 24)).columns, 100)
    text = " ".join(text.split())
    sys.stderr.write(textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False) + "\n")


def explanation(error: Exception) -> str:
    """What a user is told of an error, without the values of variables."""
    if isinstance(error, MedtlError):
        return str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            "The disk is full. Files that were being written were removed again, finished ones are whole. "
            "Free some space, then continue the run with --resume and its folder."
        )
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        name, why = Path(str(error.filename)).name, os.strerror(error.errno)
        return f"{name} cannot be read or written: {why}. Check its permissions."
    if isinstance(error, MemoryError):
        return "Memory ran out. Use a smaller --batch-size or --image-size."
    return (
        f"Unexpected {type(error).__name__}. This is a fault of medtl: please report it with what `medtl doctor` "
        "prints and what `--debug` prints (check that for names of patients first)."
    )


def log_to_stderr(debug: bool) -> None:
    """Sends what the library logs to stderr, once; with `debug`, all of it."""
    root = logging.getLogger("medtl")
    for handler in [h for h in root.handlers if getattr(h, "medtl_cli", False)]:
        root.removeHandler(handler)
    handler = logging.StreamHandler()
    handler.medtl_cli = True  # type: ignore[attr-defined]
    handler.setFormatter(logging.Formatter("%(message)s"))
    root.addHandler(handler)
    root.setLevel(logging.DEBUG if debug else logging.INFO)
    root.propagate = False
