"""`evaluate`: from a table of predictions to the tree of results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from medtl.errors import ConfigError
from medtl.evaluation.context import RunContext
from medtl.evaluation.engine.curves import make_curves
from medtl.evaluation.engine.freeze import choose_positive, freeze
from medtl.evaluation.engine.groups import Group, Plan, Replicates, gather, groups, run_model
from medtl.evaluation.engine.sample import Cases, Key
from medtl.evaluation.limitations import limitations
from medtl.evaluation.metrics.operating import check_rule, ppv_npv
from medtl.evaluation.metrics.registry import MEASURES
from medtl.evaluation.names import pairings
from medtl.evaluation.results import HEADLINES, Block, Difference, Measure, Results
from medtl.evaluation.shared import (
    check_resampling,
    choose_reference,
    finish_context,
    finite,
    in_order,
    now,
    verdict_of,
)
from medtl.evaluation.statistics.arrays import Ints
from medtl.evaluation.statistics.compare import Comparison, compare
from medtl.evaluation.statistics.estimate import Estimate
from medtl.evaluation.statistics.resample import estimate, missing
from medtl.evaluation.tables.predictions import PredictionTable
from medtl.evaluation.tables.segmentations import SegmentationTable

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
    if isinstance(table, SegmentationTable):
        from medtl.evaluation.engine.evaluate_segmentation import evaluate_masks

        _refuse(rule != "youden" or prevalence is not None or positive is not None, _NOT_CLASSES)
        return evaluate_masks(
            table,
            context=context,
            tolerance=tolerance,
            replicates=replicates,
            level=level,
            seed=seed,
            jobs=jobs,
            progress=progress,
        )
    _refuse(tolerance is not None, _NOT_MASKS)
    context = context or RunContext()
    column, positive_reason = choose_positive(table, positive)
    rule = _check_options(table, rule, prevalence, replicates, level)
    models = table.models
    reference, reference_reason = choose_reference(models, context)
    models = in_order(models, reference, context.target_trained)
    settings = {
        (m, s, f): freeze(table, m, s, f, rule=rule, positive=column)
        for m in models
        for s in table.seeds(m)
        for f in table.findings
    }
    plan = Plan(table, settings, column, prevalence, replicates, level, seed)
    blocks: list[Block] = []
    differences: list[Difference] = []
    comparisons: list[Comparison] = []
    for group in groups(table):
        cases, rows = gather(plan, group)
        # A model may have no rows here, as one that was never taken to the external site.
        runs = {m: run_model(plan, group, cases, rows[m], m) for m in models if m in rows}
        for m in runs:
            blocks.append(_block(plan, group, cases, rows, m, runs[m]))
            if reference in runs and m != reference:
                differences += _differences(plan, group, cases, m, reference, runs)
        if reference is not None and group.whole:
            candidates = {m: run for m, run in runs.items() if m not in context.target_trained}
            comparisons += _comparisons(plan, context, group, blocks, candidates, reference)
    results = Results(
        task=table.task,
        classes=table.classes,
        positive=None if column is None else table.classes[column],
        positive_reason=positive_reason,
        rule=rule if column is not None else "most probable class",
        prevalence=prevalence,
        replicates=replicates,
        level=level,
        seed=seed,
        models=models,
        reference_model=reference,
        reference_reason=reference_reason,
        blocks=tuple(blocks),
        differences=tuple(differences),
        settings=tuple(settings.values()),
        limitations=(),
        num_clipped=table.num_clipped,
        patients_known=_patients_known(table),
        context=finish_context(context, models, table.warnings),
        created=now(),
        comparisons=tuple(comparisons),
    )
    return replace(results, limitations=tuple(limitations(results)))


def _refuse(wrong: bool, why: str) -> None:
    if wrong:
        raise ConfigError(why)


def _check_options(
    table: PredictionTable, rule: str, prevalence: float | None, replicates: int, level: float
) -> str:
    rule = check_rule(rule)
    if table.task == "multiclass" and (rule != "youden" or prevalence is not None):
        raise ConfigError(
            "An operating point and a prevalence are for tasks with two classes; this table has "
            f"{len(table.classes)} ({', '.join(table.classes)}), and the most probable class is called. "
            "Leave both out."
        )
    if prevalence is not None and not 0 < prevalence < 1:
        raise ConfigError(
            f"The prevalence must lie between 0 and 1, for instance 0.1; got {prevalence:g}. A percentage is "
            "divided by 100."
        )
    check_resampling(replicates, level)
    return rule


def _patients_known(table: PredictionTable) -> bool:
    """False where every patient name equals its case name: then nobody told which cases belong together."""
    return not bool(np.all(table.case == table.patient))


def _block(
    plan: Plan, group: Group, cases: Cases, rows: dict[str, dict[str, Ints]], model: str, run: Replicates
) -> Block:
    present = np.unique(cases.label[cases.labelled])
    measures = []
    for name, spec in MEASURES.items():
        for key in (k for k in run.replicates if k.name == name):
            support = cases.support(key)
            if name in ("auroc", "balanced_accuracy") and len(present) < 2:
                found = missing("one_class", plan.level, support)
            else:
                found = estimate(
                    run.value[key], run.replicates[key], kind=spec.interval, level=plan.level, support=support
                )
                if name in ("ppv", "npv"):
                    found = _predictive(plan, cases, run, key, found)
                if name in ("auroc", "balanced_accuracy") and len(present) < len(cases.classes):
                    found = replace(found, status="class_missing")
            per_seed = {seed: finite(values.get(key)) for seed, values in run.per_seed.items()}
            measures.append(Measure(name, found, key.cls, key.stage, key.kind, per_seed))
    confusion = None
    if len(present):
        once = np.ones((1, cases.num_patients))
        mean = np.mean([s.confusion(once)[0] for s in run.samples.values()], axis=0)
        confusion = tuple(tuple(float(x) for x in row) for row in mean)
    return Block(
        model=model,
        domain=group.domain,
        split=group.split,
        site=group.site,
        finding=group.finding or None,
        num_cases=len(cases.label),
        num_patients=cases.num_patients,
        num_labelled=int(cases.labelled.sum()),
        class_cases={name: int((cases.label == c).sum()) for c, name in enumerate(cases.classes)},
        class_patients={name: cases.patients_with(c) for c, name in enumerate(cases.classes)},
        seeds=tuple(run.samples),
        measures=tuple(measures),
        curves=tuple(make_curves(plan, group, cases, run, next(iter(rows[model].values()))))
        if group.whole and len(present) > 1
        else (),
        confusion=confusion,
    )


def _predictive(plan: Plan, cases: Cases, run: Replicates, key: Key, found: Estimate) -> Estimate:
    """Where resamples do not vary: the limits of sensitivity and specificity, put into Bayes' rule."""
    if found.value is None or found.status != "fixed" or plan.prevalence is None:
        return found
    ends = []
    for name in ("sensitivity", "specificity"):
        part = Key(name)
        e = estimate(
            run.value[part],
            run.replicates[part],
            kind="proportion",
            level=plan.level,
            support=cases.support(part),
        )
        ends.append((e.lo or 0.0, e.hi if e.hi is not None else 1.0))
    which = 0 if key.name == "ppv" else 1
    lo, hi = (float(ppv_npv(ends[0][i], ends[1][i], plan.prevalence)[which]) for i in (0, 1))
    if not np.isfinite(lo) or not np.isfinite(hi):
        return found
    return replace(found, lo=lo, hi=hi, method="limits of sensitivity and specificity", status="boundary")


def _differences(
    plan: Plan, group: Group, cases: Cases, model: str, reference: str, runs: dict[str, Replicates]
) -> list[Difference]:
    out = []
    ours, theirs = runs[model], runs[reference]
    for name, spec in MEASURES.items():
        if not spec.paired:
            continue
        for key in (k for k in ours.replicates if k.name == name and k in theirs.replicates):
            found = estimate(
                ours.value[key] - theirs.value[key],
                ours.replicates[key] - theirs.replicates[key],
                kind="percentile",
                level=plan.level,
                support=cases.support(key),
            )
            shared = [s for s in ours.per_seed if s in theirs.per_seed]
            per_seed = {
                s: finite(ours.per_seed[s].get(key, np.nan) - theirs.per_seed[s].get(key, np.nan))
                for s in shared
            }
            out.append(
                Difference(
                    model=model,
                    reference=reference,
                    domain=group.domain,
                    split=group.split,
                    site=group.site,
                    finding=group.finding or None,
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


def _comparisons(
    plan: Plan,
    context: RunContext,
    group: Group,
    blocks: list[Block],
    runs: dict[str, Replicates],
    reference: str,
) -> Iterator[Comparison]:
    """All candidates on the headline measures; their blocks are among the last that were made."""
    place = (group.domain, group.split, group.site, group.finding or None)
    own = {b.model: b for b in blocks if (b.domain, b.split, b.site, b.finding) == place}
    for kind, pairs in pairings(tuple(runs), context.sizes, reference).items():
        for name in HEADLINES:
            key = Key(name)
            have = {m: run for m, run in runs.items() if key in run.replicates}
            measures = {m: own[m].get(name, cls=None) for m in have}
            found = compare(
                {m: measure.estimate for m, measure in measures.items() if measure is not None},
                {m: run.replicates[key] for m, run in have.items()},
                pairs,
                level=plan.level,
                better=MEASURES[name].better,
                where=place,
                name=name,
                kind=kind,
            )
            if found is not None:
                yield found
