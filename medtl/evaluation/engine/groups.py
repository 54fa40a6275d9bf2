"""Types that the engine and both tasks share: runs, groups of cases, and values with their replicates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np

from medtl.errors import DataError
from medtl.evaluation.metrics.metric import Key
from medtl.evaluation.results import Block, SegmentationRules, Settings, WorstCase
from medtl.evaluation.statistics.arrays import Floats, Ints, Strings, seed_from
from medtl.evaluation.statistics.resample import Support
from medtl.evaluation.tables.rows import codes, seed_order

PLACES = (("target", "test"), ("target", "validation"), ("source", "test"), ("source", "validation"))
"""Domains and splits that are evaluated, external testing first."""
CURVE_REPLICATES = 500
"""Resamples for the bands of curves: a band needs fewer than a reported limit."""


class Run(NamedTuple):
    """A training run of a model, on one finding or structure ("" where there are none)."""

    model: str
    seed: str
    part: str = ""


@dataclass(frozen=True)
class Resampling:
    """How patients are resampled: number of resamples, level of confidence, seed."""

    replicates: int
    level: float
    seed: int


@dataclass(frozen=True)
class Columns:
    """Rows of a table, (n,) each: one a case and run. `part` is the finding or structure, "" where there are none."""

    case: Strings
    patient: Strings
    domain: Strings
    split: Strings
    site: Strings
    weight: Floats
    model: Strings
    seed: Strings
    part: Strings


@dataclass(frozen=True)
class Group:
    """The cases of one domain and split, of one site or of all (None), the same for every model.

    Attributes:
        domain: `source` or `target`.
        split: `test` or `validation`.
        site: name, or None for all sites together.
        finding: name of the finding, "" for tasks without.
        whole: whether it is the largest group of its domain, split and finding.
        case: (n,) names, sorted.
        sites: (n,) site of each case.
        patient: (n,) index of each case's patient.
        num_patients: P.
        weight: (n,) weight of each case.
        rows: by run, (n,) rows of the table, in the order of the cases.
    """

    domain: str
    split: str
    site: str | None
    finding: str
    whole: bool
    case: Strings = field(repr=False)
    sites: Strings = field(repr=False)
    patient: Ints = field(repr=False)
    num_patients: int
    weight: Floats = field(repr=False)
    rows: dict[Run, Ints] = field(repr=False)

    def seeds(self, model: str) -> tuple[str, ...]:
        """Training seeds of a model; empty for one that was never taken to these cases."""
        found = {run.seed for run in self.rows if run.model == model}
        return tuple(sorted(found, key=seed_order))

    def block(self, model: str, **shown: Any) -> Block:
        """The block of a model, still without its measures; `shown` are fields that the group does not know."""
        return Block(
            model=model,
            domain=self.domain,
            split=self.split,
            site=self.site,
            finding=self.finding or None,
            num_cases=len(self.case),
            num_patients=self.num_patients,
            seeds=self.seeds(model),
            measures=(),
            **shown,
        )

    def draw_seed(self, seed: int, what: str) -> int:
        """The seed of this group's resamples: it depends on the group alone, so that models are paired."""
        return seed_from(seed, self.domain, self.split, self.site, what)

    @property
    def site_index(self) -> Ints:
        """(n,) index of each case's site."""
        return np.unique(self.sites.astype(str), return_inverse=True)[1].astype(np.int64)


def groups(rows: Columns, findings: Sequence[str] | None = None) -> Iterator[Group]:
    """The groups of a table: for each domain and split all sites together, then each site.

    Args:
        rows: of the table.
        findings: each is a task of its own, with groups of its own; None: parts are structures of the same cases.

    Raises:
        DataError: a run lacks cases that other runs have.
    """
    order = np.argsort(codes(rows.case), kind="stable")
    runs = codes(rows.model, rows.seed, rows.part)
    for finding in ("",) if findings is None else findings:
        for domain, split in PLACES:
            inside = (rows.domain == domain) & (rows.split == split)
            if findings is not None:
                inside &= rows.part == finding
            own = order[inside[order]]
            sites = sorted(set(rows.site[own].tolist()))
            if len(sites) > 1:
                yield _group(rows, own, runs, domain, split, None, finding, True)
            for site in sites:
                here = own[rows.site[own] == site]
                yield _group(rows, here, runs, domain, split, site, finding, len(sites) == 1)


def _group(
    rows: Columns, own: Ints, runs: Ints, domain: str, split: str, site: str | None, finding: str, whole: bool
) -> Group:
    by_run = own[np.argsort(runs[own], kind="stable")]
    parts = np.split(by_run, np.flatnonzero(np.diff(runs[by_run])) + 1)
    found = {Run(str(rows.model[p[0]]), str(rows.seed[p[0]]), str(rows.part[p[0]])): p for p in parts}
    case = np.unique(rows.case[own].astype(str))
    for run, part in found.items():
        if not np.array_equal(rows.case[part].astype(str), case):
            raise DataError(
                f"Model {run.model!r}, seed {run.seed}, has {len(part)} rows for the {len(case)} cases of the "
                f"{domain}'s {split} split. Models are compared on the same cases: give each of them once."
            )
    first = parts[0]
    # Numbered in the order of cases, and not of their names: these are pseudonyms, and other ones in every project.
    _, start, place = np.unique(rows.patient[first].astype(str), return_index=True, return_inverse=True)
    patient = np.argsort(np.argsort(start))[place]
    return Group(
        domain=domain,
        split=split,
        site=site,
        finding=finding,
        whole=whole,
        case=case,
        sites=rows.site[first],
        patient=patient.astype(np.int64),
        num_patients=len(start),
        weight=rows.weight[first],
        rows=found,
    )


Measured = dict[Key, Floats]
"""Values on resamples, (b,) each."""


@dataclass(frozen=True)
class Runs:
    """One model on one group: means over its training seeds, their replicates, and the values of each seed.

    Attributes:
        value: by key.
        replicates: by key, (B,) each.
        per_seed: by seed.
        support: what each value rests on.
        block: what the results show of it, still without its measures.
        status: the status that stands instead of an estimate's own, such as `class_missing`.
        limits: limits where all replicates are the same number, instead of that number, and how they were had.
        medians: medians over cases, a description: the value and that of each seed.
    """

    value: dict[Key, float]
    replicates: dict[Key, Floats]
    per_seed: dict[str, dict[Key, float]]
    support: dict[Key, Support]
    block: Block
    status: dict[Key, str] = field(default_factory=dict)
    limits: dict[Key, tuple[float, float, str]] = field(default_factory=dict)
    medians: dict[Key, tuple[float, dict[str, float | None]]] = field(default_factory=dict)


class Task(ABC):
    """The differences between classification and segmentation; the engine does the rest for both.

    Attributes:
        kind: `classification` or `segmentation`, whose metrics are reported.
        name: as `Results.task`; the other attributes are those of `Results`, too.
        models: in the order of the table.
    """

    kind: ClassVar[str]
    name: str
    classes: tuple[str, ...]
    models: tuple[str, ...]
    settings: Sequence[Settings]
    patients_known: bool
    rule: str = "most probable class"
    positive: str | None = None
    positive_reason: str = ""
    prevalence: float | None = None
    num_clipped: int = 0
    segmentation: SegmentationRules | None = None

    @abstractmethod
    def groups(self) -> Iterator[Group]:
        """The groups of cases, external testing first."""

    @abstractmethod
    def measure(self, group: Group, model: str) -> Runs:
        """Every number of one model on one group."""

    def worst(self, models: Sequence[str]) -> Iterator[WorstCase]:
        """The cases to look at, where single cases are judged."""
        return iter(())


def resample(
    seeds: Mapping[str, Callable[[Floats], Measured]], counts: Iterable[Floats]
) -> dict[Key, Floats]:
    """Replicates (B,) of the mean over training seeds, of what every seed has.

    What one seed lacks is left out: the other seeds' mean is not the model's.

    Args:
        seeds: by training seed, what gives its values on resamples (b, P).
        counts: the resamples, block by block.
    """
    blocks = []
    for drawn in counts:
        found = [measure(drawn) for measure in seeds.values()]
        keys = [key for key in found[0] if all(key in values for values in found)]
        blocks.append({key: np.mean([values[key] for values in found], axis=0) for key in keys})
    return {key: np.concatenate([block[key] for block in blocks]) for key in blocks[0]}


def means(per_seed: Mapping[str, Mapping[Key, float]], keys: Iterable[Key]) -> dict[Key, float]:
    """The mean over training seeds of each key."""
    return {key: float(np.mean([values[key] for values in per_seed.values()])) for key in keys}


def band(curve: Floats, drawn: Floats, level: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Percentiles at each point of a curve; the curve itself stands in where a resample has no value."""
    lo, hi = np.quantile(
        np.where(np.isfinite(drawn), drawn, curve), [(1 - level) / 2, (1 + level) / 2], axis=0
    )
    return points(lo), points(hi)


def points(values: Floats) -> tuple[float, ...]:
    """Points of a curve, as results.json has them."""
    return tuple(float(v) for v in np.round(values, 6))
