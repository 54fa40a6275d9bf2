"""The histograms of voxel probabilities beside a table of segmentations: checked once, as a whole.

Columns: `case, model, seed, structure, bin, n, k` and optionally `margin`, as `voxel_histogram` makes them; bins
without voxels are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medtl.cells import unguarded
from medtl.errors import DataError
from medtl.evaluation.metrics.voxels import NUM_BINS
from medtl.evaluation.statistics.arrays import Ints, Strings
from medtl.evaluation.tables.rows import (
    ONLY_SEED,
    check_columns,
    check_header,
    codes,
    lines,
    numbers,
    table_fault,
    text_of,
)
from medtl.evaluation.tables.segmentations import SegmentationTable

if TYPE_CHECKING:
    import pandas as pd

REQUIRED = ("case", "model", "structure", "bin", "n", "k")


@dataclass(frozen=True)
class VoxelTable:
    """Validated histograms; make one with `from_csv` or `from_frame`.

    Attributes:
        case: (r,) name of the case; model, seed, structure likewise.
        n: (r, 256) voxels in each bin.
        k: (r, 256) those of the structure.
        margin: of the band around the structure, in mm or pixels; None where the file does not say.
    """

    case: Strings = field(repr=False)
    model: Strings = field(repr=False)
    seed: Strings = field(repr=False)
    structure: Strings = field(repr=False)
    n: Ints = field(repr=False)
    k: Ints = field(repr=False)
    margin: float | None = None

    def __len__(self) -> int:
        return len(self.case)

    @classmethod
    def from_csv(cls, path: Path | str, table: SegmentationTable) -> VoxelTable:
        """Reads and validates a CSV file.

        Args:
            path: the file, usually `table.voxels`.
            table: the segmentations that the histograms belong to.

        Raises:
            DataError: the file cannot be read, or its content is at fault; all faults are named at once.
        """
        import pandas as pd

        path = Path(path)
        text = dict.fromkeys(("case", "model", "seed", "structure"), str)
        try:
            check_columns(path, "voxel histograms")
            frame = pd.read_csv(path, dtype=text, keep_default_na=False, encoding="utf-8-sig")
            for column in text.keys() & set(frame.columns):
                frame[column] = frame[column].map(unguarded)
        except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError, OSError) as error:
            raise DataError(
                f"The voxel histograms {path.name!r} cannot be read as comma-separated UTF-8 text "
                f"({type(error).__name__}). Write them again, or leave the file out."
            ) from None
        return cls.from_frame(frame, table, name=path.name)

    @classmethod
    def from_frame(
        cls, frame: pd.DataFrame, table: SegmentationTable, *, name: str = "voxel histograms"
    ) -> VoxelTable:
        """Validates a data frame.

        Raises:
            DataError: with every fault found.
        """
        faults: list[str] = []
        check_header([str(column) for column in frame.columns], REQUIRED, faults)
        if not faults and len(frame) == 0:
            faults.append("there are no rows below the header")
        if faults:
            raise table_fault(f"table {name!r}", faults)
        keys = ("case", "model", "seed", "structure")
        single = np.full(len(frame), ONLY_SEED, dtype=object)
        text = {key: text_of(frame[key]) if key in frame.columns else single for key in keys}
        bin_, n, k = (numbers(frame[column], column, faults) for column in ("bin", "n", "k"))
        margin = numbers(frame["margin"], "margin", faults) if "margin" in frame.columns else None
        if margin is not None and len(np.unique(margin)) > 1:
            faults.append("the column margin holds several values: one band is compared with itself only")
        if not faults:
            bad = (bin_ < 0) | (bin_ >= NUM_BINS) | (bin_ % 1 != 0)
            if bad.any():
                faults.append(
                    f"bin must be a whole number from 0 to {NUM_BINS - 1}; it is not at {lines(bad)}"
                )
            bad = (n < 1) | (k < 0) | (k > n) | (n % 1 != 0) | (k % 1 != 0)
            if bad.any():
                faults.append(
                    f"n and k must be whole numbers, 0 <= k <= n and n above 0; not so at {lines(bad)}"
                )
        known = set(zip(table.case.tolist(), table.model.tolist(), table.seed.tolist(), strict=True))
        runs = list(zip(*(text[key].tolist() for key in keys[:3]), strict=True))
        strange = np.array([run not in known for run in runs], dtype=bool)
        if strange.any():
            faults.append(f"case, model and seed are not in the table of segmentations at {lines(strange)}")
        if table.labels is not None:
            strange = ~np.isin(text["structure"].astype(str), list(table.labels.structures))
            if strange.any():
                faults.append(f"structure has no name in the label map at {lines(strange)}")
        if faults:
            raise table_fault(f"table {name!r}", faults)
        code = codes(*text.values())
        cell = code * NUM_BINS + bin_.astype(np.int64)
        _, first, inverse = np.unique(code, return_index=True, return_inverse=True)
        if len(np.unique(cell)) < len(cell):
            repeated = np.setdiff1d(np.arange(len(cell)), np.unique(cell, return_index=True)[1])
            raise table_fault(
                f"table {name!r}",
                [f"rows repeat a bin of a case, model, seed and structure at {lines(repeated)}"],
            )
        counts = np.zeros((2, len(first), NUM_BINS), dtype=np.int64)
        counts[:, inverse, bin_.astype(np.int64)] = np.stack([n, k]).astype(np.int64)
        own = {key: text[key][first] for key in keys}
        return cls(**own, n=counts[0], k=counts[1], margin=None if margin is None else float(margin[0]))

    def stack(self, model: str, seed: str, structure: str, cases: Sequence[str]) -> tuple[Ints, Ints]:
        """Histograms n and k (C, 256) in the order of `cases`; zeros for a case without voxels."""
        rows = np.flatnonzero((self.model == model) & (self.seed == seed) & (self.structure == structure))
        at = {self.case[row]: row for row in rows}
        n, k = np.zeros((2, len(cases), NUM_BINS), dtype=np.int64)
        for place, case in enumerate(cases):
            if case in at:
                n[place], k[place] = self.n[at[case]], self.k[at[case]]
        return n, k
