"""`evaluate`: from a table of predictions to the tree of results."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from medtl.errors import ConfigError, near_matches
from medtl.evaluation._arrays import Ints
from medtl.evaluation._curves import make_curves
from medtl.evaluation._groups import Group, Plan, Replicates, gather, groups, run_model
from medtl.evaluation.estimate import Estimate
from medtl.evaluation.freeze import choose_positive, freeze
from medtl.evaluation.limitations import limitations
from medtl.evaluation.measures import MEASURES
from medtl.evaluation.operating import check_rule, ppv_npv
from medtl.evaluation.resample import estimate, missing
from medtl.evaluation.results import Block, Difference, Measure, Results, RunContext
from medtl.evaluation.sample import Cases, Key
from medtl.evaluation.table import PredictionTable


def evaluate(
    table: PredictionTable,
    *,
    context: RunContext | None = None,
    positive: str | None = None,
    rule: str = "youden",
    prevalence: float | None = None,
    replicates: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Results:
    """Evaluates every model of a table on internal and external testing.

    Temperatures and operating points are fitted on the source's validation cases and only applied elsewhere.
    Intervals resample patients. With several training seeds a measure is the mean over the seeds, on the same
    resamples.

    Args:
        table: validated predictions.
        context: what the run knows and the table does not.
        positive: the positive class of a binary task (default: see `choose_positive`; the report says which
            and why).
        rule: rule of the operating point: `youden`, `sens>=x`, `spec>=x`; for binary tasks.
        prevalence: prevalence at which PPV and NPV are stated, in (0, 1); None leaves them out.
        replicates: number of resamples.
        level: confidence level.
        seed: seed of the resampling.

    Returns:
        The results; `write_report` renders them.

    Raises:
        ConfigError: an option that the table does not allow.

    Example:
        results = evaluate(PredictionTable.from_csv("predictions.csv"), rule="sens>=0.95")
    """
    context = context or RunContext()
    column, positive_reason = choose_positive(table, positive)
    rule = _check_options(table, rule, prevalence, replicates, level)
    models = table.models
    reference, reference_reason = _reference(models, context)
    # The reference stands first everywhere, so that every table reads from before to after.
    models = tuple(sorted(models, key=lambda name: name != reference))
    settings = {
        (m, s, f): freeze(table, m, s, f, rule=rule, positive=column)
        for m in models
        for s in table.seeds(m)
        for f in table.findings
    }
    plan = Plan(table, settings, column, prevalence, replicates, level, seed)
    blocks: list[Block] = []
    differences: list[Difference] = []
    for group in groups(table):
        cases, rows = gather(plan, group)
        runs = {m: run_model(plan, group, cases, rows[m], m) for m in models}
        for m in models:
            blocks.append(_block(plan, group, cases, rows, m, runs[m]))
            if reference is not None and m != reference:
                differences += _differences(plan, group, cases, m, reference, runs)
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
        context=replace(
            context,
            notes=(*context.notes, *table.warnings),
            keep=_plain(context.keep),
            flow=_plain(context.flow),
            versions={str(name): str(version) for name, version in context.versions.items()},
            command=hide_folders(context.command),
            source_sites=tuple(context.source_sites),
            seeds=tuple(context.seeds),
        ),
        created=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    return replace(results, limitations=tuple(limitations(results)))


def hide_folders(command: str) -> str:
    """A command line without the folders of absolute paths, which often carry names of people.

    Example:
        >>> hide_folders("medtl report /home/ann/p.csv --out /data/x")
        'medtl report …/p.csv --out …/x'
    """
    return re.sub(r"(?<![\w.])(?:~|[A-Za-z]:)?[/\\](?:[^\s'\"]*[/\\])?([^\s'\"/\\]*)", r"…/\1", command)


def _plain(value: Any) -> Any:
    """A run's own notes as JSON has them: no numpy numbers, no tuples, and None for what is not finite."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return _finite(float(value))
    return value if value is None else str(value)


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
    if replicates < 100:
        raise ConfigError(f"At least 100 resamples are needed for an interval; got {replicates}.")
    if not 0.5 <= level < 1:
        raise ConfigError(
            f"The confidence level must lie between 0.5 and 1, for instance 0.95; got {level:g}."
        )
    return rule


def _reference(models: tuple[str, ...], context: RunContext) -> tuple[str | None, str]:
    if context.reference_model:
        if context.reference_model not in models:
            hint = near_matches(context.reference_model, models)
            raise ConfigError(f"The reference model {context.reference_model!r} is not in the table. {hint}")
        return context.reference_model, "as chosen"
    if len(models) == 1:
        return None, ""
    if "source_only" in models:
        return "source_only", "the model trained on the source alone"
    return models[0], "the first model of the table"


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
            per_seed = {seed: _finite(values.get(key)) for seed, values in run.per_seed.items()}
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
                s: _finite(ours.per_seed[s].get(key, np.nan) - theirs.per_seed[s].get(key, np.nan))
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
                    verdict=_verdict(found, spec.better),
                    cls=key.cls,
                    stage=key.stage,
                    kind=key.kind,
                    per_seed=per_seed,
                )
            )
    return out


def _verdict(found: Estimate, better: str) -> str:
    if found.value is None or found.lo is None or found.hi is None:
        return "not estimable"
    if found.lo <= 0 <= found.hi:
        return "no clear difference"
    return "gain" if (found.lo > 0) == (better == "higher") else "harm"


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and np.isfinite(value) else None
