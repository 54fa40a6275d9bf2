r"""Adapts a classifier from labelled scans of one site to unlabelled scans of another.

Trains source-only and an adapted model side by side, for every seed, and reports both; says which to keep
without looking at a label of the target.

    medtl run adapt_classification --source sample_data/site_a --labels sample_data/site_a/labels.csv \
        --target sample_data/site_b --target-labels sample_data/site_b/labels.csv
    medtl run adapt_classification --smoke
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import medtl
from medtl.cli import on_terminal, progress, run_recipe, say, table
from medtl.config import ClassificationConfig, OneEncoder


@dataclass(frozen=True, kw_only=True)
class Config(OneEncoder, ClassificationConfig):
    """Flags of this recipe."""

    method: str = "dann"
    """Adaptation method; `medtl list methods` shows them. Or a file of your own, my_method.py."""

    epochs: int = 10
    """Passes over the longer of source and target."""


def main(config: Config, command: Sequence[str] = ()) -> None:
    """Runs the recipe."""
    run = medtl.Run.plan(Path(__file__).stem, config.reduced())
    config = run.config
    if config.target is None or config.labels is None or not config.source:
        raise medtl.ConfigError("Give --source DIR --labels CSV --target DIR (or try --smoke).")
    hparams = medtl.parse_hparams(config.method, config.hparams)
    cases = medtl.collect_cases(
        source=config.source,
        labels=config.labels,
        target=config.target,
        target_labels=config.target_labels,
        classes=config.classes or None,
        seed=config.seed,
    )
    preprocess = medtl.suggest_preprocess(cases.items(), config.image_size, config.slices, config.intensity)

    def build(seed: int) -> medtl.Classifier:
        return medtl.build_classifier(
            config.encoder,
            len(cases.classes),
            weights=config.weights,
            in_channels=preprocess.channels,
            image_size=preprocess.image_size,
            seed=seed,
        )

    # Absent weights, an unknown remedy, and a method that cannot do it, are errors before anything is written.
    medtl.calibration_note(config.imbalance)
    medtl.build_adapter(config.method, build(config.seed), **hparams)
    adapted = Path(config.method).stem
    models = {"source_only": ("finetune", {}), adapted: (config.method, hparams)}

    with run.open(command):
        say(f"Run: {run.name}")
        cohort = medtl.Cohort.prepare(cases, preprocess, run.cache, progress=progress("Preparing scans"))
        cohort.table.to_csv(run.folder / "cases.csv")
        say(table(cohort.summary()) + "\n" + "\n".join(cohort.table.warnings))
        validation = cohort.dataset("source", "validation", with_labels=True)
        target_plain = cohort.dataset("target", "test")
        rows = []
        for seed, (name, (method, options)) in itertools.product(config.training_seeds, models.items()):
            say(f"Training {name}, seed {seed}")
            model, kind = build(seed), medtl.adapter_class(method)
            ready = kind.source_weights and not options  # source-only's training is its own
            if ready or "source" not in kind.needs:
                medtl.restore_weights(model, run.model_folder("source_only", seed))
            source = cohort.dataset("source", "train", with_labels=True, augment=config.augment, seed=seed)
            loss = medtl.ClassificationLoss.of_labels(config.imbalance, source.labels, len(cases.classes))
            adapter = medtl.build_adapter(method, model, seed=seed, criterion=loss, **options)
            medtl.fit(
                adapter,
                source,
                cohort.dataset(
                    "target", "test", augment=config.augment, seed=seed, strong="strong_view" in kind.needs
                ),
                folder=run.model_folder(name, seed),
                config=medtl.FitConfig.of_recipe(
                    config,
                    **({"epochs": 0} if ready else {}),
                    batch_size=cohort.cases_per_batch(config.batch_size),
                    seed=seed,
                    progress_bar=on_terminal(),
                ),
                validation=validation,
                target_plain=target_plain,
                header=medtl.model_header(adapter, cases.classes, preprocess, hparams=options),
                metrics=run.metrics(name, seed),
            )
            with adapter.on_source():
                internal = medtl.predict_cases(adapter.model, validation)
            external = medtl.predict_adapted(adapter, target_plain)
            for data, logits in ((validation, internal), (target_plain, external)):
                rows.append(medtl.prediction_rows(data.cases, logits, cases.classes, name, seed))
        predictions = run.write_table("predictions.csv", rows)
        decision = medtl.recommend(predictions, cases.classes)
        run.write_json("decision.json", decision.to_dict())
        results, page = medtl.report_run(
            run,
            cohort,
            medtl.PredictionTable.from_frame(predictions),
            title=f"{adapted}: {' and '.join(cohort.sites('source'))} to {config.target.name}",
            keep=decision.to_dict(),
            target_seen_unlabelled=True,
            methods=dict.fromkeys(models, note) if (note := medtl.calibration_note(config.imbalance)) else {},
        )
    say("\n" + table(results.summary_table()))
    say(f"\nKeep {decision.model}. {decision.reason}")
    say(f"Report: {page}")


if __name__ == "__main__":
    run_recipe(__file__)
