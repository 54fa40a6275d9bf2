"""The engine's part for segmentation: every metric of a model's masks on a group of cases.

Values of cases become sums by patient, so that a resample of patients is one matrix product.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from medtl.errors import DataError
from medtl.evaluation.engine.groups import (
    Columns,
    Group,
    Measured,
    Resampling,
    Run,
    Runs,
    Task,
    groups,
    means,
    resample,
)
from medtl.evaluation.engine.voxel_sums import VoxelSums, fit_run, voxel_curves
from medtl.evaluation.metrics.empty import MASK_STATUSES
from medtl.evaluation.metrics.metric import Key, MaskMetric, mean_over_cases
from medtl.evaluation.metrics.registry import MEASURES
from medtl.evaluation.results import Block, CaseValues, Curve, SegmentationRules, Settings, WorstCase
from medtl.evaluation.statistics.arrays import Floats, Ints, sum_by_patient
from medtl.evaluation.statistics.estimate import finite
from medtl.evaluation.statistics.resample import Support, patient_counts
from medtl.evaluation.tables.rows import seed_order

if TYPE_CHECKING:
    import pandas as pd

    from medtl.evaluation.tables.voxels import VoxelTable

CASE_COLUMNS = ("dice", "hd95", "nsd", "volume_reference", "volume_predicted")
"""Columns that the results keep of single cases."""
NUM_WORST = 5
"""Worst cases of each model that the results list."""
SPATIAL = ("distance", "tolerance", "volume")
"""Units of metrics that depend on the size of a voxel."""


class Segmented(Task):
    """Measured cases, with the temperatures that were fitted on the source.

    Args:
        frame: one row per case, model, training seed and structure, as `measure_cases` returns it; and `weight`, if
            cases weigh differently.
        rules: what the numbers rest on.
        voxels: histograms of voxel probabilities, or None.
        resampling: of the patients.

    Raises:
        DataError: no case, or a column that is missing.
    """

    kind = "segmentation"
    name = "segmentation"

    def __init__(
        self, frame: pd.DataFrame, rules: SegmentationRules, voxels: VoxelTable | None, resampling: Resampling
    ) -> None:
        if len(frame) == 0:
            raise DataError("The table holds no segmented case.")
        needed = {m.column for m in _metrics() if m.from_masks is not None} | set(CASE_COLUMNS)
        if lacking := sorted(needed - set(frame.columns)):
            raise DataError(f"The measured cases lack the columns {', '.join(lacking)}.")
        frame, self.segmentation = _one_unit(frame, rules)
        self.frame = frame.assign(seed=frame.seed.astype(str)).reset_index(drop=True)
        self.resampling, self._voxels = resampling, voxels
        self.classes = tuple(frame.attrs.get("structures") or frame.structure.unique().tolist())
        self.models = tuple(frame.model.unique().tolist())
        self.patients_known = not bool((frame.case == frame.patient).all())
        self._status = frame.status.to_numpy()
        columns = {c: frame[c].to_numpy(dtype=np.float64) for c in sorted(needed)}
        self._columns = columns | {
            m.column: m.from_columns(columns) for m in _metrics() if m.from_columns is not None
        }
        fitted = self._fit_temperatures()
        self.settings = tuple(
            Settings(run.model, run.seed, run.part, *found, None, "most_probable_class")
            for run, found in fitted.items()
        )
        self._temperatures = {run: temperature for run, (temperature, _, _) in fitted.items()}

    def _fit_temperatures(self) -> dict[Run, tuple[float | None, str, int]]:
        """Temperature, its status and the number of cases of each run, from the source's validation cases."""
        frame = self.frame
        held = frame[(frame.domain == "source") & frame.split.isin(("calibration", "validation"))]
        if (held.split == "calibration").any():
            held = held[held.split == "calibration"]
        first = held.drop_duplicates("case")
        weights = _weights(first)
        seeds = {m: sorted(frame.seed[frame.model == m].unique(), key=seed_order) for m in self.models}
        runs = [Run(m, s, c) for m in self.models for s in seeds[m] for c in self.classes]
        if self._voxels is None:
            return dict.fromkeys(runs, (None, "no_probabilities", 0))
        return {run: fit_run(self._voxels, run, first.case.to_list(), weights) for run in runs}

    def groups(self) -> Iterator[Group]:
        """The groups of cases; structures are parts of the same cases."""
        f = self.frame
        case, patient, domain, split, site, model, seed, part = (
            f[c].to_numpy(dtype=object)
            for c in ("case", "patient", "domain", "split", "site", "model", "seed", "structure")
        )
        return groups(Columns(case, patient, domain, split, site, _weights(f), model, seed, part))

    def measure(self, group: Group, model: str) -> Runs:
        """Every number of one model on one group."""
        parts = {
            s: [self._part(group, run) for c in self.classes if (run := Run(model, s, c)) in group.rows]
            for s in group.seeds(model)
        }

        def at(seed: str, counts: Floats) -> Measured:
            return {key: v for part in parts[seed] for key, v in part.at(counts).items()}

        def averaged(seed: str, counts: Floats) -> Measured:
            return _averaged(at(seed, counts), wholes)

        once = {s: at(s, np.ones((1, group.num_patients))) for s in parts}
        # What one seed lacks (no value in any case) is left out: the other seeds' mean is not the model's.
        keys = [k for k in next(iter(once.values())) if all(k in found for found in once.values())]
        wholes = self._wholes(keys)
        per_seed = {
            s: {k: float(v[0]) for k, v in _averaged(found, wholes).items()} for s, found in once.items()
        }
        replicates = resample({s: partial(averaged, s) for s in parts}, self._counts(group))
        support = {k: _support(group, list(parts.values()), k) for k in keys}
        support |= {
            k: max((support[p] for p in own), key=lambda s: s.num_patients) for k, own in wholes.items()
        }
        return Runs(
            value=means(per_seed, (*keys, *wholes)),
            replicates=replicates,
            per_seed=per_seed,
            support=support,
            block=self._block(group, model, parts),
            status={k: "structure_missing" for k, own in wholes.items() if len(own) < len(self.classes)},
            medians=self._medians(group, model, keys),
        )

    def worst(self, models: Sequence[str]) -> Iterator[WorstCase]:
        """The cases with the lowest Dice of any structure (mean over seeds), a few for each model, worst first."""
        known = self.frame[(self.frame.split == "test") & self.frame.dice.notna()]
        for domain in ("target", "source"):
            found = known[known.domain == domain]
            if len(found):
                break
        for model in models:
            own = found[found.model == model]
            mean = own.groupby(["case", "structure"], sort=True).dice.mean().sort_values(kind="stable")
            worst = mean[~mean.index.get_level_values("case").duplicated()].head(NUM_WORST)
            for case, structure in worst.index:
                rows = own[(own.case == case) & (own.structure == structure)]
                row = rows.loc[rows.dice.idxmin()]
                numbers = {c: finite(float(row[c])) for c in CASE_COLUMNS}
                yield WorstCase(
                    model, row.seed, str(case), row.site, row.domain, structure, row.status, **numbers
                )

    def _part(self, group: Group, run: Run) -> _Part:
        """A run on a group, prepared for resamples."""
        rows = group.rows[run]
        voxels = None
        if self._voxels is not None:
            n, k = self._voxels.stack(*run, [str(case) for case in group.case])
            voxels = VoxelSums(group, n, k, self._temperatures[run]) if n.any() else None
        values = {m: self._columns[m.column][rows] for m in _metrics()}
        return _Part(group, run.part, values, voxels)

    def _counts(self, group: Group, replicates: int | None = None) -> Iterator[Floats]:
        """Resamples of the patients, within their site."""
        stratum = np.zeros(group.num_patients, dtype=np.int64)
        stratum[group.patient] = group.site_index
        draw = group.draw_seed(self.resampling.seed, "segmentation")
        return patient_counts(stratum, replicates or self.resampling.replicates, draw, len(group.case))

    def _wholes(self, keys: Sequence[Key]) -> dict[Key, list[Key]]:
        """The means over structures, and what each is the mean of."""
        if len(self.classes) < 2:
            return {}
        parts: dict[Key, list[Key]] = {}
        for key in keys:
            metric = MEASURES[key.name]
            if not isinstance(metric, MaskMetric) or metric.over_structures:
                parts.setdefault(replace(key, cls=None), []).append(key)
        return parts

    def _seen(self, group: Group, model: str, structure: str) -> list[Ints]:
        """The rows of each training seed."""
        return [group.rows[r] for s in group.seeds(model) if (r := Run(model, s, structure)) in group.rows]

    def _mean_over_seeds(self, group: Group, model: str, structure: str, column: str) -> Floats:
        """(n,) a column of each case, mean over the seeds that have a value; nan where none has."""
        stacked = np.stack([self._columns[column][rows] for rows in self._seen(group, model, structure)])
        number = np.isfinite(stacked).sum(axis=0)
        total = np.nansum(stacked, axis=0)
        return np.asarray(np.divide(total, number, out=np.full(len(total), np.nan), where=number > 0))

    def _medians(
        self, group: Group, model: str, keys: Sequence[Key]
    ) -> dict[Key, tuple[float, dict[str, float | None]]]:
        """Medians as a description: their bootstrap intervals do not hold what they promise."""
        out = {}
        for key in keys:
            metric = MEASURES[key.name]
            if not isinstance(metric, MaskMetric) or not metric.median:
                continue
            structure, column = str(key.cls), metric.column
            values = self._mean_over_seeds(group, model, structure, column)
            per_seed: dict[str, float | None] = {}
            for s in group.seeds(model):
                own = self._columns[column][group.rows[Run(model, s, structure)]]
                per_seed[s] = _median(own)
            out[key] = (float(np.median(values[np.isfinite(values)])), per_seed)
        return out

    def _block(self, group: Group, model: str, parts: Mapping[str, Sequence[_Part]]) -> Block:
        statuses, held, patients = {}, {}, {}
        judged = np.zeros(len(group.case), dtype=bool)
        for c in self.classes:
            seen = [self._status[rows] for rows in self._seen(group, model, c)]
            statuses[c] = {
                status: int(sum((own == status).sum() for own in seen)) for status in MASK_STATUSES
            }
            present = (seen[0] == "ok") | (seen[0] == "pred_empty")
            held[c], patients[c] = int(present.sum()), len(np.unique(group.patient[present]))
            judged |= seen[0] != "no_reference"
        curves: list[Curve] = []
        for c in self.classes if group.whole else ():
            own = [p.voxels for of_seed in parts.values() for p in of_seed if p.structure == c and p.voxels]
            if own:
                curves += voxel_curves(own, partial(self._counts, group), c, self.resampling)
        return group.block(
            model,
            num_labelled=int(judged.sum()),
            class_cases=held,
            class_patients=patients,
            curves=tuple(curves),
            statuses=statuses,
            cases=tuple(self._case_values(group, model, c) for c in self.classes) if group.whole else (),
        )

    def _case_values(self, group: Group, model: str, structure: str) -> CaseValues:
        values = {c: self._mean_over_seeds(group, model, structure, c) for c in CASE_COLUMNS}
        return CaseValues(
            structure, {c: tuple(finite(float(f"{x:.5g}")) for x in v) for c, v in values.items()}
        )


class _Part:
    """Every metric of one model, training seed and structure, on any resample.

    Args:
        group: the cases.
        structure: name of the structure.
        values: (n,) by metric; nan for a case without a value.
        voxels: calibration of the cases' voxels, or None.
    """

    def __init__(
        self, group: Group, structure: str, values: Mapping[MaskMetric, Floats], voxels: VoxelSums | None
    ) -> None:
        self.structure, self.voxels = structure, voxels
        self.values = {m: v for m, v in values.items() if np.isfinite(v).any()}
        columns: list[Floats] = []
        self._starts: list[tuple[MaskMetric, int]] = []
        for metric, v in self.values.items():
            self._starts.append((metric, len(columns)))
            has, number = np.isfinite(v), np.nan_to_num(v)
            weight = np.where(has, group.weight, 0.0)
            columns += [weight, weight * number]
            if metric.over_cases is not mean_over_cases:
                columns += [weight * number**2, has.astype(float)]
        stacked = np.stack(columns, axis=1) if columns else np.zeros((len(group.case), 0))
        self._sums = sum_by_patient(stacked, group.patient, group.num_patients)

    def at(self, counts: Floats) -> Measured:
        """Every metric (b,) on resamples (b, P); nan where a resample has no case with a value."""
        sums = (counts @ self._sums).T
        out: Measured = {}
        with np.errstate(invalid="ignore", divide="ignore"):
            for metric, at in self._starts:
                value = mean = sums[at + 1] / sums[at]
                if metric.over_cases is not mean_over_cases:
                    number = sums[at + 3]
                    variance = np.maximum(sums[at + 2] / sums[at] - mean**2, 0.0) * number / (number - 1)
                    value = metric.over_cases(mean, np.sqrt(np.where(number > 1, variance, np.nan)))
                out[Key(metric.name, self.structure)] = value
        return out if self.voxels is None else out | self.voxels.at(counts, self.structure)

    def has(self, key: Key) -> Floats:
        """(n,) 0 for the cases that have a value, else nan."""
        metric = MEASURES[key.name]
        if not isinstance(metric, MaskMetric):
            assert self.voxels is not None
            return self.voxels.has
        return np.where(np.isfinite(self.values[metric]), 0.0, np.nan)


def _metrics() -> list[MaskMetric]:
    return [metric for metric in MEASURES.values() if isinstance(metric, MaskMetric)]


def _weights(frame: pd.DataFrame) -> Floats:
    return frame.weight.to_numpy(dtype=np.float64) if "weight" in frame else np.ones(len(frame))


def _median(values: Floats) -> float | None:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else None


def _averaged(found: Measured, wholes: Mapping[Key, Sequence[Key]]) -> Measured:
    return found | {whole: np.mean([found[k] for k in own], axis=0) for whole, own in wholes.items()}


def _support(group: Group, parts: Sequence[Sequence[_Part]], key: Key) -> Support:
    """The support of a mean over cases: a case counts if any training seed gave it a value."""
    own = [part.has(key) for of_seed in parts for part in of_seed if part.structure == key.cls]
    has = np.isfinite(np.stack(own)).any(axis=0)
    patients = len(np.unique(group.patient[has]))
    return Support(int(has.sum()), patients, None, max(patients, 1), patients, few="few_patients")


def _one_unit(frame: pd.DataFrame, rules: SegmentationRules) -> tuple[pd.DataFrame, SegmentationRules]:
    """Distances in mm and in pixels have no common mean: with both, those in pixels are left out and counted."""
    pixels = frame.unit == "px"
    if not pixels.any() or pixels.all():
        return frame, rules
    frame = frame.copy()
    lost = {m.column for m in _metrics() if m.unit in SPATIAL} | {"hd", "volume_predicted"}
    frame.loc[pixels, [c for c in frame if c in lost]] = np.nan
    return frame, replace(rules, mixed_units=int(frame.case[pixels].nunique()))
