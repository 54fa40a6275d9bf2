"""Calibration of voxel probabilities on a group of cases, from the histograms beside a table of segmentations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from medtl.evaluation.engine.sample import Key
from medtl.evaluation.metrics.calibration import BINS, MAX_LOG_TEMPERATURE
from medtl.evaluation.metrics.voxels import MARGIN, VoxelStage, band_name, fit_voxel_temperature
from medtl.evaluation.results import Curve
from medtl.evaluation.statistics.arrays import Floats, Ints, sum_by_patient

if TYPE_CHECKING:
    import pandas as pd

    from medtl.evaluation.engine.segsample import SegGroup
    from medtl.evaluation.tables.voxels import VoxelTable

CURVE_REPLICATES = 500
MEASURES = {"nll": "voxel_nll", "brier": "voxel_brier", "ece": "voxel_ece"}
Run = tuple[str, str, str]
"""Model, training seed, structure."""


def band_of(voxels: VoxelTable, unit: str) -> str:
    """The voxels that count, in words."""
    return band_name(MARGIN if voxels.margin is None else voxels.margin, unit)


def fit_run(voxels: VoxelTable, run: Run, cases: pd.Series[float]) -> tuple[float | None, str, int]:
    """The temperature of a run on some cases, its status, and the number of cases.

    Args:
        voxels: the histograms.
        run: model, training seed and structure.
        cases: weights by name of the case.
    """
    n, k = voxels.stack(*run, [str(case) for case in cases.index])
    number = int((n.sum(axis=1) > 0).sum())
    if number == 0:
        return None, "no_validation", 0
    if not 0 < k.sum() < n.sum():
        return None, "one_class", number
    temperature = fit_voxel_temperature(n, k, np.asarray(cases, dtype=np.float64))
    at_bound = abs(np.log(temperature)) > MAX_LOG_TEMPERATURE - 1e-3
    return temperature, "at_bound" if at_bound else "fitted", number


def sums_on(
    voxels: VoxelTable, group: SegGroup, temperatures: Mapping[Run, float | None]
) -> dict[Run, VoxelSums]:
    """What every model, seed and structure needs on one group of cases; runs without voxels are left out."""
    out = {}
    for run, temperature in temperatures.items():
        n, k = voxels.stack(*run, [str(case) for case in group.case])
        if n.any():
            out[run] = VoxelSums(group, n, k, temperature)
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
        yield Curve(
            "reliability",
            _floats(predicted[filled] / n[filled]),
            _floats(observed),
            _floats(lo),
            _floats(hi),
            cls=structure,
            stage=stage,
            kind="voxel",
            histogram=_floats(n / n.sum()),
        )


def _floats(values: Floats) -> tuple[float, ...]:
    return tuple(float(v) for v in np.round(values, 6))
