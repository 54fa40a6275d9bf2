"""Ranks candidate encoders by scores of their frozen features, with the uncertainty of the order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import kendalltau

from medtl.encoders.scores import Ints, check_features, check_patients, h_score, knn_score, leep, logme
from medtl.errors import ConfigError, DataError
from medtl.evaluation.statistics.estimate import FEW_EVENTS, Estimate
from medtl.evaluation.statistics.resample import Support, estimate, patient_strata

__all__ = [
    "SCORES",
    "Candidate",
    "Ranked",
    "Ranking",
    "h_score",
    "knn_score",
    "leep",
    "logme",
    "random_halves",
    "rank_candidates",
]

SCORES = {"logme": "LogME", "h_score": "H-score", "knn": "kNN balanced accuracy", "leep": "LEEP"}
"""The scores by name, and their titles on a page. Higher is better for all."""
METHOD = "random halves of the patients"


@dataclass(frozen=True)
class Candidate:
    """One encoder's features of the cases.

    Attributes:
        features: (n, F).
        source_probs: (n, Z) probabilities of its own head's classes, or None without a head.
    """

    features: NDArray[Any]
    source_probs: NDArray[Any] | None = None


@dataclass(frozen=True)
class Ranked:
    """One candidate in the order.

    Attributes:
        name: name of the candidate.
        rank: 1 is the best.
        first: share of the random halves in which it is the best; ties share it.
        scores: scores by name, as in `SCORES`; without LEEP if there is no head.
    """

    name: str
    rank: int
    first: float
    scores: dict[str, Estimate]


@dataclass(frozen=True)
class Ranking:
    """The order of the candidates.

    Attributes:
        rows: best first.
        score: the score that orders them.
        agreement: Kendall's tau between the orders of two scores; None if one is not defined.
        stability: mean Kendall's tau between the order on all patients and on random halves; None with one candidate.
        replicates: number of halves.
    """

    rows: tuple[Ranked, ...]
    score: str
    agreement: dict[tuple[str, str], float | None]
    stability: float | None
    replicates: int


def rank_candidates(
    candidates: Mapping[str, Candidate],
    labels: NDArray[Any],
    patients: NDArray[Any],
    *,
    score: str = "logme",
    replicates: int = 100,
    seed: int = 0,
    level: float = 0.95,
) -> Ranking:
    """Scores every candidate on the same cases and measures how certain their order is.

    The uncertainty comes from random halves of each class's patients. For averages, their spread equals that of a
    bootstrap (Shao and Wu 1989), but no case occurs twice: LogME would count a copy as evidence, and nearest neighbours
    would find it. An interval is the score on all cases with its standard deviation over the halves.

    Args:
        candidates: candidates by name, each with features of the same n cases.
        labels: (n,) class indices.
        patients: (n,) patient of each case.
        score: a key of `SCORES`; LEEP only if all candidates have a head.
        replicates: number of halves.
        seed: seed of the halves.
        level: level of the intervals.

    Raises:
        ConfigError: an unknown score, no candidate, or LEEP without a head.
        DataError: see `check_features`; or a class with a single patient.
    """
    if score not in SCORES or not candidates:
        raise ConfigError(
            f"Cannot rank {len(candidates)} candidates by {score!r}. There are: {', '.join(SCORES)}."
        )
    if score == "leep" and (without := [n for n, c in candidates.items() if c.source_probs is None]):
        raise ConfigError(
            f"LEEP needs a head, and {without[0]} has none that is known. Rank by logme instead."
        )
    labels, who = np.asarray(labels), np.unique(patients, return_inverse=True)[1]
    for name, candidate in candidates.items():
        try:
            check_features(candidate.features, labels)
        except DataError as error:
            raise DataError(f"{name}: {error}") from error
    check_patients(labels, who)
    halves = list(random_halves(labels, who, replicates, seed))
    values = {n: _scores(c, labels, who, slice(None)) for n, c in candidates.items()}
    drawn = {
        name: {
            key: np.array(found)
            for key, found in _transposed([_scores(c, labels, who, h) for h in halves]).items()
        }
        for name, c in candidates.items()
    }
    smallest = min(len(set(who[labels == k])) for k in np.unique(labels))
    z = float(ndtri(0.5 + level / 2))

    num = int(who.max()) + 1
    status = "few_events" if smallest < FEW_EVENTS else "ok"

    def number(name: str, key: str) -> Estimate:
        value, spread = values[name][key], drawn[name].get(key, np.zeros(0))
        if key == "knn":  # a share: its interval stays between 0 and 1, and has a width at the ends
            support = Support(len(labels), num, None, smallest, num)
            found = estimate(value, spread, kind="proportion", level=level, support=support)
            return replace(found, method=METHOD)
        half = z * float(spread.std(ddof=1)) if len(spread) > 1 else None
        lo, hi = (None, None) if half is None else (value - half, value + half)
        return Estimate(value, lo, hi, METHOD, level, len(labels), num, None, status)

    order = sorted(candidates, key=lambda n: -values[n][score])
    stacked = np.stack([drawn[n][score] for n in order]) if replicates else np.zeros((len(order), 0))
    best = stacked == stacked.max(axis=0, initial=-np.inf)
    first = (
        (best / np.maximum(best.sum(axis=0), 1)).mean(axis=1) if replicates else np.full(len(order), np.nan)
    )
    shared = [k for k in SCORES if all(k in values[n] for n in order)]
    taus = [_tau(-np.arange(len(order)), column) for column in stacked.T]
    known = [t for t in taus if t is not None]
    return Ranking(
        rows=tuple(
            Ranked(n, place + 1, float(first[place]), {k: number(n, k) for k in values[n]})
            for place, n in enumerate(order)
        ),
        score=score,
        agreement={
            (a, b): _tau([values[n][a] for n in order], [values[n][b] for n in order])
            for a, b in combinations(shared, 2)
        },
        stability=float(np.mean(known)) if known else None,
        replicates=replicates,
    )


def random_halves(labels: Ints, patients: Ints, replicates: int, seed: int) -> Iterator[Ints]:
    """Draws half of each class's patients without replacement: at least two, the larger half of an odd number.

    A patient with cases of several classes belongs to the rarest of them. A class that has too few patients left by
    that is filled up to two.
    """
    own = np.unique(labels, return_inverse=True)[1].astype(np.int64)
    strata = patient_strata(own, patients, int(patients.max()) + 1)
    members = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    by_class = [np.unique(patients[own == k]) for k in np.unique(own)]
    generator = np.random.default_rng([seed, len(labels)])
    for _ in range(replicates):
        chosen = np.zeros(len(strata), dtype=bool)
        for stratum in members:
            chosen[generator.permutation(stratum)[: max(2, -(-len(stratum) // 2))]] = True
        for people in by_class:
            left_out = people[~chosen[people]]
            if (missing := 2 - (len(people) - len(left_out))) > 0 and len(left_out):
                chosen[generator.permutation(left_out)[:missing]] = True
        yield np.flatnonzero(chosen[patients])


def _scores(candidate: Candidate, labels: NDArray[Any], patients: Ints, rows: Any) -> dict[str, float]:
    features, y, who = candidate.features[rows], labels[rows], patients[rows]
    found = {"logme": logme(features, y), "h_score": h_score(features, y), "knn": knn_score(features, y, who)}
    if candidate.source_probs is not None:
        found["leep"] = leep(candidate.source_probs[rows], y)
    return found


def _transposed(rows: list[dict[str, float]]) -> dict[str, list[float]]:
    return {key: [row[key] for row in rows] for key in (rows[0] if rows else {})}


def _tau(first: Any, second: Any) -> float | None:
    tau = kendalltau(first, second).statistic if len(first) > 1 else np.nan
    return float(tau) if np.isfinite(tau) else None
