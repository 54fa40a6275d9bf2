"""Ranks candidate encoders by their frozen features: of scans with labels, or of places in scans with masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from medtl.data.cases.table import Case
from medtl.data.cohort import Cohort
from medtl.encoders import page
from medtl.encoders.advice import Advice, advise, skill
from medtl.encoders.candidates import Pretrained
from medtl.encoders.distance import Distance, domain_distance
from medtl.encoders.features import extract_depths, extract_features
from medtl.encoders.locations import CELL, find_locations, location_features, slice_features
from medtl.encoders.ranking import SCORES, Candidate, Ranking, rank_candidates
from medtl.encoders.source_head import source_probabilities
from medtl.errors import ConfigError, DataError
from medtl.report import write_page
from medtl.runs import Run

SPLITS = ("train", "validation")
"""The patients that fine-tuning trains and validates on. Its test patients stay unseen, or the choice would flatter."""
ALL_STAGES = "all stages"

Bar = Callable[[int, int], None] | None
"""Called with (done, total)."""


@dataclass(frozen=True)
class EncoderRanking:
    """The order of the candidates, with distances and advice.

    Attributes:
        task: `labels` or `masks`.
        ranking: order by the features that training would start from.
        by_depth: the order of the depths of each candidate.
        distances: distance of source and target in each candidate's features; empty without a target.
        advice: the strategy to try first with the best candidate.
        scored: what was scored, in sentences.
        sites: names of the source's sites.
        counted: what was scored, with the number of patients, in a few words.
    """

    task: str
    ranking: Ranking
    by_depth: Mapping[str, Ranking]
    distances: Mapping[str, Distance]
    advice: Advice
    scored: tuple[str, ...]
    sites: tuple[str, ...]
    counted: str

    @property
    def verdict(self) -> tuple[str, ...]:
        """The finding, in two or three sentences."""
        return page.verdict(self.ranking, self.advice)

    def rows(self) -> list[dict[str, Any]]:
        """One row per candidate, for a terminal."""
        return page.table_rows(self.ranking, self.distances)

    def save(self, run: Run) -> Path:
        """Writes `ranking.csv`, `ranking.json` and `report/` into a run; returns the path of the page."""
        run.write("ranking.csv", page.table_csv(self.ranking, self.distances))
        run.write_json(
            "ranking.json",
            {
                "task": self.task,
                "scored": " ".join(self.scored),
                "ranking": page.ranking_json(self.ranking),
                "depths": {name: page.ranking_json(found) for name, found in self.by_depth.items()},
                "distances": {name: asdict(found) for name, found in self.distances.items()},
                "advice": asdict(self.advice),
            },
        )
        return write_page(
            f"Encoders for {' and '.join(self.sites)}",
            page.sections(self.ranking, self.by_depth, self.distances, self.advice, self.scored, self.task),
            run.folder / "report",
            lead=self.verdict,
            kicker="medtl ranking of encoders",
            byline=(self.counted, "no model was trained"),
        )


def check_score(score: str, candidates: Mapping[str, Pretrained], *, masks: bool) -> None:
    """Raises `ConfigError` for a score that is not known, or that cannot be had of these candidates or of masks.

    Args:
        score: its name.
        candidates: the encoders, by name.
        masks: whether the task is segmentation.

    Raises:
        ConfigError: the score is unknown, or does not fit.
    """
    if score not in SCORES:
        raise ConfigError(f"There is no score {score!r}. There are: {', '.join(SCORES)}.")
    if score == "leep" and masks:
        raise ConfigError(
            "LEEP needs the encoder's own head, which classifies whole scans; masks label places in them. Use logme, "
            "h_score or knn."
        )
    if score == "leep" and (without := [n for n, c in candidates.items() if c.head is None]):
        raise ConfigError(
            f"LEEP needs a head, and {without[0]} has none that is known. Rank by logme instead."
        )


def rank(
    candidates: Mapping[str, Pretrained],
    cohort: Cohort,
    folder: Path,
    *,
    score: str = "logme",
    halves: int = 100,
    seed: int = 0,
    batch_size: int = 32,
    progress: Callable[[str], Bar] = lambda label: None,
) -> EncoderRanking:
    """Ranks encoders on the source's cases by their labels, or by places in the scans if the cohort has masks.

    No label or mask of the target is read.

    Args:
        candidates: candidates by name.
        cohort: the cases; if it has a target, the distance of the target is measured.
        folder: folder of stored features, see `extract_features`.
        score: a key of `SCORES` that orders the candidates.
        halves: number of random halves of the patients, which measure how certain the order is.
        seed: seed of the halves, the folds and the places.
        batch_size: images or slices encoded at once.
        progress: returns, for a label, a function that is called with (done, total).

    Raises:
        ConfigError: see `check_score`.
        DataError: too few cases, patients or classes to rank encoders.
    """
    masks = cohort.table.labels is not None
    task = "masks" if masks else "labels"
    check_score(score, candidates, masks=masks)
    cases = tuple(case for split in SPLITS for case in cohort.select("source", split))
    if not cases:
        raise DataError("There is no case to score encoders on: every case of the source was left out.")
    there = cohort.select("target")
    sample: _Sample = (
        _Places(cohort, cases, seed, batch_size) if masks else _Scans(cohort, cases, folder, batch_size)
    )
    whole: dict[str, Candidate] = {}
    depths: dict[str, dict[str, Candidate]] = {}
    distances: dict[str, Distance] = {}
    for name, candidate in candidates.items():
        whole[name], depths[name] = sample.score(candidate, progress(f"Features of {name}"))
        if there:
            parts = [(cases, progress("At the source")), (there, progress("At the target"))]
            features = [sample.vectors(candidate, part, bar) for part, bar in parts]
            people = [[case.draw for case in part] for part, _ in parts]
            distances[name] = domain_distance(*features, *people, seed=seed)
    options: dict[str, Any] = {"replicates": halves, "seed": seed}
    ranking = rank_candidates(whole, sample.labels, sample.patients, score=score, **options)
    order = "logme" if score == "leep" else score  # early depths have no head
    by_depth = {
        row.name: rank_candidates(depths[row.name], sample.labels, sample.patients, score=order, **options)
        for row in ranking.rows
    }
    best = ranking.rows[0]
    classes = np.unique(sample.labels)
    smallest = min(len(set(sample.patients[sample.labels == k])) for k in classes)
    advice = advise(
        smallest,
        skill(best.scores["knn"].value or 0.0, len(classes)),
        distances.get(best.name),
        # A decoder uses the maps of all depths, so a good score of an early one says nothing about the distance.
        depth=None if masks else _clearly_earlier(by_depth[best.name], list(depths[best.name])[-1]),
        task=task,
    )
    return EncoderRanking(
        task=task,
        ranking=ranking,
        by_depth=by_depth,
        distances=distances,
        advice=advice,
        scored=sample.words(),
        sites=cohort.sites("source"),
        counted=f"{len(sample.labels)} {sample.unit} of {len(set(sample.patients))} patients",
    )


def _clearly_earlier(depths: Ranking, last: str) -> str | None:
    """The best depth, if it is not the last and clearly the best."""
    best = depths.rows[0]
    return best.name if best.first >= page.SURE and best.name != last else None


class _Sample(Protocol):
    """The samples that candidates are scored on.

    Attributes:
        unit: the labelled unit: cases or places.
        labels: (n,) class indices.
        patients: (n,) patient of each sample.
    """

    unit: str
    labels: NDArray[Any]
    patients: NDArray[Any]

    def score(self, candidate: Pretrained, progress: Bar) -> tuple[Candidate, dict[str, Candidate]]:
        """The features that rank the candidates, and those by depth."""

    def vectors(self, candidate: Pretrained, cases: tuple[Case, ...], progress: Bar) -> NDArray[Any]:
        """One vector per case, (N, F), for the distance of two sites."""

    def words(self) -> tuple[str, ...]:
        """What was scored."""


class _Scans:
    """Whole scans with their labels."""

    unit = "cases"

    def __init__(self, cohort: Cohort, cases: tuple[Case, ...], folder: Path, batch_size: int) -> None:
        data = cohort.dataset("source", "train", with_labels=True, cases=cases)
        assert data is not None
        self.cohort, self.data, self.folder, self.batch_size = cohort, data, folder, batch_size
        self.labels = np.array(data.labels)
        self.patients = np.array([case.draw for case in cases])

    def score(self, candidate: Pretrained, progress: Bar) -> tuple[Candidate, dict[str, Candidate]]:
        found = extract_depths(
            candidate.encoder, self.data, self.folder, batch_size=self.batch_size, progress=progress
        )
        depths = {depth: Candidate(data.vectors[:, 0].numpy()) for depth, data in found.items()}
        last = list(found)[-1]
        probs = None
        if candidate.head is not None:
            probs = source_probabilities(candidate.head, found[last].features[:, 0])
        return Candidate(depths[last].features, probs), depths

    def vectors(self, candidate: Pretrained, cases: tuple[Case, ...], progress: Bar) -> NDArray[Any]:
        data = self.cohort.dataset("any", "any", cases=cases)
        assert data is not None
        found = extract_features(
            candidate.encoder, data, self.folder, batch_size=self.batch_size, progress=progress
        )
        return np.asarray(found.vectors[:, 0].numpy())

    def words(self) -> tuple[str, ...]:
        return (
            "The encoders were not trained: their frozen features of each scan were scored against its label. This "
            "orders the candidates on these cases; it does not predict the accuracy after training.",
        )


class _Places:
    """Places in scans, labelled by their structures in the masks."""

    unit = "places"

    def __init__(self, cohort: Cohort, cases: tuple[Case, ...], seed: int, batch_size: int) -> None:
        self.cohort, self.batch_size = cohort, batch_size
        self.locations = find_locations(cohort, cases, seed=seed)
        self.labels, self.patients = self.locations.labels, self.locations.patients

    def score(self, candidate: Pretrained, progress: Bar) -> tuple[Candidate, dict[str, Candidate]]:
        found = location_features(
            candidate.encoder, self.cohort, self.locations, batch_size=self.batch_size, progress=progress
        )
        # Each stage has the same weight, whatever its width and the scale of its values.
        parts = [f / max(float(np.sqrt((f**2).sum(axis=1).mean())), 1e-12) for f in found.values()]
        together = Candidate(np.concatenate(parts, axis=1))
        return together, {depth: Candidate(f) for depth, f in found.items()} | {ALL_STAGES: together}

    def vectors(self, candidate: Pretrained, cases: tuple[Case, ...], progress: Bar) -> NDArray[Any]:
        return slice_features(
            candidate.encoder, self.cohort, cases, batch_size=self.batch_size, progress=progress
        )

    def words(self) -> tuple[str, ...]:
        classes = self.cohort.table.classes
        counts = ", ".join(
            f"{int((self.labels == k).sum())} of {name}"
            for k, name in enumerate(classes)
            if (self.labels == k).any()
        )
        words = (
            "The encoders were not trained: their frozen feature maps were scored against the masks, place by place. "
            "This orders the candidates on these scans; it does not predict the Dice after training.",
            f"A place is a square of {CELL} x {CELL} pixels, at the resolution of training, and its label is the "
            "structure (or the background) that fills more than half of it. Places were drawn at random, in equal "
            "numbers from each patient and structure if possible, and as many of the background as of the most common "
            f"structure: {counts}. The features of a place are the values of the maps of all stages, concatenated, as "
            "a decoder sees them.",
        )
        if not self.locations.left_out:
            return words
        missing = " and ".join(self.locations.left_out)
        return (
            *words,
            f"Not scored: {missing}, which fills more than half of a square in fewer than two patients.",
        )
