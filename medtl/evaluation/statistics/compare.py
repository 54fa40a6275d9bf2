"""Many models against one on the same patients, with limits that hold for all comparisons at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from medtl.evaluation.statistics.arrays import Floats
from medtl.evaluation.statistics.estimate import Estimate, verdict_of

METHOD = "patient bootstrap, single-step max-t"


@dataclass(frozen=True)
class Compared:
    """One model among many.

    Attributes:
        model: name of the model.
        rank: 1 = the best value.
        estimate: its own value and interval, as in its block.
        reference: the model that it is compared with, or "".
        difference: model minus its reference, with limits that hold for all models at once; None for a reference.
        p_value: of no difference, adjusted for the number of comparisons in the same way; None for a reference.
        verdict: as `Difference.verdict`, by these limits; "" for a reference.
        first: share of the resamples in which no other model is better; equals share it.
    """

    model: str
    rank: int
    estimate: Estimate
    reference: str
    difference: Estimate | None
    p_value: float | None
    verdict: str
    first: float


@dataclass(frozen=True)
class Comparison:
    """All candidates on one group of cases, best first.

    Attributes:
        domain: group of cases, as in `Block`; split, site and finding likewise.
        name: the measure.
        kind: what each model is compared with: `reference` (one model), `same_size` (another strategy with as many
            labelled patients) or `previous_size` (itself with fewer).
        critical: standard errors to either side that make the limits hold for all comparisons at once.
        method: how.
        rows: the models, best first.
        cls: the structure, or None: all cases, or the mean over the structures.
    """

    domain: str
    split: str
    site: str | None
    finding: str | None
    name: str
    kind: str
    critical: float
    method: str
    rows: tuple[Compared, ...]
    cls: str | None = None


def compare(
    estimates: Mapping[str, Estimate],
    replicates: Mapping[str, Floats],
    pairs: Mapping[str, str],
    *,
    level: float,
    better: str,
    where: tuple[str, str, str | None, str | None],
    name: str,
    kind: str = "reference",
    cls: str | None = None,
) -> Comparison | None:
    """Compares models with their references.

    The largest studentised deviation over all pairs, resample by resample, gives one critical value for all of them
    (Westfall and Young 1993; Romano and Wolf 2005, single step). Since all models are taken on the same resamples, it
    knows how they hang together; Bonferroni and Holm, which do not, would give wider limits.

    Args:
        estimates: by model.
        replicates: by model, (B,) each, on the same resamples.
        pairs: the reference of each model that has one.
        level: that all limits hold together.
        better: `higher` or `lower`.
        where: domain, split, site and finding of the group.
        name: the measure.
        kind: as `Comparison.kind`.
        cls: as `Comparison.cls`.

    Returns:
        The comparison, or None where no pair has values.
    """
    models = [m for m, e in estimates.items() if e.value is not None]
    at = {model: i for i, model in enumerate(models)}
    pairs = {m: ref for m, ref in pairs.items() if m in at and ref in at and m != ref}
    drawn = np.stack([replicates[m] for m in models]) if pairs else np.empty((0, 0))
    drawn = drawn[:, np.isfinite(drawn).all(axis=0)]
    if drawn.shape[1] < 2:
        return None
    values = np.array([estimates[m].value for m in models], dtype=np.float64)
    base = np.array([at[pairs.get(m, m)] for m in models])
    gap, moved = values - values[base], drawn - drawn[base]
    error = moved.std(axis=1, ddof=1)
    vary = error > 1e-12
    deviation = np.abs(moved[vary] - gap[vary, None]) / error[vary, None]
    largest = deviation.max(axis=0) if vary.any() else np.zeros(drawn.shape[1])
    critical = max(float(np.quantile(largest, level)), float(ndtri(0.5 + level / 2)))
    sign = 1.0 if better == "higher" else -1.0
    best = drawn == (sign * drawn).max(axis=0) * sign
    first = (best / best.sum(axis=0)).mean(axis=1)
    rows = []
    for rank, i in enumerate(np.argsort(-sign * values, kind="stable"), start=1):
        model, own = models[i], estimates[models[i]]
        if model not in pairs:
            rows.append(Compared(model, rank, own, "", None, None, "", float(first[i])))
            continue
        half = critical * error[i]
        found = Estimate(
            value=float(gap[i]),
            lo=float(gap[i] - half),
            hi=float(gap[i] + half),
            method=METHOD,
            level=level,
            n=own.n,
            num_patients=own.num_patients,
            num_events=own.num_events,
            status=own.status if vary[i] else "fixed",
        )
        observed = abs(gap[i]) / error[i] if vary[i] else (0.0 if gap[i] == 0 else np.inf)
        p = float((1 + (largest >= observed).sum()) / (1 + len(largest)))
        verdict = verdict_of(found, better)
        rows.append(Compared(model, rank, own, pairs[model], found, p, verdict, float(first[i])))
    return Comparison(*where, name, kind, critical, METHOD, tuple(rows), cls)
