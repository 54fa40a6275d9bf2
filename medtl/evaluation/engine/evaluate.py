"""`evaluate`: from a table of predictions or of segmentations to the tree of results.

One engine for both tasks: groups, training seeds, differences, comparisons and ranks are made here, once; a `Task`
measures one model on one group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from medtl.errors import ConfigError
from medtl.evaluation.context import RunContext, choose_reference, finish_context, in_order, now
from medtl.evaluation.engine.classified import Classified
from medtl.evaluation.engine.groups import Group, Resampling, Runs, Task
from medtl.evaluation.engine.measure_masks import TOLERANCE, measure_cases
from medtl.evaluation.engine.segmented import Segmented
from medtl.evaluation.engine.voxel_sums import band_of
from medtl.evaluation.limitations import limitations
from medtl.evaluation.metrics.metric import Key
from medtl.evaluation.metrics.registry import MEASURES, headlines
from medtl.evaluation.names import pairings
from medtl.evaluation.results import Block, Difference, Measure, Results, SegmentationRules
from medtl.evaluation.statistics.compare import Comparison, compare
from medtl.evaluation.statistics.estimate import Estimate, finite, verdict_of
from medtl.evaluation.statistics.resample import check_resampling, estimate
from medtl.evaluation.tables.predictions import PredictionTable
from medtl.evaluation.tables.segmentations import SegmentationTable
from medtl.evaluation.tables.voxels import VoxelTable

if TYPE_CHECKING:
    import pandas as pd

_NOT_CLASSES = (
    "A positive class, a rule for an operating point and a prevalence are for classification; this table holds "
    "segmentations, where every voxel has its most probable class. Leave them out."
)
_NOT_MASKS = (
    "A tolerance is for the surfaces of segmentations; this table holds predictions of classes (it has no columns "
    "mask and reference). Leave it out."
)


def evaluate(
    table: PredictionTable | SegmentationTable,
    *,
    context: RunContext | None = None,
    positive: str | None = None,
    rule: str = "youden",
    prevalence: float | None = None,
    tolerance: float | Mapping[str, float] | None = None,
    replicates: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Results:
    """Evaluates every model of a table on internal and external testing.

    Temperatures and operating points are fitted on the source's validation cases and only applied elsewhere.
    Intervals resample patients. With several training seeds a measure is the mean over the seeds, on the same
    resamples. Segmentations are evaluated structure by structure.

    Args:
        table: validated predictions, or validated segmentations, whose masks are read and measured here.
        context: what the run knows and the table does not.
        positive: the positive class of a binary task (default: see `choose_positive`; the report says which
            and why).
        rule: rule of the operating point: `youden`, `sens>=x`, `spec>=x`; for binary tasks.
        prevalence: prevalence at which PPV and NPV are stated, in (0, 1); None leaves them out.
        tolerance: of the surface Dice of segmentations, in mm (pixels for images without a pixel size), one number
            or one by structure (default: 2).
        replicates: number of resamples.
        level: confidence level.
        seed: seed of the resampling.
        jobs: segmented cases measured at the same time; -1 for all cores.
        progress: called with the segmented cases done and their total.

    Returns:
        The results; `write_report` renders them.

    Raises:
        ConfigError: an option that the table does not allow.
        DataError: masks that cannot be measured.

    Example:
        results = evaluate(PredictionTable.from_csv("predictions.csv"), rule="sens>=0.95")
    """
    context = context or RunContext()
    check_resampling(replicates, level)
    resampling = Resampling(replicates, level, seed)
    if isinstance(table, PredictionTable):
        if tolerance is not None:
            raise ConfigError(_NOT_MASKS)
        task = Classified(table, resampling, positive=positive, rule=rule, prevalence=prevalence)
        return _evaluate(task, context, table.warnings, resampling)
    if rule != "youden" or prevalence is not None or positive is not None:
        raise ConfigError(_NOT_CLASSES)
    limits = TOLERANCE if tolerance is None else tolerance
    frame = measure_cases(table, tolerance=limits, jobs=jobs, progress=progress)
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
    return _evaluate(
        Segmented(frame, rules, voxels, resampling), context, frame.attrs["warnings"], resampling
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
    """Evaluates segmented cases that were measured before, structure by structure.

    Args:
        frame: one row per case, model, training seed and structure, as `measure_cases` returns it; and `weight`, if
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
        DataError: no case to evaluate, or models on different cases.
    """
    check_resampling(replicates, level)
    resampling = Resampling(replicates, level, seed)
    task = Segmented(frame, rules, voxels, resampling)
    return _evaluate(task, context or RunContext(), warnings, resampling)


def _evaluate(task: Task, context: RunContext, warnings: Sequence[str], resampling: Resampling) -> Results:
    reference, reference_reason = choose_reference(task.models, context)
    models = in_order(task.models, reference, context.target_trained)
    blocks: list[Block] = []
    differences: list[Difference] = []
    comparisons: list[Comparison] = []
    for group in task.groups():
        # A model may have no cases here, as one that was never taken to the external site.
        runs = {m: task.measure(group, m) for m in models if group.seeds(m)}
        estimates = {m: _estimates(run, resampling.level) for m, run in runs.items()}
        for m, run in runs.items():
            blocks.append(replace(run.block, measures=tuple(_measures(run, estimates[m]))))
            if reference in runs and m != reference:
                differences += _differences(group, m, str(reference), runs, resampling.level)
        if reference is not None and group.whole:
            candidates = {m: run for m, run in runs.items() if m not in context.target_trained}
            pairs = pairings(tuple(candidates), context.sizes, reference)
            comparisons += _comparisons(task.kind, group, candidates, estimates, pairs, resampling.level)
    results = Results(
        task=task.name,
        classes=task.classes,
        positive=task.positive,
        positive_reason=task.positive_reason,
        rule=task.rule,
        prevalence=task.prevalence,
        replicates=resampling.replicates,
        level=resampling.level,
        seed=resampling.seed,
        models=models,
        reference_model=reference,
        reference_reason=reference_reason,
        blocks=tuple(blocks),
        differences=tuple(differences),
        settings=tuple(sorted(task.settings, key=lambda s: models.index(s.model))),
        limitations=(),
        num_clipped=task.num_clipped,
        patients_known=task.patients_known,
        context=finish_context(context, models, warnings),
        created=now(),
        segmentation=task.segmentation,
        worst=tuple(task.worst(models)),
        comparisons=tuple(comparisons),
    )
    return replace(results, limitations=tuple(limitations(results)))


def _in_order(keys: Mapping[Key, object]) -> list[Key]:
    """Keys in the order of the report."""
    place = {name: k for k, name in enumerate(MEASURES)}
    return sorted(keys, key=lambda key: place[key.name])


def _estimates(run: Runs, level: float) -> dict[Key, Estimate]:
    """Every number with its interval, in the order of the report."""
    out = {}
    for key in _in_order(run.replicates):
        kind = MEASURES[key.name].interval
        found = estimate(
            run.value[key], run.replicates[key], kind=kind, level=level, support=run.support[key]
        )
        if found.status == "fixed" and key in run.limits:
            lo, hi, method = run.limits[key]
            if np.isfinite([lo, hi]).all():
                found = replace(found, lo=lo, hi=hi, method=method, status="boundary")
        if key in run.status:
            found = replace(found, status=run.status[key])
        out[key] = found
    return out


def _measures(run: Runs, estimates: Mapping[Key, Estimate]) -> Iterator[Measure]:
    for key, found in estimates.items():
        per_seed = {seed: finite(values.get(key)) for seed, values in run.per_seed.items()}
        yield Measure(key.name, found, key.cls, key.stage, key.kind, per_seed)
        if key in run.medians:
            value, seeds = run.medians[key]
            described = replace(
                found, value=value, lo=None, hi=None, method="none", status="description", num_degenerate=0
            )
            yield Measure(key.name, described, key.cls, key.stage, "median", seeds)


def _differences(
    group: Group, model: str, reference: str, runs: Mapping[str, Runs], level: float
) -> Iterator[Difference]:
    """A model minus the reference, on the same resamples."""
    ours, theirs = runs[model], runs[reference]
    for key in _in_order(ours.replicates):
        metric = MEASURES[key.name]
        if not metric.paired or key not in theirs.replicates:
            continue
        found = estimate(
            ours.value[key] - theirs.value[key],
            ours.replicates[key] - theirs.replicates[key],
            kind="mean" if metric.interval == "mean" else "percentile",
            level=level,
            support=min(ours.support[key], theirs.support[key], key=lambda s: s.num_patients),
        )
        both = [s for s in ours.per_seed if s in theirs.per_seed]
        per_seed = {
            s: finite(ours.per_seed[s].get(key, np.nan) - theirs.per_seed[s].get(key, np.nan)) for s in both
        }
        yield Difference(
            model=model,
            reference=reference,
            domain=group.domain,
            split=group.split,
            site=group.site,
            finding=group.finding or None,
            name=key.name,
            estimate=found,
            better=metric.better,
            verdict=verdict_of(found, metric.better),
            cls=key.cls,
            stage=key.stage,
            kind=key.kind,
            per_seed=per_seed,
        )


def _comparisons(
    kind: str,
    group: Group,
    runs: Mapping[str, Runs],
    estimates: Mapping[str, Mapping[Key, Estimate]],
    pairs: Mapping[str, Mapping[str, str]],
    level: float,
) -> Iterator[Comparison]:
    """All candidates on the headline metrics: over all cases or structures, and for each structure."""
    place = (group.domain, group.split, group.site, group.finding or None)
    for how, references in pairs.items():
        for name in headlines(kind):
            keys = dict.fromkeys(key for run in runs.values() for key in run.replicates if key.name == name)
            for key in sorted(keys, key=lambda key: key.cls is not None):
                have = {m: run for m, run in runs.items() if key in run.replicates}
                found = compare(
                    {m: estimates[m][key] for m in have},
                    {m: run.replicates[key] for m, run in have.items()},
                    references,
                    level=level,
                    better=MEASURES[name].better,
                    where=place,
                    name=name,
                    kind=how,
                    cls=key.cls,
                )
                if found is not None:
                    yield found
