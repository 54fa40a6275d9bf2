"""Groups of cases, and every measure of a model on one of them with its replicates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from medtl.evaluation.engine.sample import Cases, Key, Sample
from medtl.evaluation.results import Settings
from medtl.evaluation.statistics.arrays import Floats, Ints, seed_from
from medtl.evaluation.statistics.resample import patient_counts, patient_strata
from medtl.evaluation.tables.predictions import PredictionTable


@dataclass(frozen=True)
class Group:
    """The cases of one domain and split, of one site or of all (None), and one finding ("" for none)."""

    domain: str
    split: str
    site: str | None
    finding: str
    whole: bool


@dataclass(frozen=True)
class Replicates:
    """One model on one group: means over seeds, their replicates, and the values of each seed."""

    value: dict[Key, float]
    replicates: dict[Key, Floats]
    per_seed: dict[str, dict[Key, float]]
    samples: dict[str, Sample]


@dataclass(frozen=True)
class Plan:
    """What holds for the whole evaluation."""

    table: PredictionTable
    settings: dict[tuple[str, str, str], Settings]
    positive: int | None
    prevalence: float | None
    replicates: int
    level: float
    seed: int


def groups(table: PredictionTable) -> Iterator[Group]:
    """The groups of a table, external testing first."""
    for finding in table.findings:
        for domain, split in (
            ("target", "test"),
            ("target", "validation"),
            ("source", "test"),
            ("source", "validation"),
        ):
            rows = table.rows(finding=finding, domain=domain, split=split)
            sites = sorted(set(table.site[rows].tolist()))
            if len(sites) > 1:
                yield Group(domain, split, None, finding, True)
            for site in sites:
                yield Group(domain, split, site, finding, len(sites) == 1)


def gather(plan: Plan, group: Group) -> tuple[Cases, dict[str, dict[str, Ints]]]:
    """The cases of a group and, for each model and seed that has any, its rows in the same order."""
    table = plan.table
    where = {"finding": group.finding, "domain": group.domain, "split": group.split}
    if group.site is not None:
        where["site"] = group.site
    every = {m: {s: table.rows(model=m, seed=s, **where) for s in table.seeds(m)} for m in table.models}
    given = {m: {s: own for s, own in runs.items() if len(own)} for m, runs in every.items()}
    rows = {m: runs for m, runs in given.items() if runs}
    first = next(iter(next(iter(rows.values())).values()))
    names, patient = np.unique(table.patient[first].astype(str), return_inverse=True)
    cases = Cases(
        label=table.label[first],
        patient=patient.astype(np.int64),
        num_patients=len(names),
        weight=table.weight[first],
        classes=table.classes,
        positive=plan.positive,
    )
    return cases, rows


def strata_of(plan: Plan, cases: Cases, rows: Ints) -> Ints:
    """Strata of the patients of some rows, by class and site."""
    site = np.unique(plan.table.site[rows].astype(str), return_inverse=True)[1]
    return patient_strata(cases.label, cases.patient, cases.num_patients, site.astype(np.int64))


def run_model(plan: Plan, group: Group, cases: Cases, rows: dict[str, Ints], model: str) -> Replicates:
    """Values and replicates of one model; the draw depends on the group alone, so that models are paired."""
    samples = {}
    for seed, own in rows.items():
        frozen = plan.settings[model, seed, group.finding]
        point, temperature = frozen.operating_point, frozen.temperature
        samples[seed] = Sample(cases, plan.table.logits[own], point, temperature, plan.prevalence)
    once = np.ones((1, cases.num_patients))
    per_seed = {
        seed: {key: float(v[0]) for key, v in (sample.measures(once) | sample.shares(once)).items()}
        for seed, sample in samples.items()
    }
    strata = strata_of(plan, cases, next(iter(rows.values())))
    draw = seed_from(plan.seed, group.domain, group.split, group.site, group.finding)
    n = len(cases.label)
    blocks: list[dict[Key, Floats]] = []
    for counts in patient_counts(strata, plan.replicates, draw, n):
        blocks.append(_mean([sample.measures(counts) for sample in samples.values()]))
    shares: list[dict[Key, Floats]] = []
    # Within a class the shares would hardly vary: here patients are drawn whatever their class.
    for counts in patient_counts(np.zeros_like(strata), plan.replicates, draw + 1, n):
        shares.append(_mean([sample.shares(counts) for sample in samples.values()]))
    replicates = _join(blocks) | _join(shares)
    value = {key: float(np.mean([values[key] for values in per_seed.values()])) for key in replicates}
    return Replicates(value, replicates, per_seed, samples)


def _mean(values: list[dict[Key, Floats]]) -> dict[Key, Floats]:
    # A stage that one seed lacks (no temperature) is left out: the other seeds' mean is not the model's.
    keys = [key for key in values[0] if all(key in v for v in values)]
    return {key: np.mean([v[key] for v in values], axis=0) for key in keys}


def _join(blocks: list[dict[Key, Floats]]) -> dict[Key, Floats]:
    return {key: np.concatenate([block[key] for block in blocks]) for key in blocks[0]}
