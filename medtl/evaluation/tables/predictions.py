"""The predictions table: what any tool must write to be evaluated, checked once and whole.

One row is one case as seen by one model (and one training seed; and, for multi-label tasks, one finding).
Columns: `case, patient, split, domain, site, model, label` and `logit_<class>` or `prob_<class>`; optional
    `seed, finding,
weight, group_*`. An empty label means that there is no reference standard for the case; it never means
"negative".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medtl.errors import DataError
from medtl.evaluation.statistics.arrays import Floats, Ints, Strings, log_softmax
from medtl.evaluation.tables.lookup import CaseRows, table_fault

if TYPE_CHECKING:
    import pandas as pd

REQUIRED = ("case", "patient", "split", "domain", "site", "model", "label")
SPLITS = ("validation", "calibration", "test")
DOMAINS = ("source", "target")
CLIP = 1e-7
"""Probabilities nearer to 0 than this are moved to it before the logarithm, and counted."""
SUM_TOLERANCE = 0.01
"""Probabilities of a row may miss a sum of 1 by this much: tables are written with two or three decimals."""

ONLY_SEED = "single"
"""Name of the training seed in a table without a column `seed`."""


@dataclass(frozen=True)
class PredictionTable(CaseRows):
    """A validated table of predictions; make one with `from_csv` or `from_frame`.

    Attributes:
        case: (n,) name of the case; patient, split, domain, site, model, seed likewise.
        finding: (n,) name of the finding, "" for tasks without.
        label: (n,) index into `classes`, -1 where there is no reference standard.
        logits: (n, K) float64; logarithms of the probabilities where the table holds probabilities.
        weight: (n,) weight of the case.
        classes: names of the classes, in the order of the columns.
        task: `binary`, `multiclass` or `multilabel` (each finding is then a binary task of its own).
        num_clipped: rows with a probability of (nearly) 0 or 1, which had to be clipped.
        warnings: remarks that belong into the report.
    """

    case: Strings = field(repr=False)
    patient: Strings = field(repr=False)
    split: Strings = field(repr=False)
    domain: Strings = field(repr=False)
    site: Strings = field(repr=False)
    model: Strings = field(repr=False)
    seed: Strings = field(repr=False)
    finding: Strings = field(repr=False)
    label: Ints = field(repr=False)
    logits: Floats = field(repr=False)
    weight: Floats = field(repr=False)
    classes: tuple[str, ...]
    task: str
    num_clipped: int = 0
    warnings: tuple[str, ...] = ()

    @classmethod
    def from_csv(cls, path: Path | str) -> PredictionTable:
        """Reads and validates a CSV file (UTF-8, all columns as text) or a parquet file.

        Raises:
            DataError: the file cannot be read, or its content is at fault; all faults are named at once.
        """
        import pandas as pd

        path = Path(path)
        try:
            if path.suffix == ".parquet":
                frame = pd.read_parquet(path)
            else:
                frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
        except FileNotFoundError:
            raise DataError(f"There is no predictions table {path.name!r}. Check the path.") from None
        except ImportError as error:
            raise DataError(
                f"Reading {path.name!r} needs a parquet engine: pip install pyarrow, or save the table as "
                "CSV."
            ) from error
        except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError, OSError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise DataError(
                f"The predictions table {path.name!r} cannot be read as comma-separated UTF-8 text: "
                f"{reason}. Save it again as CSV with UTF-8 encoding and one header line."
            ) from None
        return cls.from_frame(frame, name=path.name)

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, *, name: str = "predictions") -> PredictionTable:
        """Validates a data frame.

        Args:
            frame: the columns named at the head of this module.
            name: what to call the table in messages.

        Raises:
            DataError: with every fault found. Rows are named by their line in a CSV file with one header
                line.
        """
        from medtl.evaluation.tables.checks import check_columns, check_rows, parse

        faults: list[str] = []
        columns = check_columns(frame, faults)
        if columns is None:
            raise table_fault(f"predictions table {name!r}", faults)
        parsed = parse(frame, columns, faults)
        if not faults:
            check_rows(parsed, faults)
        if faults:
            raise table_fault(f"predictions table {name!r}", faults)
        return parsed

    @property
    def findings(self) -> tuple[str, ...]:
        """Names of the findings in the order of their first row; `("",)` for other tasks."""
        return tuple(dict.fromkeys(self.finding.tolist()))

    def probabilities(self) -> Floats:
        """(n, K) softmax of the logits."""
        return np.exp(log_softmax(self.logits))
