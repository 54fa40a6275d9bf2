"""Calibration of voxel probabilities on a group of cases, from the histograms beside a table of segmentations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medtl.errors import DataError
from medtl.evaluation._arrays import Floats, Ints, sum_by_patient
from medtl.evaluation.calibration import BINS, MAX_LOG_TEMPERATURE
from medtl.evaluation.results import Curve
from medtl.evaluation.sample import Key
from medtl.evaluation.voxels import MARGIN, NUM_BINS, VoxelStage, band_name, fit_voxel_temperature

if TYPE_CHECKING:
    import pandas as pd

    from medtl.evaluation._segsample import SegGroup

COLUMNS = ("case", "model", "structure", "bin", "n", "k")
CURVE_REPLICATES = 500
MEASURES = {"nll": "voxel_nll", "brier": "voxel_brier", "ece": "voxel_ece"}
Run = tuple[str, str, str]
"""Model, training seed, structure."""


class Voxels:
    """Histograms of voxel probabilities of all cases, by model, training seed and structure.

    Args:
        frame: columns `case, model, seed, structure, bin, n, k`: of the case's n voxels in a bin of log odds, k belong
            to the structure; and `margin` of the band, if it is not the default.
        name: what to call it in messages.

    Raises:
        DataError: columns are absent, or counts that are none.
    """

    def __init__(self, frame: pd.DataFrame, name: str = "voxels") -> None:
        absent = [column for column in COLUMNS if column not in frame]
        if absent:
            raise DataError(
                f"The voxel histograms {name!r} lack {', '.join(absent)}. Expected: {', '.join(COLUMNS)} and seed, one "
                "row a bin, as voxel_histogram makes them. Or remove the file, and calibration is left out."
            )
        numbers = frame[["bin", "n", "k"]].to_numpy(dtype=np.float64, na_value=np.nan)
        bins, n, k = numbers.T
        good = (
            (bins >= 0) & (bins < NUM_BINS) & (k >= 0) & (n >= k) & (numbers == np.round(numbers)).all(axis=1)
        )
        if not good.all():
            raise DataError(
                f"The voxel histograms {name!r} are at fault in {int((~good).sum())} row(s), first at line "
                f"{int(np.flatnonzero(~good)[0]) + 2}: expected whole numbers, bin from 0 to {NUM_BINS - 1} and k of 0 "
                "to n. Or remove the file, and calibration is left out."
            )
        margins = frame.margin.unique() if "margin" in frame else [MARGIN]
        self.margin = float(margins[0]) if len(margins) == 1 else None
        self._parts: dict[Run, tuple[dict[str, int], Ints, Ints]] = {}
        keys = [frame.model.astype(str), frame.seed.astype(str), frame.structure.astype(str)]
        for key, part in frame.assign(_row=np.arange(len(frame))).groupby(keys, sort=False):
            names = {case: row for row, case in enumerate(dict.fromkeys(part.case.astype(str)))}
            # The last row stays empty: it stands for cases without voxels.
            tables = np.zeros((2, len(names) + 1, NUM_BINS), dtype=np.int64)
            place = part.case.astype(str).map(names).to_numpy(), bins[part._row].astype(np.int64)
            for table, column in zip(tables, (n, k), strict=True):
                np.add.at(table, place, column[part._row].astype(np.int64))
            self._parts[key] = (names, tables[0], tables[1])

    @classmethod
    def read(cls, path: Path) -> Voxels:
        """Reads `voxels.csv`.

        Raises:
            DataError: it cannot be read, or what the class raises.
        """
        import pandas as pd

        from medtl.evaluation.table import ONLY_SEED

        try:
            frame = pd.read_csv(path, dtype={c: str for c in ("case", "model", "seed", "structure")})
        except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError, OSError) as error:
            raise DataError(
                f"The voxel histograms {path.name!r} cannot be read as CSV ({type(error).__name__}). Write them again, or "
                "remove the file, and calibration is left out."
            ) from None
        if "seed" not in frame:
            frame["seed"] = ONLY_SEED
        for column in ("bin", "n", "k"):
            if column in frame:
                frame[column] = pd.to_numeric(frame[column], errors="coerce")
        return cls(frame, path.name)

    def band(self, unit: str) -> str:
        """The voxels that count, in words."""
        return (
            band_name(self.margin, unit) if self.margin is not None else "voxels in bands of several widths"
        )

    def _tables(self, run: Run, cases: Sequence[str]) -> tuple[Ints, Ints] | None:
        """Histograms (C, 256) of these cases: voxels, and those of the structure; zeros for cases without."""
        if run not in self._parts:
            return None
        names, n, k = self._parts[run]
        rows = np.array([names.get(case, len(names)) for case in cases], dtype=np.int64)
        return (n[rows], k[rows]) if (rows < len(names)).any() else None

    def fit(self, run: Run, cases: pd.Series[float]) -> tuple[float | None, str, int]:
        """The temperature of a run on some cases, its status, and the number of cases.

        Args:
            run: model, training seed and structure.
            cases: weights by name of the case.
        """
        found = self._tables(run, [str(case) for case in cases.index])
        if found is None:
            return None, "no_validation", 0
        n, k = found
        number = int((n.sum(axis=1) > 0).sum())
        try:
            temperature = fit_voxel_temperature(n, k, cases.to_numpy(dtype=np.float64))
        except DataError:
            return None, "one_class", number
        at_bound = abs(np.log(temperature)) > MAX_LOG_TEMPERATURE - 1e-3
        return temperature, "at_bound" if at_bound else "fitted", number

    def on(self, group: SegGroup, temperatures: Mapping[Run, float | None]) -> dict[Run, VoxelSums]:
        """What every model, seed and structure needs on one group of cases."""
        out = {}
        for run in self._parts:
            found = self._tables(run, [str(case) for case in group.case])
            if found is not None:
                out[run] = VoxelSums(group, *found, temperatures.get(run))
        return out


class VoxelSums:
    """Calibration of one model, seed and structure on one group of cases, before and after its temperature."""

    def __init__(self, group: SegGroup, n: Ints, k: Ints, temperature: float | None) -> None:
        self.has: Floats = np.where(n.sum(axis=1) > 0, 0.0, np.nan)
        stages = {"before": 1.0} | ({} if temperature is None else {"after": temperature})
        self._stages = {
            name: VoxelStage(n, k, group.patient, group.num_patients, group.weight, t)
            for name, t in stages.items()
        }
        self._num_patients = group.num_patients

    def at(self, counts: Floats, structure: str) -> dict[Key, Floats]:
        """Every measure (b,) on resamples of the patients (b, P)."""
        return {
            Key(MEASURES[name], structure, stage): values
            for stage, prepared in self._stages.items()
            for name, values in prepared.measures(counts).items()
            if name in MEASURES
        }

    def bins(self, stage: str) -> Floats | None:
        """(P, 30) share of voxels, of those of the structure, and summed probability, in ten equal bins."""
        if stage not in self._stages:
            return None
        found = self._stages[stage]
        inside = np.eye(BINS)[np.minimum((found.predicted * BINS).astype(np.int64), BINS - 1)]
        columns = [
            inside * x[:, None]
            for x in (found.share, found.share * found.observed, found.share * found.predicted)
        ]
        return sum_by_patient(np.concatenate(columns, axis=1), found.patient, self._num_patients)


def voxel_curves(
    parts: Sequence[VoxelSums], group: SegGroup, structure: str, level: float, replicates: int, seed: int
) -> Iterator[Curve]:
    """Observed against predicted share in ten bins, with a band; the voxels of several seeds are pooled."""
    for stage in ("before", "after"):
        found = [part.bins(stage) for part in parts]
        own = [x for x in found if x is not None]
        if not own or len(own) < len(found):
            continue
        sums = np.sum(own, axis=0)
        n, k, predicted = np.split(sums.sum(axis=0), 3)
        filled = n > 1e-6 * n.sum()
        observed = k[filled] / n[filled]
        drawn = []
        for counts in group.counts(min(CURVE_REPLICATES, replicates), seed):
            own_n, own_k, _ = np.split(counts @ sums, 3, axis=1)
            own_n, own_k = own_n[:, filled], own_k[:, filled]
            drawn.append(np.divide(own_k, own_n, out=np.tile(observed, (len(own_n), 1)), where=own_n > 0))
        lo, hi = np.quantile(np.concatenate(drawn), [(1 - level) / 2, (1 + level) / 2], axis=0)
        x = predicted[filled] / n[filled]
        points = [
            tuple(float(v) for v in np.round(values, 6)) for values in (x, observed, lo, hi, n / n.sum())
        ]
        yield Curve("reliability", *points[:4], cls=structure, stage=stage, kind="voxel", histogram=points[4])
