r"""Ranks encoders for a task from their frozen features, without training them, and recommends a strategy.

Scores candidates on the patients that fine-tuning would train and validate on; its test patients stay unseen. Reports
how certain the order is, at which depth the features work best, and with --target how far the sites are apart. With
labels, whole scans are scored; with masks, places in them.

    medtl run rank_encoders --source sample_data/site_a --labels sample_data/site_a/labels.csv \
        --target sample_data/site_b --encoders tf_efficientnet_lite0 tf_efficientnet_lite0=random
    medtl run rank_encoders --source sample_data/site_a --masks sample_data/site_a/masks
    medtl run rank_encoders --smoke
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import medtl
from medtl import encoders
from medtl.cli import progress, run_recipe, say, table
from medtl.config import Config as BaseConfig
from medtl.config import listed
from medtl.samples import sample_site


@dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
    """Flags of this recipe."""

    labels: Path | None = None
    """CSV with the columns case and label, for the sources; patient and site are used if present. With masks, no label
    is read: the columns case and patient identify the patients."""

    masks: tuple[Path, ...] = ()
    """Folders of the sources' masks, named like the scans: one for all, or one for each source."""

    target: Path | None = None
    """Folder of scans of another site, whose distance from the sources is measured. No label of it is read."""

    classes: tuple[str, ...] = ()
    """With labels: use only these classes; by default all."""

    structures: tuple[str, ...] = ()
    """With masks: structures as NAME=VALUE ..., or names from labels.json; by default all that are found."""

    encoders: tuple[str, ...] = ("tf_efficientnet_lite0", "tf_efficientnet_lite0=random")
    """Candidates: ENCODER, or ENCODER=FILE (or =random) for other weights."""

    score: str = "logme"
    """Score that ranks them: logme, h_score, knn, or with labels leep."""

    halves: int = 100
    """Number of random halves of the patients, which measure how certain the order is."""

    weights: str = "imagenet"
    """Weights of candidates without their own: `imagenet`, a weights file, or `random`."""

    image_size: int = 96
    """Pixels along each side of an image or slice; use the value of the later training."""

    slices: int | None = None
    """With labels: number of slices per volume; by default that of most volumes."""

    intensity: str = "auto"
    """Range of values: auto, percentile, unit, a named CT window, or window:LOW,HIGH in HU."""

    batch_size: int = 32
    """Images or slices encoded at once."""

    def ready(self) -> Config:
        """Checked; with `--smoke` a trial on sample_data, unless folders are given, with random weights."""
        config = self
        if self.smoke:
            site = sample_site("site_a")
            sample = {"source": (site,), "labels": site / "labels.csv", "target": sample_site("site_b")}
            trial = {"image_size": 48, "weights": "random", "halves": 10}
            config = dataclasses.replace(self, **trial, **({} if self.source else sample))
        known = config.source and (config.labels or config.masks)
        if not known and self.resume is None:
            raise medtl.ConfigError("Give --source DIR with --labels CSV or --masks DIR (or try --smoke).")
        if self.masks and self.slices is not None:
            raise medtl.ConfigError(
                "--slices is for labels: with masks, volumes keep their own slices. Leave it out."
            )
        return config


def main(config: Config, command: Sequence[str] = ()) -> None:
    """Runs the recipe."""
    config = config.ready()
    entries = listed(config.encoders, "--encoders")
    pairs = encoders.parse_candidates(entries, config.weights, smoke=config.smoke)
    for entry, name in zip(entries, pairs, strict=True):
        command = [word.replace(entry, name) for word in command]  # no place of a file is in the run
    run = medtl.Run.plan(Path(__file__).stem, dataclasses.replace(config, encoders=tuple(pairs)))
    config = run.config
    if tuple(pairs) != config.encoders:  # resumed, and not given again
        pairs = encoders.parse_candidates(config.encoders, config.weights, smoke=config.smoke)
    cases = medtl.collect_cases(
        source=config.source,
        labels=config.labels,
        masks=config.masks,
        target=config.target,
        classes=config.classes or None,
        structures=config.structures,
        sites=config.sites,
        val_fraction=0.2,
        test_fraction=0.2,
        seed=config.seed,
    )
    pairs = {cases.hide(name): pair for name, pair in pairs.items()}
    preprocess = medtl.suggest_preprocess(
        cases.items(), config.image_size, config.slices, config.intensity, keep_spacing=bool(config.masks)
    )
    # Absent weights and a score that cannot be had are errors before anything is written.
    candidates = {
        name: encoders.Pretrained.build(encoder, weights, preprocess, seed=config.seed)
        for name, (encoder, weights) in pairs.items()
    }
    encoders.check_score(config.score, candidates, masks=bool(config.masks))

    with run.open(command, cases.hide) as run:
        say(f"Run: {run.name}")
        cohort = medtl.Cohort.prepare(cases, preprocess, run.cache, progress=progress("Preparing scans"))
        cohort.table.to_csv(run.folder / "cases.csv")
        say(table(cohort.summary()) + "\n" + "\n".join(cohort.table.warnings))
        ranking = encoders.rank(
            candidates,
            cohort,
            run.cache / "features",
            score=config.score,
            halves=config.halves,
            seed=config.seed,
            batch_size=config.batch_size,
            progress=progress,
        )
        page = ranking.save(run)
    say("\n" + table(ranking.rows()) + "\n\n" + "\n".join((*ranking.verdict, *ranking.advice.reasons)))
    say(f"\nReport: {run.shown(page)}")


if __name__ == "__main__":
    run_recipe(__file__)
