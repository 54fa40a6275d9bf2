"""Text cells of tables: none that a spreadsheet would take for a formula is written, and reading gives back the text.

A cell that begins with `=`, `+`, `-`, `@`, a tab or a line break gets an apostrophe in front, unless it is a number
(OWASP, "CSV injection").
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")
_GUARDED = re.compile(r"'+[=+\-@\t\r\n]")


def guarded(value: Any) -> Any:
    """A cell as it is written."""
    if not isinstance(value, str) or not _FORMULA.match(value) or _is_number(value):
        return value
    return f"'{value}"


def unguarded(value: Any) -> Any:
    """A cell as it was meant, from what was written."""
    return value[1:] if isinstance(value, str) and _GUARDED.match(value) else value


def guarded_row(values: Iterable[Any]) -> list[Any]:
    """A row as it is written."""
    return [guarded(value) for value in values]


def csv_text(frame: pd.DataFrame, **options: Any) -> str:
    """A table as CSV, with guarded cells and names of columns.

    Args:
        frame: the table; its index is not written.
        options: of `DataFrame.to_csv`.
    """
    safe = frame.rename(columns=guarded)
    for column, kind in safe.dtypes.items():
        if kind.kind not in "biufcmM":
            safe[column] = safe[column].map(guarded)
    return str(safe.to_csv(index=False, lineterminator="\n", **options))


def plain_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """A table as it was meant, from one whose columns were read as text."""
    return frame.rename(columns=unguarded).map(unguarded)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
