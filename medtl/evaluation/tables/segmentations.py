"""The table of segmentations: the mask of each model and case, and its reference.

One row is one case as seen by one model (and one training seed). Columns: `case, patient, split, domain, site,
model, mask, reference`; optional `seed, weight, group_*`. `mask` and `reference` are label maps (NIfTI, PNG, TIFF
or BMP), named relative to the table. An empty reference means that there is no reference standard for the case;
it never means that nothing is there.

`labels.json` beside the table names the structures and their stored values; without it the values that are found
are named. `voxels.csv` beside it may hold histograms of voxel probabilities (`medtl.evaluation.metrics.voxels`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

import numpy as np

from medtl.errors import ConfigError, DataError
from medtl.evaluation.statistics.arrays import Floats, Ints, Strings
from medtl.evaluation.tables.masks import LabelHeader, MaskError, read_label_header
from medtl.evaluation.tables.rows import (
    ONLY_SEED,
    CaseRows,
    check_constant,
    check_fields,
    check_header,
    check_leaks,
    check_pairs,
    check_repeats,
    codes,
    lines,
    odd,
    read_table,
    read_weight,
    table_fault,
    text_of,
)
from medtl.labelmap import FILE_NAME, LabelMap

if TYPE_CHECKING:
    import pandas as pd

REQUIRED = ("case", "patient", "split", "domain", "site", "model", "mask", "reference")
VOXELS_FILE = "voxels.csv"
"""Name of the file with histograms of voxel probabilities, beside the table."""


@dataclass(frozen=True)
class SegmentationTable(CaseRows):
    """A validated table of segmentations; make one with `from_csv` or `from_frame`.

    Every file is there, can be opened, and has the shape and the position of its case's reference; the voxels are
    read by `measure_cases`.

    Attributes:
        case: (n,) name of the case; patient, split, domain, site, model, seed likewise.
        mask: (n,) path of the mask that the model made.
        reference: (n,) path of the reference, None where there is no reference standard.
        weight: (n,) weight of the case.
        groups: columns `group_*` by name, (n,) each.
        labels: names of the structures, or None where the values that are found will be named.
        voxels: path of the histograms of voxel probabilities, or None.
        warnings: remarks that belong into the report.
    """

    case: Strings = field(repr=False)
    patient: Strings = field(repr=False)
    split: Strings = field(repr=False)
    domain: Strings = field(repr=False)
    site: Strings = field(repr=False)
    model: Strings = field(repr=False)
    seed: Strings = field(repr=False)
    mask: tuple[Path, ...] = field(repr=False)
    reference: tuple[Path | None, ...] = field(repr=False)
    weight: Floats = field(repr=False)
    groups: Mapping[str, Strings] = field(default_factory=dict, repr=False)
    labels: LabelMap | None = None
    voxels: Path | None = field(default=None, repr=False)
    warnings: tuple[str, ...] = ()

    @classmethod
    def from_csv(cls, path: Path | str, *, labels: LabelMap | None = None) -> SegmentationTable:
        """Reads and validates a CSV file (UTF-8, all columns as text) and the headers of its label maps.

        Args:
            path: the table.
            labels: names of the structures; default: `labels.json` beside the table, if there is one.

        Raises:
            DataError: the file cannot be read, or its content is at fault; all faults are named at once.
        """
        path = Path(path)
        frame = read_table(path, "table of segmentations")
        folder = path.resolve().parent
        if labels is None and (folder / FILE_NAME).is_file():
            try:
                labels = LabelMap.read(folder / FILE_NAME)
            except ConfigError as error:
                raise DataError(f"{error} It lies beside the table of segmentations.") from None
        voxels = folder / VOXELS_FILE
        return cls.from_frame(
            frame,
            folder=folder,
            labels=labels,
            voxels=voxels if voxels.is_file() else None,
            name=path.name,
        )

    @classmethod
    def from_frame(
        cls,
        frame: pd.DataFrame,
        *,
        folder: Path | str = ".",
        labels: LabelMap | None = None,
        voxels: Path | None = None,
        name: str = "segmentations",
    ) -> SegmentationTable:
        """Validates a data frame.

        Args:
            frame: the columns named at the head of this module.
            folder: where relative paths start; they may not leave it. Absolute paths are taken as they are.
            labels: names of the structures; default: the values that are found.
            voxels: file with histograms of voxel probabilities.
            name: what to call the table in messages.

        Raises:
            DataError: with every fault found. Rows are named by their line in a CSV file with one header line.
        """
        faults: list[str] = []
        header = [str(column) for column in frame.columns]
        check_header(header, REQUIRED, faults)
        if len(frame) == 0 and not faults:
            faults.append("there are no rows below the header")
        if faults:
            raise table_fault(f"table of segmentations {name!r}", faults)
        text = {column: text_of(frame[column]) for column in REQUIRED}
        single = np.full(len(frame), ONLY_SEED, dtype=object)
        text["seed"] = text_of(frame["seed"]) if "seed" in header else single
        check_fields(text, [column for column in text if column != "reference"], faults)
        groups = {column: text_of(frame[column]) for column in header if column.startswith("group_")}
        for column, values in groups.items():
            bad = np.array([odd(value) for value in (column, *values)], dtype=bool)
            if bad.any():
                faults.append(f"{column!a} holds control characters")
        weight = read_weight(frame, faults)
        masks = _paths(text["mask"], "mask", Path(folder), faults)
        references = _paths(text["reference"], "reference", Path(folder), faults)
        if not faults:
            check_repeats(codes(text["case"], text["model"], text["seed"]), faults)
            check_leaks(text["patient"], text["split"], text["domain"], faults)
            constant = ("patient", "site", "split", "domain", "reference")
            check_constant(text["case"], {column: text[column] for column in constant}, faults)
            check_pairs(
                codes(text["case"]), codes(text["domain"], text["split"]), text["model"], text["seed"], faults
            )
            _check_files(text["case"], masks, references, faults)
        if faults:
            raise table_fault(f"table of segmentations {name!r}", faults)
        return cls(
            case=text["case"],
            patient=text["patient"],
            split=text["split"],
            domain=text["domain"],
            site=text["site"],
            model=text["model"],
            seed=text["seed"],
            mask=tuple(path for path in masks if path is not None),
            reference=references,
            weight=weight,
            groups=groups,
            labels=labels,
            voxels=voxels,
        )

    @cached_property
    def cases(self) -> dict[str, Ints]:
        """Rows of each case, cases in the order of their first row."""
        rows: dict[str, list[int]] = {}
        for row, case in enumerate(self.case.tolist()):
            rows.setdefault(case, []).append(row)
        return {case: np.array(found, dtype=np.int64) for case, found in rows.items()}


def _paths(values: Strings, column: str, folder: Path, faults: list[str]) -> tuple[Path | None, ...]:
    """The paths of the files; a relative path must not leave the table's folder."""
    found: list[Path | None] = []
    leaving = np.zeros(len(values), dtype=bool)
    for row, value in enumerate(values.tolist()):
        if not value:
            found.append(None)
            continue
        absolute = Path(value).is_absolute()
        parts = PureWindowsPath(value).parts if "\\" in value else PurePosixPath(value).parts
        depth = 0
        for part in parts if not absolute else ():
            depth += -1 if part == ".." else 1
            leaving[row] |= depth < 0
        leaving[row] |= "\0" in value
        found.append(Path(value) if absolute else folder / Path(*parts))
    if leaving.any():
        faults.append(
            f"{column} leaves the table's folder at {lines(leaving)}: keep the files below it, or give full paths"
        )
    return tuple(found)


def _check_files(
    case: Strings, masks: tuple[Path | None, ...], references: tuple[Path | None, ...], faults: list[str]
) -> None:
    """Reads every header once; rows with the same fault are named together."""
    headers: dict[Path, LabelHeader | str] = {}
    for path in (*masks, *references):
        if path is not None and path not in headers:
            try:
                headers[path] = read_label_header(path)
            except MaskError as error:
                headers[path] = error.reason
    found: dict[str, list[int]] = {}
    first: dict[str, LabelHeader] = {}
    for row, own in enumerate(zip(case.tolist(), masks, references, strict=True)):
        name, mask, reference = own
        target = headers[reference] if reference is not None else None
        if isinstance(target, str):
            found.setdefault(f"the reference {target}", []).append(row)
        called = headers[mask] if mask is not None else None
        if isinstance(called, str):
            found.setdefault(f"the mask {called}", []).append(row)
        if not isinstance(called, LabelHeader):
            continue
        # Without a reference the masks of the models are held against each other: one case is one scan.
        expected = target if isinstance(target, LabelHeader) else first.setdefault(name, called)
        gap = called.differs(expected)
        if gap:
            where = "its reference" if target is not None else "the case's first mask"
            found.setdefault(f"the mask {gap}, unlike {where}", []).append(row)
    faults.extend(f"{what} at {lines(np.array(rows))}" for what, rows in found.items())


def find_labels(reference: Iterable[int], called: Iterable[int]) -> tuple[LabelMap, tuple[str, ...]]:
    """Names for values that no `labels.json` names: `foreground` for one value, else `label_<value>`.

    Args:
        reference: values that the references hold.
        called: values that the models' masks hold.

    Returns:
        The names, and remarks about values that stand on one side only.

    Raises:
        DataError: no value but 0 anywhere, or more values than structures are supported.
    """
    known, made = set(reference) - {0}, set(called) - {0}
    values = sorted(known | made)
    if not values:
        raise DataError(
            "All masks and references hold the value 0 alone: there is no structure to measure. Name the structures "
            f"and their values in {FILE_NAME} beside the table."
        )
    warnings = []
    if known and made - known:
        shown = ", ".join(map(str, sorted(made - known)[:5]))
        warnings.append(
            f"Masks hold values that no reference holds ({shown}): each counts as a structure of its own. If they "
            f"mean a structure of the references, give both values in {FILE_NAME}."
        )
    try:
        if len(values) == 1:
            return LabelMap({"foreground": (values[0],)}), tuple(warnings)
        return LabelMap({f"label_{value}": (value,) for value in values}), tuple(warnings)
    except ConfigError as error:
        raise DataError(f"The masks hold {len(values)} values. {error}") from None
