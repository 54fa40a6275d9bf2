"""Fine-tunes a classifier on labelled scans and tests it on patients that it has not seen.

Stops on source validation and keeps the best epoch. With --target, the same model is also tested at another
site (external testing), without adaptation.

    medtl run finetune_classification --source sample_data/site_a --labels sample_data/site_a/labels.csv
    medtl run finetune_classification --smoke
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import medtl
from medtl.cli import on_terminal, progress, run_recipe, say, table
from medtl.config import ClassificationConfig


@dataclass(frozen=True, kw_only=True)
class Config(ClassificationConfig):
    """Flags of this recipe."""

    epochs: int = 20
    """Passes over the training cases, at most."""

    patience: int = 6
    """Stop after so many epochs without a lower loss on source validation."""


def main(config: Config, command: Sequence[str] = ()) -> None:
    """Runs the recipe."""
    run = medtl.Run.plan(Path(__file__).stem, config.reduced())
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

    with run.open(command):
        say(f"Run: {run.name}")
        cohort = medtl.Cohort.prepare(cases, preprocess, run.cache, progress=progress("Preparing scans"))
        cohort.table.to_csv(run.folder / "cases.csv")
        say(table(cohort.summary()) + "\n" + "\n".join(cohort.table.warnings))
        held_out = [("source", "validation"), ("source", "test"), ("target", "test")]
        tested = [d for domain, split in held_out if (d := cohort.dataset(domain, split)) is not None]
        rows = []
        for seed in config.training_seeds:
            say(f"Training, seed {seed}")
            adapter = medtl.build_adapter("finetune", build(seed), seed=seed, **hparams)
            done = medtl.fit(
                adapter,
                cohort.dataset("source", "train", with_labels=True, augment=config.augment, seed=seed),
                folder=run.model_folder("finetune", seed),
                config=medtl.FitConfig(
                    epochs=1 if config.smoke else config.epochs,
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
            seeds=config.training_seeds,
        )
        replicates = 200 if config.smoke else 2000
        results = medtl.evaluate(
            medtl.PredictionTable.from_frame(predictions), context=context, replicates=replicates
        )
        run.write_json("calibration.json", results.calibration())
        page = medtl.write_report(results, run.folder / "report")
    say("\n" + table(results.summary_table()))
    say(f"\nReport: {page}")


if __name__ == "__main__":
    run_recipe(__file__)
