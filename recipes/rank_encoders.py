r"""Ranks encoders for a task from their frozen features, without training them, and advises a strategy.

Scores candidates on the labelled patients that fine-tuning would train and validate on (its test patients are not
looked at), says how sure the order is, at which depth the features serve best, and with --target how far the sites
are apart.

    medtl run rank_encoders --source sample_data/site_a --labels sample_data/site_a/labels.csv \
        --target sample_data/site_b --encoders tf_efficientnet_lite0,tf_efficientnet_lite0=random
    medtl run rank_encoders --smoke
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import medtl
from medtl.cli import progress, run_recipe, say, table
from medtl.config import Config as BaseConfig
from medtl.config import listed, sample_site
from medtl.distance import Advice, Distance, advise, domain_distance, skill
from medtl.evaluation import (
    Drawing,
    Section,
    TableBuilder,
    format_estimate,
    interval_figure,
    plain,
    write_page,
)
from medtl.models.depths import encode_depths, source_head
from medtl.models.ranking import SCORES, Candidate, Ranking, rank_candidates
from medtl.runs import shareable_path

SURE = 0.9
"""An order (or a depth) that holds in so many of the random halves is called clear: a convention."""


@dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
    """Flags of this recipe."""

    labels: Path | None = None
    """CSV with the columns case and label, for the sources; patient and site are used where present."""

    target: Path | None = None
    """Folder of scans of the site where a model is wanted: how far it lies is said. No label of it is read."""

    classes: tuple[str, ...] = ()
    """Use these classes alone; by default all of the labels."""

    encoders: str = "tf_efficientnet_lite0,tf_efficientnet_lite0=random"
    """Candidates, separated by commas: ENCODER, or ENCODER=FILE (or =random) for weights of its own."""

    score: str = "logme"
    """What orders them: logme, h_score, knn or leep."""

    halves: int = 100
    """Random halves of the patients that say how sure the order is."""

    weights: str = "imagenet"
    """Weights of candidates that name none: `imagenet`, a weights file, or `random`."""

    image_size: int = 96
    """Pixels along each side of an image or slice: as in the training that will follow."""

    slices: int | None = None
    """Slices of a volume; by default what most volumes have."""

    intensity: str = "auto"
    """Range of values: auto, percentile, unit, a named CT window, or window:LO,HI in HU."""

    batch_size: int = 32
    """Images or slices that are encoded at once."""

    def reduced(self) -> Config:
        """For `--smoke`: random weights and small images, on sample_data unless folders are given."""
        if not self.smoke:
            return self
        site = sample_site("site_a")
        sample = {"source": (site,), "labels": site / "labels.csv", "target": sample_site("site_b")}
        own = self if self.source else dataclasses.replace(self, **sample)
        return dataclasses.replace(own, image_size=48, weights="random", halves=10)


def main(config: Config, command: Sequence[str] = ()) -> None:
    """Runs the recipe."""
    given = config.reduced()
    pairs = candidates(given)
    shown = ",".join(pairs)
    command = [word.replace(config.encoders, shown) for word in command]
    run = medtl.Run.plan(Path(__file__).stem, dataclasses.replace(given, encoders=shown))
    config = run.config
    if config.labels is None or not config.source:
        raise medtl.ConfigError("Give --source DIR --labels CSV (or try --smoke).")
    cases = medtl.collect_cases(
        source=config.source,
        labels=config.labels,
        target=config.target,
        classes=config.classes or None,
        val_fraction=0.2,
        test_fraction=0.2,
        seed=config.seed,
    )
    preprocess = medtl.suggest_preprocess(cases.items(), config.image_size, config.slices, config.intensity)
    encoders = {
        name: medtl.build_classifier(  # seeded, and absent weights are an error before anything is written
            encoder,
            len(cases.classes),
            weights=weights,
            in_channels=preprocess.channels,
            image_size=preprocess.image_size,
            seed=config.seed,
        ).encoder
        for name, (encoder, weights) in pairs.items()
    }

    with run.open(command):
        say(f"Run: {run.name}")
        cohort = medtl.Cohort.prepare(cases, preprocess, run.cache, progress=progress("Preparing scans"))
        cohort.table.to_csv(run.folder / "cases.csv")
        say(table(cohort.summary()) + "\n" + "\n".join(cohort.table.warnings))
        chosen = [c for split in ("train", "validation") for c in cohort.select("source", split)]
        source = cohort.dataset("source", "train", with_labels=True, cases=chosen)
        target = cohort.dataset("target", "test")
        assert source is not None
        labels, patients = np.array(source.labels), np.array([c.patient for c in chosen])
        batch, last, depths, distances = cohort.cases_per_batch(config.batch_size), {}, {}, {}
        for name, encoder in encoders.items():
            head = source_head(encoder, pairs[name][1])
            features, probs = encode_depths(
                encoder, source, batch_size=batch, head=head, progress=progress(f"Features of {name}")
            )
            last[name] = Candidate(list(features.values())[-1], probs)
            depths[name] = {depth: Candidate(values) for depth, values in features.items()}
            if target is not None:
                there, _ = encode_depths(
                    encoder, target, batch_size=batch, progress=progress("At the target")
                )
                distances[name] = domain_distance(
                    last[name].features,
                    list(there.values())[-1],
                    patients,
                    [c.patient for c in target.cases],
                    seed=config.seed,
                )
        options: dict[str, Any] = {"replicates": config.halves, "seed": config.seed}
        ranking = rank_candidates(last, labels, patients, score=config.score, **options)
        order = "logme" if config.score == "leep" else config.score  # early depths have no head
        by_depth = {
            row.name: rank_candidates(depths[row.name], labels, patients, score=order, **options)
            for row in ranking.rows
        }
        best = ranking.rows[0]
        smallest = min(len(set(patients[labels == k])) for k in np.unique(labels))
        knn = best.scores["knn"].value or 0.0
        earlier = by_depth[best.name].rows[0]
        clear = earlier.first >= SURE and earlier.name != list(depths[best.name])[-1]
        advice = advise(
            smallest,
            skill(knn, len(np.unique(labels))),
            distances.get(best.name),
            depth=earlier.name if clear else None,
        )
        rows = table_rows(ranking, distances)
        run.write("ranking.csv", csv(ranking, distances))
        run.write_json(
            "ranking.json",
            {
                "ranking": ranking_json(ranking),
                "depths": {name: ranking_json(found) for name, found in by_depth.items()},
                "distances": {name: asdict(found) for name, found in distances.items()},
                "advice": asdict(advice),
            },
        )
        lead = verdict(ranking, advice)
        page = write_page(
            f"Encoders for {' and '.join(cohort.sites('source'))}",
            sections(ranking, by_depth, distances, advice),
            run.folder / "report",
            lead=lead,
            kicker="medtl ranking of encoders",
            byline=(f"{len(labels)} cases of {len(set(patients))} patients", "no model was trained"),
        )
    say("\n" + table(rows) + "\n\n" + "\n".join((*lead, *advice.reasons)))
    say(f"\nReport: {page}")


def candidates(config: Config) -> dict[str, tuple[str, str]]:
    """Encoder and weights of each candidate, by a name without folders."""
    pairs: dict[str, tuple[str, str]] = {}
    for entry in listed(config.encoders, "--encoders"):
        encoder, equals, weights = entry.partition("=")
        weights = "random" if config.smoke else weights if equals else config.weights
        name = f"{encoder}={shareable_path(Path(weights))}" if equals else encoder
        if name in pairs:
            raise medtl.ConfigError(f"Two candidates are called {name}: rename one of the weights files.")
        pairs[name] = (encoder, weights)
    return pairs


def verdict(ranking: Ranking, advice: Advice) -> tuple[str, ...]:
    """What was found, in two or three sentences."""
    best, name = ranking.rows[0], SCORES[ranking.score]
    if len(ranking.rows) == 1:
        found = f"{best.name} is the only candidate."
    else:
        sure = "The order is clear" if best.first >= SURE else "The order is not clear"
        found = (
            f"{best.name} comes first by {name}, and in {100 * best.first:.0f} % of {ranking.replicates} random halves "
            f"of the patients. {sure} ({100 * SURE:.0f} % and more counts as clear)."
        )
    others = [
        SCORES[key]
        for key in best.scores
        if any(
            (row.scores[key].value or 0) > (best.scores[key].value or 0)
            for row in ranking.rows
            if key in row.scores
        )
    ]
    doubt = (f"By {' and '.join(others)} another candidate leads.",) if others else ()
    return (found, *doubt, f"Strategy to try first: {advice.strategy}.")


def table_rows(ranking: Ranking, distances: Mapping[str, Distance]) -> list[dict[str, Any]]:
    """One row a candidate, for the terminal."""
    rows = []
    for row in ranking.rows:
        found: dict[str, Any] = {
            "rank": row.rank,
            "candidate": row.name,
            "first in halves": f"{row.first:.2f}",
        }
        found |= {SCORES[k]: format_estimate(row.scores[k]) if k in row.scores else "" for k in SCORES}
        if row.name in distances:
            found["domain AUC"] = format_estimate(distances[row.name].auc)
        rows.append(found)
    return rows


def csv(ranking: Ranking, distances: Mapping[str, Distance]) -> str:
    """`ranking.csv`: one row a candidate, each number with its limits."""
    import pandas as pd

    rows = []
    for row in ranking.rows:
        found: dict[str, Any] = {"rank": row.rank, "candidate": row.name, "first": row.first}
        numbers = dict(row.scores)
        if row.name in distances:
            numbers |= {"domain_auc": distances[row.name].auc, "a_distance": distances[row.name].a_distance}
        for key, e in numbers.items():
            found |= {key: e.value, f"{key}_lo": e.lo, f"{key}_hi": e.hi}
        rows.append(found)
    return pd.DataFrame(rows).to_csv(index=False, lineterminator="\n", float_format="%.6g")


def ranking_json(ranking: Ranking) -> dict[str, Any]:
    """The ranking as plain values."""
    found = asdict(ranking)
    found["agreement"] = {f"{a} and {b}": tau for (a, b), tau in ranking.agreement.items()}
    return found


def sections(
    ranking: Ranking, by_depth: Mapping[str, Ranking], distances: Mapping[str, Distance], advice: Advice
) -> list[Section]:
    """The page."""
    keys = [k for k in SCORES if any(k in row.scores for row in ranking.rows)]
    heads = [SCORES[k] for k in keys]
    order = TableBuilder("Candidates, best first", ("Candidate", "Rank", "First in halves", *heads))
    for row in ranking.rows:
        order.row(row.name, row.rank, plain(row.first), *(order.number(row.scores.get(k)) for k in keys))
    order.notes.append(
        "Intervals: 95 %, from random halves of the patients. Higher is better in every column."
    )
    agreement = TableBuilder("Do the scores agree? Kendall's tau between their orders", ("Scores", "tau"))
    for (a, b), tau in ranking.agreement.items():
        agreement.row(f"{SCORES[a]} and {SCORES[b]}", plain(tau))
    text = [
        "The encoders were not trained: their frozen features were scored against the labels. That orders candidates "
        "on these cases; it does not foretell the accuracy after training.",
    ]
    if ranking.stability is not None:
        text.append(
            f"The order on a random half of the patients has a mean Kendall's tau of {ranking.stability:.2f} with this "
            "one (1: the same, 0: no relation)."
        )
    depth_table = TableBuilder("Scores by depth", ("Candidate", "Depth", "Best in halves", *heads[:3]))
    for name, found in by_depth.items():
        for row in found.rows:
            numbers = (depth_table.number(row.scores[k]) for k in keys[:3])
            depth_table.row(name, row.name, plain(row.first), *numbers)
    parts = [
        Section(
            "order",
            "Order",
            tuple(text),
            tables=(order.build(), *([agreement.build()] if len(ranking.rows) > 1 else [])),
            figures=(figure(ranking),),
        ),
        Section(
            "depths",
            "Depth",
            (
                "Features of earlier layers are more general. Where they score clearly better, the task is far.",
            ),
            tables=(depth_table.build(),),
        ),
    ]
    if distances:
        apart = TableBuilder("Source and target", ("Candidate", "Domain AUC", "Proxy A-distance"))
        for name, distance in distances.items():
            apart.row(name, apart.number(distance.auc), apart.number(distance.a_distance))
        note = (
            "A logistic regression on the features tells source from target, on patients that it has not seen: an AUC "
            "of 0.5 means alike, 1 apart. It sees every difference, also those that do not matter for the task, and a "
            "difference in the shares of the classes."
        )
        parts.append(Section("distance", "Distance", (note,), tables=(apart.build(),)))
    parts.append(Section("advice", f"Advice: {advice.strategy}", items=advice.reasons))
    return parts


def figure(ranking: Ranking) -> Drawing:
    """The score that orders the candidates, with its intervals."""
    found = [(row.name, row.scores[ranking.score]) for row in ranking.rows]
    return interval_figure(
        "ranking",
        [(name, e.value or 0.0, e.lo, e.hi) for name, e in found],
        xlabel=SCORES[ranking.score],
        caption=f"{SCORES[ranking.score]} with 95 % intervals; right is better.",
    )


if __name__ == "__main__":
    run_recipe(__file__)
