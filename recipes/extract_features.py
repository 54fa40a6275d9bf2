r"""Computes the features of scans once, with a frozen pretrained encoder, as a table for any tool.

Writes features.csv (one row per case and view, with its patient, label or structure sizes) and features.npy (the same
rows, one column per feature). Features that any recipe has computed before are not computed again; a stopped run
continues.

    medtl run extract_features --source sample_data/site_a --labels sample_data/site_a/labels.csv \
        --target sample_data/site_b
    medtl run extract_features --source sample_data/site_a --masks sample_data/site_a/masks
    medtl run extract_features --target sample_data/site_b
    medtl run extract_features --smoke
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
from medtl.config import OneEncoder
from medtl.samples import sample_site


@dataclass(frozen=True, kw_only=True)
class Config(OneEncoder, BaseConfig):
    """Flags of this recipe."""

    labels: Path | None = None
    """CSV with the columns case and label, for the sources; patient and site are used if present. With masks, no label
    is read: the columns case and patient identify the patients."""

    masks: tuple[Path, ...] = ()
    """Folders of the sources' masks, named like the scans; the sizes of their structures are written."""

    target: Path | None = None
    """Folder of scans of another site, encoded in the same way; enough by itself, without --source, if there are no
    labels."""

    classes: tuple[str, ...] = ()
    """With labels: use only these classes; by default all."""

    structures: tuple[str, ...] = ()
    """With masks: structures as NAME=VALUE ..., or names from labels.json; by default all that are found."""

    weights: str = "imagenet"
    """`imagenet`, a weights file, or `random`."""

    image_size: int = 96
    """Pixels along each side of an image or slice."""

    slices: int | None = None
    """Number of slices per volume; by default that of most volumes."""

    intensity: str = "auto"
    """Range of values: auto, percentile, unit, a named CT window, or window:LOW,HIGH in HU."""

    depth: str = "last"
    """Depth in the encoder: last, or stage1 (shallow), stage2, ..."""

    views: int = 1
    """Views of each case: the first unchanged, further ones augmented."""

    augment: str = "standard"
    """Augmentation of the further views: standard or strong."""

    batch_size: int = 64
    """Images or slices encoded at once."""

    def ready(self) -> Config:
        """Checked; with `--smoke` a trial on sample_data, unless folders are given, with random weights."""
        config = self
        if self.smoke:
            site = sample_site("site_a")
            sample = {"source": (site,), "labels": site / "labels.csv", "target": sample_site("site_b")}
            trial = {"image_size": 48, "weights": "random", "views": 1 if self.augment == "none" else 2}
            config = dataclasses.replace(self, **trial, **({} if self.source or self.target else sample))
        known = config.labels is not None or bool(config.masks)
        fits = bool(config.source) == known and (config.source or config.target)
        if not fits and self.resume is None:
            raise medtl.ConfigError(
                "Give --source DIR with --labels CSV or --masks DIR, or --target DIR alone for scans without either "
                "(or try --smoke)."
            )
        return config


def main(config: Config, command: Sequence[str] = ()) -> None:
    """Runs the recipe."""
    run = medtl.Run.plan(Path(__file__).stem, config)
    config = run.config
    encoders.check_views(config.views, config.augment)
    cases = medtl.collect_cases(
        source=config.source,
        labels=config.labels,
        masks=config.masks,
        target=config.target,
        classes=config.classes or None,
        structures=config.structures,
        sites=config.sites,
        seed=config.seed,
    )
    preprocess = medtl.suggest_preprocess(cases.items(), config.image_size, config.slices, config.intensity)
    encoder = encoders.Pretrained.build(config.encoder, config.weights, preprocess, seed=config.seed).encoder

    with run.open(command, cases.hide) as run:
        say(f"Run: {run.name}")
        cohort = medtl.Cohort.prepare(cases, preprocess, run.cache, progress=progress("Preparing scans"))
        cohort.table.to_csv(run.folder / "cases.csv")
        say(table(cohort.summary()) + "\n" + "\n".join(cohort.table.warnings))
        features = medtl.extract_features(
            encoder,
            cohort.dataset("any", "any", cases=cohort.select(), augment=config.augment, seed=config.seed),
            run.cache / "features",
            views=config.views,
            depth=config.depth,
            batch_size=config.batch_size,
            progress=progress("Encoding"),
        )
        saved = encoders.save_features(run, features, encoder, cohort)
    say(f"\n{saved.rows} rows of {saved.columns} features. For scikit-learn:")
    say(f'  about, x = pandas.read_csv("{run.name}/features.csv"), numpy.load("{run.name}/features.npy")')
    say(f"Report: {run.shown(saved.page)}")


if __name__ == "__main__":
    run_recipe(__file__)
