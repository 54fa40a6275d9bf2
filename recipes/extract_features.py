r"""Computes the features of scans once, with a frozen pretrained encoder, as a table for any tool.

Writes features.csv (one row a case and view: who it is) and features.npy (the same rows, one column a feature). What
was computed before, by any recipe, is not computed again; a run that was stopped goes on.

    medtl run extract_features --source sample_data/site_a --labels sample_data/site_a/labels.csv \
        --target sample_data/site_b
    medtl run extract_features --target sample_data/site_b
    medtl run extract_features --smoke
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import medtl
from medtl.cli import progress, run_recipe, say, table
from medtl.config import Config as BaseConfig
from medtl.config import OneEncoder
from medtl.samples import sample_site


@dataclass(frozen=True, kw_only=True)
class Config(OneEncoder, BaseConfig):
    """Flags of this recipe."""

    labels: Path | None = None
    """CSV with the columns case and label, for the sources; patient and site are used where present."""

    target: Path | None = None
    """Folder of scans of another site, encoded alike; alone, without --source, where there are no labels."""

    classes: tuple[str, ...] = ()
    """Use these classes alone; by default all of the labels."""

    weights: str = "imagenet"
    """`imagenet`, a weights file, or `random`."""

    image_size: int = 96
    """Pixels along each side of an image or slice."""

    slices: int | None = None
    """Slices of a volume; by default what most volumes have."""

    intensity: str = "auto"
    """Range of values: auto, percentile, unit, a named CT window, or window:LO,HI in HU."""

    depth: str = "last"
    """Where in the encoder: last, or stage1 (shallow), stage2, ..."""

    views: int = 1
    """Views of each case: the first as it is, further ones augmented."""

    augment: str = "standard"
    """Augmentation of the further views: standard or strong."""

    batch_size: int = 64
    """Images or slices that are encoded at once."""

    def reduced(self) -> Config:
        """For `--smoke`: random weights and small images, on sample_data unless folders are given."""
        if not self.smoke:
            return self
        site = sample_site("site_a")
        sample = {"source": (site,), "labels": site / "labels.csv", "target": sample_site("site_b")}
        own = self if self.source or self.target else dataclasses.replace(self, **sample)
        return dataclasses.replace(
            own, image_size=48, weights="random", views=1 if self.augment == "none" else 2
        )


def main(config: Config, command: Sequence[str] = ()) -> None:
    """Runs the recipe."""
    import numpy as np  # here, not above: the list of recipes and --help load none of it

    from medtl.encoders.features import check_views
    from medtl.report import Section, TableBuilder

    run = medtl.Run.plan(Path(__file__).stem, config.reduced())
    config = run.config
    if bool(config.source) != (config.labels is not None) or not (config.source or config.target):
        raise medtl.ConfigError(
            "Give --source DIR --labels CSV, or --target DIR alone for scans without labels (or try --smoke)."
        )
    check_views(config.views, config.augment)
    cases = medtl.collect_cases(
        source=config.source,
        labels=config.labels,
        target=config.target,
        classes=config.classes or None,
        seed=config.seed,
    )
    preprocess = medtl.suggest_preprocess(cases.items(), config.image_size, config.slices, config.intensity)
    encoder = medtl.build_encoder(
        config.encoder,
        weights=config.weights,
        in_channels=preprocess.channels,
        image_size=preprocess.image_size,
    )

    with run.open(command):
        say(f"Run: {run.name}")
        cohort = medtl.Cohort.prepare(cases, preprocess, run.cache, progress=progress("Preparing scans"))
        cohort.table.to_csv(run.folder / "cases.csv")
        say(table(cohort.summary()) + "\n" + "\n".join(cohort.table.warnings))
        data = cohort.dataset("any", "any", cases=cohort.select(), augment=config.augment, seed=config.seed)
        features = medtl.extract_features(
            encoder,
            data,
            run.cache / "features",
            views=config.views,
            depth=config.depth,
            batch_size=config.batch_size,
            progress=progress("Encoding"),
        )
        rows = medtl.feature_table(features)
        columns = [c for c in rows.columns if c[1:].isdigit()]
        about = rows.drop(columns=columns)
        buffer = io.BytesIO()
        np.save(buffer, rows[columns].to_numpy(np.float32), allow_pickle=False)
        run.write("features.npy", buffer.getvalue())
        run.write("features.csv", about.to_csv(index=False, lineterminator="\n"))
        found = TableBuilder("What was encoded", ("site", "cases", "patients", "labelled cases"))
        for site, part in about[about["view"] == 0].groupby("site"):
            found.row(str(site), len(part), part.patient.nunique(), int((part.label != "").sum()))
        page = medtl.write_page(
            f"Features of {len(features)} scans",
            [
                Section(
                    "data", "Data", text=(f"Weights: {encoder.key_report.text()}",), tables=(found.build(),)
                )
            ],
            run.folder / "report",
        )
    say(f"\n{len(rows)} rows of {len(columns)} features. For scikit-learn:")
    say(f'  about, x = pandas.read_csv("{run.name}/features.csv"), numpy.load("{run.name}/features.npy")')
    say(f"Report: {page}")


if __name__ == "__main__":
    run_recipe(__file__)
