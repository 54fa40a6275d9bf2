"""From the measured cases of a segmentation to the tree of results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from medtl.errors import DataError
from medtl.evaluation.context import RunContext
from medtl.evaluation.engine.segsample import STATUSES, Drawn, SegGroup, draw_model, groups
from medtl.evaluation.engine.voxel_sums import VoxelSums, band_of, fit_run, sums_on, voxel_curves
from medtl.evaluation.limitations import limitations
from medtl.evaluation.metrics.registry import MEASURES
from medtl.evaluation.results import (
    Block,
    CaseValues,
    Curve,
    Difference,
    Measure,
    Results,
    SegmentationRules,
    Settings,
    WorstCase,
)
from medtl.evaluation.shared import (
    check_resampling,
    choose_reference,
    finish_context,
    finite,
    in_order,
    now,
    verdict_of,
)
from medtl.evaluation.statistics.arrays import Floats
from medtl.evaluation.statistics.estimate import FEW_EVENTS, Estimate
from medtl.evaluation.statistics.resample import Support, estimate

if TYPE_CHECKING:
    import pandas as pd

    from medtl.evaluation.tables.segmentations import SegmentationTable
    from medtl.evaluation.tables.voxels import VoxelTable

CASE_COLUMNS = ("dice", "hd95", "nsd", "volume_reference", "volume_predicted")
NUM_WORST = 5
"""Worst cases of each model that the results list."""


def evaluate_masks(
    table: SegmentationTable,
    *,
    context: RunContext | None = None,
    tolerance: float | Mapping[str, float] | None = None,
    replicates: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Results:
    """Measures the masks of a table and evaluates them; the arguments are those of `evaluate`."""
    from medtl.evaluation.engine.measure_masks import TOLERANCE, measure_cases
    from medtl.evaluation.tables.voxels import VoxelTable

    check_resampling(replicates, level)
    tolerance = TOLERANCE if tolerance is None else tolerance
    frame = measure_cases(table, tolerance=tolerance, jobs=jobs, progress=progress)
    voxels = None if table.voxels is None else VoxelTable.from_csv(table.voxels, table)
    unit = "px" if (frame.unit == "px").all() else "mm"
    rules = SegmentationRules(
        unit=unit,
        volume_unit="ml" if unit == "mm" else "px",
        tolerance=frame.attrs["tolerance"],
        empty=frame.attrs["policy"],
        band="" if voxels is None else band_of(voxels, unit),
        void=table.labels is not None and bool(table.labels.void),
    )
    return evaluate_cases(
        frame,
        rules=rules,
        voxels=voxels,
        context=context,
        warnings=frame.attrs["warnings"],
        replicates=replicates,
        level=level,
        seed=seed,
    )


def evaluate_cases(
    frame: pd.DataFrame,
    *,
    rules: SegmentationRules,
    voxels: VoxelTable | None = None,
    context: RunContext | None = None,
    warnings: Sequence[str] = (),
    replicates: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Results:
    """Evaluates segmented cases, structure by structure; patients are resampled.

    Args:
        frame: one row a case, model, training seed and structure, as `measure_cases` returns it; and `weight`, if
            cases weigh differently.
        rules: what the numbers rest on.
        voxels: histograms of voxel probabilities, or None.
        context: what the run knows and the table does not.
        warnings: remarks for the report.
        replicates: number of resamples.
        level: confidence level.
        seed: seed of the resampling.

    Raises:
        ConfigError: an option that the table does not allow.
        DataError: no case to evaluate.
    """
    context = context or RunContext()
    check_resampling(replicates, level)
    if len(frame) == 0:
        raise DataError("The table holds no segmented case.")
    frame, rules = _one_unit(frame.assign(weight=frame.weight if "weight" in frame else 1.0), rules)
    frame["seed"] = frame.seed.astype(str)
    structures = tuple(frame.attrs.get("structures") or frame.structure.unique().tolist())
    names = tuple(frame.model.unique().tolist())
    reference, reference_reason = choose_reference(names, context)
    models = in_order(names, reference, context.target_trained)
    settings = _settings(frame, models, structures, voxels)
    temperatures = {(s.model, s.seed, s.finding or ""): s.temperature for s in settings}
    blocks: list[Block] = []
    differences: list[Difference] = []
    for group in groups(frame):
        drawn: dict[str, Drawn] = {}
        # A model that was trained at a site may have been tried at no other: it has no part in this group.
        for m in (m for m in models if group.seeds(m)):
            # Histograms are large: those of one model at a time.
            own = {run: t for run, t in temperatures.items() if run[0] == m}
            sums = {} if voxels is None else sums_on(voxels, group, own)
            drawn[m] = draw_model(group, m, structures, sums, replicates, seed)
            blocks.append(_block(group, m, drawn[m], structures, sums, level, replicates, seed))
            if reference in drawn and m != reference:
                differences += _differences(group, m, str(reference), drawn, level)
    results = Results(
        task="segmentation",
        classes=structures,
        positive=None,
        positive_reason="",
        rule="most probable class",
        prevalence=None,
        replicates=replicates,
        level=level,
        seed=seed,
        models=models,
        reference_model=reference,
        reference_reason=reference_reason,
        blocks=tuple(blocks),
        differences=tuple(differences),
        settings=tuple(settings),
        limitations=(),
        num_clipped=0,
        patients_known=not bool((frame.case == frame.patient).all()),
        context=finish_context(context, models, warnings),
        created=now(),
        segmentation=rules,
        worst=tuple(_worst(frame, models)),
    )
    return replace(results, limitations=tuple(limitations(results)))


def _one_unit(frame: pd.DataFrame, rules: SegmentationRules) -> tuple[pd.DataFrame, SegmentationRules]:
    """Distances in mm and in pixels have no common mean: with both, those in pixels are left out and counted."""
    pixels = frame.unit == "px"
    if not pixels.any() or pixels.all():
        return frame, rules
    frame = frame.copy()
    lost = ["hd95", "hd", "assd", "nsd", "volume_reference", "volume_predicted"]
    frame.loc[pixels, [c for c in lost if c in frame]] = np.nan
    return frame, replace(rules, mixed_units=int(frame.case[pixels].nunique()))


def _settings(
    frame: pd.DataFrame, models: tuple[str, ...], structures: tuple[str, ...], voxels: VoxelTable | None
) -> list[Settings]:
    """A temperature for each model, training seed and structure, from the source's validation cases."""
    held = frame[(frame.domain == "source") & frame.split.isin(("calibration", "validation"))]
    if (held.split == "calibration").any():
        held = held[held.split == "calibration"]
    cases = held.drop_duplicates("case").set_index("case").weight
    out = []
    for m in models:
        for s in sorted(frame.seed[frame.model == m].unique(), key=lambda seed: (len(seed), seed)):
            for c in structures:
                if voxels is None:
                    temperature, status, number = None, "no_probabilities", 0
                else:
                    temperature, status, number = fit_run(voxels, (m, s, c), cases)
                out.append(Settings(m, s, c, temperature, status, number, None, "most_probable_class"))
    return out


def _block(
    group: SegGroup,
    model: str,
    drawn: Drawn,
    structures: tuple[str, ...],
    sums: dict[tuple[str, str, str], VoxelSums],
    level: float,
    replicates: int,
    seed: int,
) -> Block:
    measures = []
    for name in MEASURES:
        for key in (k for k in drawn.replicates if k.name == name):
            found = _estimate(drawn.value[key], drawn.replicates[key], name, drawn.support[key], level)
            if key in drawn.partial:
                found = replace(found, status="structure_missing")
            per_seed = {s: finite(values.get(key)) for s, values in drawn.per_seed.items()}
            measures.append(Measure(name, found, key.cls, key.stage, key.kind, per_seed))
            if name == "dice" and key.cls is not None:
                measures.append(_median(group, model, key.cls, found))
    statuses, held, patients = {}, {}, {}
    reference = np.zeros(len(group.case), dtype=bool)
    for c in structures:
        frames = [f for (m, _, name), f in group.columns.items() if (m, name) == (model, c)]
        seen = [f.status.to_numpy() for f in frames]
        statuses[c] = {status: int(sum((own == status).sum() for own in seen)) for status in STATUSES}
        present = (seen[0] == "ok") | (seen[0] == "pred_empty")
        held[c], patients[c] = int(present.sum()), len(np.unique(group.patient[present]))
        reference |= seen[0] != "no_reference"
    curves: tuple[Curve, ...] = ()
    if group.whole:
        own = {c: [sums[k] for k in sums if k[0] == model and k[2] == c] for c in structures}
        curves = tuple(
            curve
            for c, parts in own.items()
            if parts
            for curve in voxel_curves(parts, group, c, level, replicates, seed)
        )
    return Block(
        model=model,
        domain=group.domain,
        split=group.split,
        site=group.site,
        finding=None,
        num_cases=len(group.case),
        num_patients=group.num_patients,
        num_labelled=int(reference.sum()),
        class_cases=held,
        class_patients=patients,
        seeds=group.seeds(model),
        measures=tuple(measures),
        curves=curves,
        statuses=statuses,
        cases=tuple(_case_values(group, model, c) for c in structures) if group.whole else (),
    )


def _estimate(value: float, replicates: Floats, name: str, support: Support, level: float) -> Estimate:
    """An estimate with its interval, unless there is one patient alone."""
    found = estimate(value, replicates, kind=MEASURES[name].interval, level=level, support=support)
    if found.value is None:
        return found
    if support.num_patients < 2:
        return replace(found, lo=None, hi=None, method="none", status="one_patient")
    few = support.num_patients < FEW_EVENTS and found.status in ("ok", "few_events", "fixed")
    return replace(found, status="few_patients") if few else found


def _mean_over_seeds(group: SegGroup, model: str, structure: str, column: str) -> Floats:
    """(n,) a column of each case, mean over the seeds that have a value; nan where none has."""
    found = [
        frame[column].to_numpy(dtype=np.float64)
        for (m, _, c), frame in group.columns.items()
        if (m, c) == (model, structure)
    ]
    stacked = np.stack(found)
    number = np.isfinite(stacked).sum(axis=0)
    total = np.nansum(stacked, axis=0)
    return np.asarray(np.divide(total, number, out=np.full(len(total), np.nan), where=number > 0))


def _median(group: SegGroup, model: str, structure: str, mean: Estimate) -> Measure:
    """The median over cases as a description: bootstrap intervals of medians do not hold what they promise."""
    values = _mean_over_seeds(group, model, structure, "dice")
    found = replace(
        mean,
        value=float(np.median(values[np.isfinite(values)])),
        lo=None,
        hi=None,
        method="none",
        status="description",
        num_degenerate=0,
    )
    per_seed: dict[str, float | None] = {}
    for s in group.seeds(model):
        own = group.columns[model, s, structure].dice.to_numpy(dtype=np.float64)
        own = own[np.isfinite(own)]
        per_seed[s] = float(np.median(own)) if len(own) else None
    return Measure("dice", found, structure, kind="median", per_seed=per_seed)


def _case_values(group: SegGroup, model: str, structure: str) -> CaseValues:
    values = {c: _mean_over_seeds(group, model, structure, c) for c in CASE_COLUMNS}
    rounded = {c: tuple(finite(float(f"{x:.5g}")) for x in v) for c, v in values.items()}
    return CaseValues(structure, rounded)


def _differences(
    group: SegGroup, model: str, reference: str, drawn: dict[str, Drawn], level: float
) -> list[Difference]:
    ours, theirs = drawn[model], drawn[reference]
    out = []
    for name, spec in MEASURES.items():
        if not spec.paired:
            continue
        for key in (k for k in ours.replicates if k.name == name and k in theirs.replicates):
            support = min(ours.support[key], theirs.support[key], key=lambda s: s.num_patients)
            found = _estimate(
                ours.value[key] - theirs.value[key],
                ours.replicates[key] - theirs.replicates[key],
                name,
                support,
                level,
            )
            shared = [s for s in ours.per_seed if s in theirs.per_seed]
            nothing = float("nan")
            per_seed = {
                s: finite(ours.per_seed[s].get(key, nothing) - theirs.per_seed[s].get(key, nothing))
                for s in shared
            }
            out.append(
                Difference(
                    model=model,
                    reference=reference,
                    domain=group.domain,
                    split=group.split,
                    site=group.site,
                    finding=None,
                    name=name,
                    estimate=found,
                    better=spec.better,
                    verdict=verdict_of(found, spec.better),
                    cls=key.cls,
                    stage=key.stage,
                    kind=key.kind,
                    per_seed=per_seed,
                )
            )
    return out


def _worst(frame: pd.DataFrame, models: tuple[str, ...]) -> list[WorstCase]:
    """The cases with the lowest Dice of any structure (mean over seeds), a few for each model, worst first."""
    known = frame[(frame.split == "test") & frame.dice.notna()]
    for domain in ("target", "source"):
        found = known[known.domain == domain]
        if len(found):
            break
    else:
        return []
    out = []
    for model in models:
        own = found[found.model == model]
        mean = own.groupby(["case", "structure"], sort=True).dice.mean().sort_values(kind="stable")
        worst = mean[~mean.index.get_level_values("case").duplicated()].head(NUM_WORST)
        for case, structure in worst.index:
            rows = own[(own.case == case) & (own.structure == structure)]
            row = rows.loc[rows.dice.idxmin()]
            numbers = {c: finite(float(row[c])) for c in CASE_COLUMNS}
            out.append(
                WorstCase(model, row.seed, str(case), row.site, row.domain, structure, row.status, **numbers)
            )
    return out
