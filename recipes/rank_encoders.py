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
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import medtl
from medtl.cli import progress, run_recipe, say, table
from medtl.config import Config as BaseConfig
from medtl.config import listed
from medtl.runs import shareable_path
from medtl.samples import sample_site


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
    import numpy as np  # here, not above: the list of recipes and --help load none of it

    from medtl.encoders import page as rankpage
    from medtl.encoders.distance import advise, domain_distance, skill
    from medtl.encoders.ranking import Candidate, rank_candidates
    from medtl.encoders.source_head import source_head, source_probabilities

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
        kept, last, depths, distances = run.cache / "features", {}, {}, {}
        for name, encoder in encoders.items():
            head = source_head(encoder, pairs[name][1])
            found = medtl.extract_depths(
                encoder, source, kept, batch_size=config.batch_size, progress=progress(f"Features of {name}")
            )
            depths[name] = {depth: Candidate(data.vectors[:, 0].numpy()) for depth, data in found.items()}
            end = list(found)[-1]
            probs = None if head is None else source_probabilities(head, found[end].features[:, 0])
            last[name] = Candidate(depths[name][end].features, probs)
            if target is not None:
                there = medtl.extract_features(
                    encoder, target, kept, batch_size=config.batch_size, progress=progress("At the target")
                )
                distances[name] = domain_distance(
                    last[name].features,
                    there.vectors[:, 0].numpy(),
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
        clear = earlier.first >= rankpage.SURE and earlier.name != list(depths[best.name])[-1]
        advice = advise(
            smallest,
            skill(knn, len(np.unique(labels))),
            distances.get(best.name),
            depth=earlier.name if clear else None,
        )
        rows = rankpage.table_rows(ranking, distances)
        run.write("ranking.csv", rankpage.table_csv(ranking, distances))
        run.write_json(
            "ranking.json",
            {
                "ranking": rankpage.ranking_json(ranking),
                "depths": {name: rankpage.ranking_json(found) for name, found in by_depth.items()},
                "distances": {name: asdict(found) for name, found in distances.items()},
                "advice": asdict(advice),
            },
        )
        lead = rankpage.verdict(ranking, advice)
        page = medtl.write_page(
            f"Encoders for {' and '.join(cohort.sites('source'))}",
            rankpage.sections(ranking, by_depth, distances, advice),
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


if __name__ == "__main__":
    run_recipe(__file__)
