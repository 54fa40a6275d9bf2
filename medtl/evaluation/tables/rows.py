"""What all tables of cases share: reading, line numbers, and checks.

Checks: fields, leaks between splits, unpaired models. Each adds what it finds to a list of faults, with line numbers.
No message holds a patient's identifier: rows are named by their line.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medtl.cells import plain_frame
from medtl.errors import DataError, near_matches
from medtl.evaluation.statistics.arrays import Bools, Floats, Ints, Strings

if TYPE_CHECKING:
    import pandas as pd


SPLITS = ("validation", "calibration", "test")
DOMAINS = ("source", "target")
MOST_COLUMNS, _LONGEST = 10_000, 1 << 22
"""Columns of a table, and bytes of its first line that are looked at."""
ONLY_SEED = "single"
"""Name of the training seed in a table without a column `seed`."""


def seed_order(seed: str) -> tuple[int, str]:
    """Sorts training seeds: numbers in their own order."""
    return len(seed), seed


class CaseRows:
    """Columns `case`, `model` and `seed`, each (n,)."""

    case: Strings
    model: Strings
    seed: Strings

    def __len__(self) -> int:
        return len(self.case)

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models in the order of their first row."""
        return tuple(dict.fromkeys(self.model.tolist()))

    def seeds(self, model: str) -> tuple[str, ...]:
        """Training seeds of one model; numbers in their own order."""
        found = set(self.seed[self.model == model].tolist())
        return tuple(sorted(found, key=seed_order))

    def rows(self, **where: str) -> Ints:
        """Indices of the rows whose columns equal `where`, ordered by case, so that models are aligned."""
        keep: Bools = np.ones(len(self), dtype=bool)
        for column, value in where.items():
            keep &= getattr(self, column) == value
        found = np.flatnonzero(keep)
        return found[np.argsort(self.case[found], kind="stable")]


def read_table(path: Path, what: str) -> pd.DataFrame:
    """Reads a CSV file (UTF-8, all columns as text) or a parquet file.

    Args:
        path: the file.
        what: what to call it in messages, such as "predictions table".

    Raises:
        DataError: the file cannot be read.
    """
    import pandas as pd

    if os.path.exists(path) and not os.path.isfile(
        path
    ):  # reading a pipe would wait for somebody to write into it
        raise DataError(f"The {what} {path.name!r} is not a file.")
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        check_columns(path, what)
        return plain_frame(pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"There is no {what} {path.name!r}. Check the path.") from None
    except ImportError as error:
        raise DataError(
            f"Reading {path.name!r} needs a parquet engine: pip install pyarrow, or save the table as CSV."
        ) from error
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if isinstance(error, OSError):  # its text holds the whole path
            reason = error.strerror or type(error).__name__
        raise DataError(
            f"The {what} {path.name!r} cannot be read as comma-separated UTF-8 text: {reason}. Save it again as CSV "
            "with UTF-8 encoding and one header line."
        ) from None


def check_columns(path: Path, what: str) -> None:
    """Refuses a table with very many columns, which would be read and listed for minutes.

    Raises:
        DataError: there are more than `MOST_COLUMNS`.
        OSError: the file cannot be opened.
    """
    with path.open("rb") as file:
        number = file.readline(_LONGEST).count(b",") + 1
    if number > MOST_COLUMNS:
        raise DataError(
            f"The {what} {path.name!r} has {number:,} columns or more, at most {MOST_COLUMNS:,} are read."
        )


def table_fault(what: str, faults: list[str]) -> DataError:
    """One error for all faults of a table, such as "predictions table 'a.csv'"."""
    count = "one fault" if len(faults) == 1 else f"{len(faults)} faults"
    return DataError(f"The {what} has {count}: {'; '.join(faults)}.")


def odd(name: str) -> bool:
    """Whether a name has characters that are not allowed on a page or in a drawing."""
    return any(unicodedata.category(ch)[0] == "C" for ch in name)


def text_of(values: Any) -> Strings:
    """A column as stripped text; missing values are empty, and 1.0 read from a column with gaps is "1"."""

    def plain(value: Any) -> str:
        if value is None or value != value:
            return ""
        if isinstance(value, (float, np.floating)) and float(value).is_integer():
            return str(int(value))
        return str(value).strip()

    return np.array([plain(v) for v in np.asarray(values, dtype=object)], dtype=object)


def lines(bad: Ints | Bools) -> str:
    """`lines 3, 8, 9 and 12 more`: the line numbers of rows in a CSV file with one header line."""
    rows = np.flatnonzero(bad) if bad.dtype == bool else np.unique(bad)
    shown = ", ".join(str(int(r) + 2) for r in rows[:3])
    more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
    return f"line{'s' if len(rows) > 1 else ''} {shown}{more}"


def numbers(values: Any, column: str, faults: list[str]) -> Floats:
    """A column as finite numbers; values that are not numbers become one half."""
    import pandas as pd

    found = pd.to_numeric(pd.Series(np.asarray(values, dtype=object)), errors="coerce").to_numpy(dtype=float)
    bad = ~np.isfinite(found)
    if bad.any():
        faults.append(f"{column} holds something that is not a finite number at {lines(bad)}")
    return np.asarray(np.where(bad, 0.5, found), dtype=np.float64)


def codes(*columns: Strings) -> Ints:
    """One number for each distinct combination of the columns."""
    code = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns:
        own = np.unique(column.astype(str), return_inverse=True)[1]
        code = np.unique(code * (own.max() + 1) + own, return_inverse=True)[1].astype(np.int64)
    return code


def first_clash(key: Ints, value: Ints) -> Ints:
    """Rows whose `value` differs from that of the first row with the same `key`."""
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    return np.flatnonzero(value != value[first][inverse])


def check_header(header: Sequence[str], required: Iterable[str], faults: list[str]) -> None:
    """Columns that are missing or appear twice."""
    for name in required:
        if name not in header:
            hint = near_matches(name, header) if header else "The table has no columns."
            faults.append(f"the column {name!r} is missing ({hint.rstrip('.')})")
    twice = sorted({c for c in header if list(header).count(c) > 1})
    if twice:
        faults.append(f"columns appear twice: {', '.join(twice)}")


def check_fields(text: Mapping[str, Strings], filled: Iterable[str], faults: list[str]) -> None:
    """Empty fields among `filled`, control characters in names that are shown, unknown splits and domains."""
    for name in filled:
        empty = text[name] == ""
        if empty.any():
            faults.append(f"{name} is empty at {lines(empty)}")
    for name in ("site", "model", "seed", "finding"):
        if name in text:
            bad = np.array([odd(v) for v in text[name]], dtype=bool)
            if bad.any():
                faults.append(f"{name} holds control characters at {lines(bad)}")
    for name, allowed in (("split", SPLITS), ("domain", DOMAINS)):
        bad = ~np.isin(text[name], allowed) & (text[name] != "")
        if bad.any():
            got = sorted(set(text[name][bad].tolist()))[:3]
            faults.append(f"{name} must be one of {', '.join(allowed)}; got {got} at {lines(bad)}")


def read_weight(frame: pd.DataFrame, faults: list[str]) -> Floats:
    """The column `weight`, or ones."""
    if "weight" not in frame.columns:
        return np.ones(len(frame))
    weight = numbers(frame["weight"], "weight", faults)
    if (weight <= 0).any():
        faults.append(f"weight must be above 0; it is not at {lines(weight <= 0)}")
    return weight


def check_repeats(key: Ints, faults: list[str]) -> None:
    """Rows that repeat a case, model and seed."""
    _, first = np.unique(key, return_index=True)
    if len(first) < len(key):
        repeated = np.setdiff1d(np.arange(len(key)), first)
        faults.append(f"rows repeat a case, model and seed at {lines(repeated)}: each may stand once")


def check_leaks(patient: Strings, split: Strings, domain: Strings, faults: list[str]) -> None:
    """Patients in two splits or two domains."""
    patients = codes(patient)
    for name, column in (("splits", split), ("domains", domain)):
        clash = first_clash(patients, codes(column))
        if len(clash):
            count = len(np.unique(patients[clash]))
            faults.append(
                f"{count} patient(s) are in two {name}, first at {lines(clash)}: a patient belongs to one "
                "(if two sites number their patients alike, put the site before the number)"
            )


def check_constant(case: Strings, what: Mapping[str, Strings], faults: list[str]) -> None:
    """Cases whose rows disagree about something that belongs to the case."""
    for name, column in what.items():
        clash = first_clash(codes(case), codes(column))
        if len(clash):
            faults.append(f"one case has two values of {name}, at {lines(clash)}")


def check_pairs(cases: Ints, blocks: Ints, model: Strings, seed: Strings, faults: list[str]) -> None:
    """Models, or their training seeds, that were not run on the same cases of a domain and split.

    A model may be absent from a domain and split altogether, as a bound that was trained at the target is from the
    source.
    """
    runs = codes(model, seed)
    for block in np.unique(blocks):
        inside = blocks == block
        union = np.unique(cases[inside])
        for run in np.unique(runs[inside]):
            lacking = np.setdiff1d(union, cases[inside & (runs == run)])
            if len(lacking):
                at = int(np.flatnonzero(runs == run)[0])
                row = int(np.flatnonzero(cases == lacking[0])[0])
                named = "" if seed[at] == ONLY_SEED else f", seed {seed[at]}"
                faults.append(
                    f"model {model[at]!r}{named} lacks {len(lacking)} case(s) that other models have, for "
                    f"instance that of line {row + 2}: models are compared on the same cases"
                )
