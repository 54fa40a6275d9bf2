"""Segmented cases of one group as sums by patient, so that a resample of patients is one matrix product."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from medtl.evaluation.engine.sample import Key
from medtl.evaluation.engine.voxel_sums import MEASURES as VOXEL_MEASURES
from medtl.evaluation.engine.voxel_sums import VoxelSums
from medtl.evaluation.statistics.arrays import Floats, Ints, Strings, seed_from, sum_by_patient
from medtl.evaluation.statistics.resample import Support, patient_counts

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = {
    Key("dice"): "dice",
    Key("iou"): "iou",
    Key("nsd"): "nsd",
    Key("hd95"): "hd95",
    Key("assd"): "assd",
    Key("voxel_sensitivity"): "sensitivity",
    Key("voxel_precision"): "precision",
    Key("volume_bias"): "volume_difference",
    Key("volume_error"): "volume_absolute",
    Key("volume_reference"): "volume_reference",
}
"""Measure to column: its value is the mean of the column over the cases that have one."""
AGREEMENT = 1.96
"""Standard deviations between the bias and a limit of agreement."""
STATUSES = ("ok", "both_empty", "ref_empty", "pred_empty", "no_reference")
SPLITS = (("target", "test"), ("target", "validation"), ("source", "test"), ("source", "validation"))


@dataclass(frozen=True)
class SegGroup:
    """The cases of one domain and split, of one site or of all (None), the same for every model.

    Attributes:
        domain: `source` or `target`; split likewise.
        site: name, or None for all sites together.
        whole: whether it is the largest group of its domain and split.
        case: (n,) names, sorted.
        sites: (n,) site of each case.
        patient: (n,) index of each case's patient.
        num_patients: P.
        weight: (n,) weight of each case.
        columns: by model, seed and structure, a frame with one row a case in that order.
    """

    domain: str
    split: str
    site: str | None
    whole: bool
    case: Strings = field(repr=False)
    sites: Strings = field(repr=False)
    patient: Ints = field(repr=False)
    num_patients: int
    weight: Floats = field(repr=False)
    columns: dict[tuple[str, str, str], pd.DataFrame] = field(repr=False)

    def seeds(self, model: str) -> tuple[str, ...]:
        """Training seeds of a model."""
        return tuple(dict.fromkeys(s for m, s, _ in self.columns if m == model))

    def support(self, values: Floats) -> Support:
        """What a mean over the cases with a value (n,) rests on."""
        has = np.isfinite(values)
        patients = len(np.unique(self.patient[has]))
        return Support(int(has.sum()), patients, None, max(patients, 1), float(patients))

    def counts(self, replicates: int, seed: int) -> Iterator[Floats]:
        """Blocks (b, P) of how often each patient is drawn, within his site; the same for every model."""
        stratum = np.zeros(self.num_patients, dtype=np.int64)
        stratum[self.patient] = np.unique(self.sites.astype(str), return_inverse=True)[1]
        draw = seed_from(seed, self.domain, self.split, self.site, "segmentation")
        return patient_counts(stratum, replicates, draw, len(self.case))


def groups(frame: pd.DataFrame) -> Iterator[SegGroup]:
    """Groups of cases: for each domain and split all sites together, then each site."""
    for domain, split in SPLITS:
        rows = frame[(frame.domain == domain) & (frame.split == split)]
        sites = sorted(rows.site.unique())
        if len(sites) > 1:
            yield _group(rows, domain, split, None, True)
        for site in sites:
            yield _group(rows[rows.site == site], domain, split, site, len(sites) == 1)


def _group(rows: pd.DataFrame, domain: str, split: str, site: str | None, whole: bool) -> SegGroup:
    cases = rows.drop_duplicates("case").set_index("case").sort_index()
    names, patient = np.unique(cases.patient.to_numpy().astype(str), return_inverse=True)
    columns = {
        (str(key[0]), str(key[1]), str(key[2])): part.set_index("case").reindex(cases.index)
        for key, part in rows.groupby(["model", "seed", "structure"], sort=False)
    }
    return SegGroup(
        domain=domain,
        split=split,
        site=site,
        whole=whole,
        case=cases.index.to_numpy(),
        sites=cases.site.to_numpy(),
        patient=patient.astype(np.int64),
        num_patients=len(names),
        weight=cases.weight.to_numpy(dtype=np.float64),
        columns=columns,
    )


class Means:
    """Every measure of one model, training seed and structure, on any resample.

    Args:
        group: the cases.
        frame: one row a case, in the order of the group.
        structure: name of the structure.
        voxels: calibration of the cases' voxels, or None.
    """

    def __init__(
        self, group: SegGroup, frame: pd.DataFrame, structure: str, voxels: VoxelSums | None
    ) -> None:
        number = {c: frame[c].to_numpy(dtype=np.float64) for c in COLUMNS.values() if c in frame}
        both = (frame[c].to_numpy(dtype=np.float64) for c in ("volume_predicted", "volume_reference"))
        difference = np.subtract(*both)
        number |= {"volume_difference": difference, "volume_absolute": np.abs(difference)}
        found = {replace(k, cls=structure): number[c] for k, c in COLUMNS.items() if c in number}
        self.voxels = voxels
        self.values = {key: v for key, v in found.items() if np.isfinite(v).any()}
        self.structure = structure
        parts = []
        for v in (*self.values.values(), difference**2):
            own = np.where(np.isfinite(v), group.weight, 0.0)
            parts += [own, own * np.nan_to_num(v)]
        parts.append((parts[-2] > 0).astype(float))
        self._sums = sum_by_patient(np.stack(parts, axis=1), group.patient, group.num_patients)

    def at(self, counts: Floats) -> dict[Key, Floats]:
        """Every measure (b,) on resamples (b, P); nan where a resample has no case with a value."""
        sums = counts @ self._sums
        out: dict[Key, Floats] = {}
        with np.errstate(invalid="ignore", divide="ignore"):
            for k, key in enumerate(self.values):
                out[key] = mean = sums[:, 2 * k + 1] / sums[:, 2 * k]
                if key.name == "volume_bias":
                    square, number = sums[:, -2] / sums[:, -3], sums[:, -1]
                    variance = np.maximum(square - mean**2, 0.0) * number / (number - 1)
                    half = AGREEMENT * np.sqrt(np.where(number > 1, variance, np.nan))
                    out[Key("volume_lower", self.structure)] = mean - half
                    out[Key("volume_upper", self.structure)] = mean + half
        if self.voxels is not None:
            out |= self.voxels.at(counts, self.structure)
        return out


@dataclass(frozen=True)
class Drawn:
    """One model on one group: means over seeds, their replicates, and the values of each seed.

    Attributes:
        value: by measure and structure (`Key.cls`; None is the mean over structures).
        replicates: (B,) each.
        per_seed: by seed.
        support: what each value rests on.
        partial: measures whose mean over structures lacks a structure.
    """

    value: dict[Key, float]
    replicates: dict[Key, Floats]
    per_seed: dict[str, dict[Key, float]]
    support: dict[Key, Support]
    partial: frozenset[Key]


def draw_model(
    group: SegGroup,
    model: str,
    structures: tuple[str, ...],
    voxels: dict[tuple[str, str, str], VoxelSums],
    replicates: int,
    seed: int,
) -> Drawn:
    """Values and replicates of one model; the draw depends on the group alone, so that models are paired."""
    runs = {
        s: [
            Means(group, group.columns[model, s, c], c, voxels.get((model, s, c)))
            for c in structures
            if (model, s, c) in group.columns
        ]
        for s in group.seeds(model)
    }

    def one(counts: Floats) -> dict[str, dict[Key, Floats]]:
        return {s: {k: v for m in means for k, v in m.at(counts).items()} for s, means in runs.items()}

    once = one(np.ones((1, group.num_patients)))
    # What one seed lacks (no value in any case) is left out: the other seeds' mean is not the model's.
    keys = [k for k in next(iter(once.values())) if all(k in found for found in once.values())]
    wholes = _wholes(keys, structures)
    per_seed = {s: {k: float(v[0]) for k, v in _averaged(found, wholes).items()} for s, found in once.items()}
    blocks = []
    for counts in group.counts(replicates, seed):
        drawn = [_averaged(found, wholes) for found in one(counts).values()]
        blocks.append({k: np.mean([d[k] for d in drawn], axis=0) for k in (*keys, *wholes)})
    support = {k: _support(group, runs, k) for k in keys}
    support |= {k: max((support[p] for p in own), key=lambda s: s.num_patients) for k, own in wholes.items()}
    return Drawn(
        value={k: float(np.mean([v[k] for v in per_seed.values()])) for k in (*keys, *wholes)},
        replicates={k: np.concatenate([b[k] for b in blocks]) for k in (*keys, *wholes)},
        per_seed=per_seed,
        support=support,
        partial=frozenset(k for k, own in wholes.items() if len(own) < len(structures)),
    )


def _wholes(keys: list[Key], structures: tuple[str, ...]) -> dict[Key, list[Key]]:
    """The means over structures, and what each is the mean of; volumes of different organs have none."""
    if len(structures) < 2:
        return {}
    parts: dict[Key, list[Key]] = {}
    for key in keys:
        if not key.name.startswith("volume_"):
            parts.setdefault(replace(key, cls=None), []).append(key)
    return parts


def _averaged(found: dict[Key, Floats], wholes: dict[Key, list[Key]]) -> dict[Key, Floats]:
    return found | {whole: np.mean([found[k] for k in own], axis=0) for whole, own in wholes.items()}


def _support(group: SegGroup, runs: dict[str, list[Means]], key: Key) -> Support:
    if key.name in ("volume_lower", "volume_upper"):
        key = replace(key, name="volume_bias")
    # A case counts when any seed gave it a value.
    own = [m for means in runs.values() for m in means if m.structure == key.cls]
    if key.name in VOXEL_MEASURES.values():
        values = [m.voxels.has for m in own if m.voxels is not None]
    else:
        values = [m.values[key] for m in own if key in m.values]
    return group.support(np.where(np.isfinite(np.stack(values)).any(axis=0), 0.0, np.nan))
