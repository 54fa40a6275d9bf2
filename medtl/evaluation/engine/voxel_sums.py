"""Calibration of voxel probabilities on a group of cases, from the histograms beside a table of segmentations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from medtl.evaluation.engine.groups import CURVE_REPLICATES, Group, Measured, Resampling, Run, band, points
from medtl.evaluation.metrics.calibration import BINS, MAX_LOG_TEMPERATURE
from medtl.evaluation.metrics.metric import Key, VoxelMetric
from medtl.evaluation.metrics.registry import MEASURES
from medtl.evaluation.metrics.voxels import MARGIN, VoxelStage, band_name, fit_voxel_temperature
from medtl.evaluation.results import Curve
from medtl.evaluation.statistics.arrays import Floats, Ints, divide, sum_by_patient

if TYPE_CHECKING:
    from medtl.evaluation.tables.voxels import VoxelTable


def band_of(voxels: VoxelTable, unit: str) -> str:
    """The voxels that count, in words."""
    return band_name(MARGIN if voxels.margin is None else voxels.margin, unit)


def fit_run(
    voxels: VoxelTable, run: Run, cases: Sequence[str], weights: Floats
) -> tuple[float | None, str, int]:
    """The temperature of a run on some cases, its status, and the number of cases.

    Args:
        voxels: the histograms.
        run: model, training seed and structure.
        cases: names of the cases.
        weights: (n,) of the cases.
    """
    n, k = voxels.stack(*run, [str(case) for case in cases])
    number = int((n.sum(axis=1) > 0).sum())
    if number == 0:
        return None, "no_validation", 0
    if not 0 < k.sum() < n.sum():
        return None, "one_class", number
    temperature = fit_voxel_temperature(n, k, weights)
    at_bound = abs(np.log(temperature)) > MAX_LOG_TEMPERATURE - 1e-3
    return temperature, "at_bound" if at_bound else "fitted", number


class VoxelSums:
    """Calibration of one model, seed and structure on one group of cases, before and after its temperature.

    Args:
        group: the cases.
        n: (n, 256) voxels of each case in each bin.
        k: (n, 256) those of the structure.
        temperature: of the run, or None.
    """

    def __init__(self, group: Group, n: Ints, k: Ints, temperature: float | None) -> None:
        self.has: Floats = np.where(n.sum(axis=1) > 0, 0.0, np.nan)
        stages = {"before": 1.0} | ({} if temperature is None else {"after": temperature})
        self._stages = {
            name: VoxelStage(n, k, group.patient, group.num_patients, group.weight, t)
            for name, t in stages.items()
        }
        self._num_patients = group.num_patients

    def at(self, counts: Floats, structure: str) -> Measured:
        """Every metric (b,) on resamples of the patients (b, P)."""
        return {
            Key(metric.name, structure, stage): metric.from_voxels(prepared, counts)
            for stage, prepared in self._stages.items()
            for metric in MEASURES.values()
            if isinstance(metric, VoxelMetric)
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
    parts: Sequence[VoxelSums],
    counts: Callable[[int], Iterator[Floats]],
    structure: str,
    resampling: Resampling,
) -> Iterator[Curve]:
    """Observed against predicted share in ten bins, with a band; the voxels of several seeds are pooled.

    Args:
        parts: of each training seed.
        counts: so many resamples (b, P) of the patients, block by block.
        structure: name of the structure.
        resampling: how patients are resampled.
    """
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
        for block in counts(min(CURVE_REPLICATES, resampling.replicates)):
            own_n, own_k, _ = np.split(block @ sums, 3, axis=1)
            drawn.append(divide(own_k[:, filled], own_n[:, filled]))
        lo, hi = band(observed, np.concatenate(drawn), resampling.level)
        yield Curve(
            "reliability",
            points(predicted[filled] / n[filled]),
            points(observed),
            lo,
            hi,
            cls=structure,
            stage=stage,
            kind="voxel",
            histogram=points(n / n.sum()),
        )
