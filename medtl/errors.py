"""The errors that a user can meet.

Each message is one paragraph: what is wrong and where, what was expected and what was found, what to do next.

    MedtlError
    ├── ConfigError       a flag, a key of a configuration file, a name of a recipe or a method (exit code 2)
    ├── DataError         scans, labels, masks, a predictions table (exit code 1)
    ├── WeightsError      pretrained weights that are absent, altered or of another architecture (exit code 1)
    └── CheckpointError   a run folder or a checkpoint that cannot be used or written (exit code 1)
        └── NotFiniteError    a model whose output is no number
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_MOST, _LONGEST = 80, 80
"""Names that a message lists, and their characters: columns of a table can be anything."""


class MedtlError(Exception):
    """Base of every error that medtl raises for its users; `exit_code` is what the command line returns."""

    exit_code = 1


class ConfigError(MedtlError):
    """A wrong flag, key, recipe, method or hyper-parameter."""

    exit_code = 2


class DataError(MedtlError):
    """Scans, labels, masks or tables that cannot be used as they are."""


class WeightsError(MedtlError):
    """Pretrained weights that are absent, altered, or of another architecture."""


class CheckpointError(MedtlError):
    """A run folder or checkpoint that cannot be read, resumed or written."""


class NotFiniteError(CheckpointError):
    """A model that gives NaN or infinity, which would pass as a prediction."""


def near_matches(name: str, choices: Iterable[str]) -> str:
    """Says which of `choices` the user may have meant: `Perhaps you meant 'dann'.`, or lists what there is."""
    names = sorted(n if len(n) <= _LONGEST else f"{n[:_LONGEST]}..." for n in choices)
    close = difflib.get_close_matches(name.lower(), names, n=2, cutoff=0.6)
    if close:
        return f"Perhaps you meant {' or '.join(repr(c) for c in close)}."
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return f"There are: {', '.join(names[:_MOST])}{more}."
