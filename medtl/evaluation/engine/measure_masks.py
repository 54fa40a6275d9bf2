"""Measures of every case, structure by structure, from the masks of a table.

A value never travels without its status. Where a structure is missing from the reference, from the model's mask or
from both, a named `EmptyPolicy` says what that counts, and the counts can be shown; nothing drops out of a mean in
silence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medtl.errors import ConfigError, DataError, near_matches
from medtl.evaluation.metrics.empty import EmptyPolicy
from medtl.evaluation.metrics.metric import MaskMetric
from medtl.evaluation.metrics.pair import MaskPair, Scene
from medtl.evaluation.metrics.registry import MEASURES
from medtl.evaluation.tables.masks import MaskError, read_label_map
from medtl.evaluation.tables.rows import lines
from medtl.evaluation.tables.segmentations import SegmentationTable, find_labels
from medtl.labelmap import FILE_NAME, VOID, LabelMap
from medtl.parallel import map_items

if TYPE_CHECKING:
    import pandas as pd

TOLERANCE = 2.0
"""Default tolerance of the surface Dice: 2 mm, or 2 pixels for images without a pixel size."""

METRICS = tuple(m for m in MEASURES.values() if isinstance(m, MaskMetric) and m.from_masks is not None)
"""The metrics that are measured here, case by case."""
COLUMNS = (
    *("case", "patient", "site", "domain", "split", "model", "seed", "structure", "status"),
    *(metric.column for metric in METRICS),
    *("hd", "volume_predicted", "unit", "tolerance", "weight"),
)
"""Columns of `measure_cases`; columns `group_*` of the table follow."""


def measure_cases(
    table: SegmentationTable,
    labels: LabelMap | None = None,
    *,
    tolerance: float | Mapping[str, float] = TOLERANCE,
    policy: EmptyPolicy | None = None,
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Measures every mask of a table against its reference.

    Void voxels of the reference, and those whose value is unknown to `labels`, are background in both masks: they
    count for no volume and no overlap, and a structure that runs into them ends there in both, so that its surface at
    that place is at distance 0. A void voxel of a model's mask is background: a model cannot void what it does not
    know.

    Args:
        table: the masks.
        labels: names of the structures; default: those of the table, else the values that are found.
        tolerance: of the surface Dice, in the unit of the case (mm, or pixels for images without a pixel size); one
            number, or one by structure (others have the default).
        policy: what missing structures count (default: `EmptyPolicy()`).
        jobs: cases measured at the same time by joblib, in threads unless a `joblib.parallel_config` says otherwise;
            -1 for all cores.
        progress: called with the number of cases done and their total.

    Returns:
        One row per case, model, seed and structure, in the order of the table; `COLUMNS` and `group_*`. Distances are
        in `unit` (`mm` or `px`); volumes in ml, or in pixels where the unit is `px`. `frame.attrs` holds `structures`,
        `tolerance` (by structure), `policy` (in words) and `warnings`.

    Raises:
        ConfigError: a tolerance below 0 or for a structure that there is not.
        DataError: masks that cannot be read or hold values without a name; all of them are named at once.
    """
    import pandas as pd

    labels = labels or table.labels
    warnings = list(table.warnings)
    if labels is None:
        labels, found = _labels_of(table, jobs)
        warnings.extend(found)
    limits = _tolerances(tolerance, labels)
    cases = [
        _Case(
            rows=tuple(int(row) for row in rows),
            reference=table.reference[rows[0]],
            masks=tuple(table.mask[row] for row in rows),
            labels=labels,
            limits=limits,
            policy=policy or EmptyPolicy(),
        )
        for rows in table.cases.values()
    ]
    done = map_items(_measure_case, cases, jobs=jobs, progress=progress)
    _raise([fault for outcome in done for fault in outcome.faults])
    numbers = {row: values for outcome in done for row, values in outcome.values.items()}
    records: list[dict[str, Any]] = []
    for row in range(len(table)):
        own = {name: getattr(table, name)[row] for name in COLUMNS[:7]}
        rest = {"weight": table.weight[row], **{name: values[row] for name, values in table.groups.items()}}
        records.extend({**own, **values, **rest} for values in numbers[row])
    frame = pd.DataFrame.from_records(records, columns=[*COLUMNS, *table.groups])
    unknown = [row for outcome in done for row in outcome.unknown]
    if unknown:
        warnings.append(
            f"References hold values that no structure names, at {lines(np.array(unknown))}: these voxels are not "
            "judged."
        )
    if frame["unit"].nunique() > 1:
        warnings.append(
            "Some cases have a voxel size and others have not: distances in mm and in pixels stand in one "
            "table and are not to be averaged."
        )
    frame.attrs = {
        "structures": tuple(labels.structures),
        "tolerance": limits,
        "policy": (policy or EmptyPolicy()).describe(),
        "warnings": tuple(warnings),
    }
    return frame


def _values_of(path: Path) -> set[int] | str:
    try:
        array = read_label_map(path).array
    except MaskError as error:
        return error.reason
    if array.dtype == np.uint8:
        return {int(v) for part in array for v in np.flatnonzero(np.bincount(part.ravel(), minlength=256))}
    return {int(v) for part in array for v in np.unique(part)}


def _labels_of(table: SegmentationTable, jobs: int) -> tuple[LabelMap, tuple[str, ...]]:
    """Names the values found; reads every file."""
    paths = list(dict.fromkeys(path for path in (*table.reference, *table.mask) if path is not None))
    values = dict(zip(paths, map_items(_values_of, paths, jobs=jobs), strict=True))
    sides: list[set[int]] = []
    faults: list[tuple[int, str]] = []
    for what, column in (("reference", table.reference), ("mask", table.mask)):
        side: set[int] = set()
        for row, path in enumerate(column):
            found = values[path] if path is not None else set()
            if isinstance(found, str):
                faults.append((row, f"the {what} {found}"))
            else:
                side |= found
        sides.append(side)
    _raise(faults)
    return find_labels(*sides)


def _tolerances(tolerance: float | Mapping[str, float], labels: LabelMap) -> dict[str, float]:
    named = tolerance if isinstance(tolerance, Mapping) else {}
    for name in named:
        if name not in labels.structures:
            raise ConfigError(
                f"There is a tolerance for {name!r}, which is no structure of the masks. "
                f"{near_matches(name, labels.structures)}"
            )
    default = TOLERANCE if isinstance(tolerance, Mapping) else tolerance
    limits = {name: float(named.get(name, default)) for name in labels.structures}
    for name, value in limits.items():
        if not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"The tolerance of {name!r} is {value:g}; expected mm (or pixels), 0 or more.")
    return limits


def _raise(faults: list[tuple[int, str]]) -> None:
    rows: dict[str, list[int]] = {}
    for row, reason in faults:
        rows.setdefault(reason, []).append(row)
    if rows:
        named = "; ".join(f"{reason}, at {lines(np.array(found))}" for reason, found in rows.items())
        raise DataError(f"The masks of the table cannot be measured: {named}.")


@dataclass(frozen=True)
class _Case:
    """One case of the table: its reference is read once for all models."""

    rows: tuple[int, ...]
    reference: Path | None
    masks: tuple[Path, ...]
    labels: LabelMap
    limits: Mapping[str, float]
    policy: EmptyPolicy


@dataclass(frozen=True)
class _Outcome:
    """Values by row of the table; rows and reasons of faults; rows whose reference holds unknown values."""

    values: dict[int, list[dict[str, Any]]]
    faults: tuple[tuple[int, str], ...] = ()
    unknown: tuple[int, ...] = ()


def _measure_case(case: _Case) -> _Outcome:
    """Measures the masks of all models on one case."""
    values: dict[int, list[dict[str, Any]]] = {}
    faults: list[tuple[int, str]] = []
    reference: Scene | None = None
    void: NDArray[np.bool_] | None = None
    unknown: tuple[int, ...] = ()
    if case.reference is not None:
        try:
            image = read_label_map(case.reference)
        except MaskError as error:
            return _Outcome({}, ((case.rows[0], f"the reference {error.reason}"),))
        classes, strange = _encode(image.array, case.labels)
        unknown = case.rows[:1] if strange else ()
        void = classes == VOID
        classes[void] = 0
        reference = Scene(classes, image.spacing, len(case.labels.structures))
    for row, path in zip(case.rows, case.masks, strict=True):
        try:
            image = read_label_map(path)
        except MaskError as error:
            faults.append((row, f"the mask {error.reason}"))
            continue
        classes, strange = _encode(image.array, case.labels)
        if strange:
            shown = ", ".join(f"{value} in {count:,} voxels" for value, count in list(strange.items())[:3])
            faults.append((row, f"the mask holds values that {FILE_NAME} does not name ({shown})"))
            continue
        if void is not None and void.shape != classes.shape:
            faults.append((row, "the mask has changed since the table was checked"))
            continue
        classes[classes == VOID] = 0
        if void is not None:
            classes[void] = 0
        # One voxel size for both: headers that differ in the last digits would tilt the surfaces.
        spacing = image.spacing if reference is None else reference.spacing
        called = Scene(classes, spacing, len(case.labels.structures))
        values[row] = [
            _measure(called, reference, index, name, case)
            for index, name in enumerate(case.labels.structures, 1)
        ]
    return _Outcome(values, tuple(faults), unknown)


def _measure(called: Scene, reference: Scene | None, index: int, name: str, case: _Case) -> dict[str, Any]:
    """One structure of one case."""
    tolerance = case.limits[name]
    out: dict[str, Any] = {
        "structure": name,
        "unit": "px" if called.spacing is None else "mm",
        "tolerance": tolerance,
        "volume_predicted": called.volume(called.size(index)),
    }
    if reference is None:
        nothing = dict.fromkeys((*(metric.column for metric in METRICS), "hd"), math.nan)
        return {**out, **nothing, "status": "no_reference"}
    pair = MaskPair((called, reference), index, tolerance)
    for metric in METRICS:
        assert metric.from_masks is not None
        if pair.status == "ok" or metric.empty == "defined":
            out[metric.column] = metric.from_masks(pair)
        else:
            out[metric.column] = case.policy.value(pair.status, metric.empty, pair.diagonal)
    ok = pair.status == "ok"
    out["hd"] = pair.distances.hd if ok else case.policy.value(pair.status, "distance", pair.diagonal)
    return {**out, "status": pair.status}


def _encode(stored: NDArray[Any], labels: LabelMap) -> tuple[NDArray[np.uint8], dict[int, int]]:
    """Class indices of stored values, and the values without a name with their numbers of voxels."""
    if stored.dtype == np.uint8:
        classes = labels.encode(np.arange(256, dtype=np.uint8))[stored]
    else:
        classes = labels.encode(stored)
    return classes, labels.unknown(stored[classes == VOID])
