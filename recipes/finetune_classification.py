"""Fine-tunes a classifier on labelled scans and tests it on patients that it has not seen.

Stops on source validation and keeps the best epoch. With --target, the same model is also tested at another
site (external testing), without adaptation.

    medtl run finetune_classification --source sample_data/site_a --labels sample_data/site_a/labels.csv
    medtl run finetune_classification --source sample_data/site_a --labels sample_data/site_a/labels.csv \
        --strategy probe --head dense:1024
    medtl run finetune_classification --smoke
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import medtl
from medtl.cli import on_terminal, progress, run_recipe, say, table
from medtl.config import ClassificationConfig, OneEncoder


@dataclass(frozen=True, kw_only=True)
class Config(OneEncoder, ClassificationConfig):
    """Flags of this recipe."""

    strategy: str = "full"
    """What is trained and how; `medtl list strategies` shows them: probe, head, full, last:2, lp_ft, lora, ..."""

    head: str = "linear"
    """linear, or dense:N for a hidden layer of N units before it."""

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
    way = medtl.FineTuning.of_recipe(config)
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
    # Absent weights and an unknown strategy are errors before anything is written.
    plan = way.build(len(cases.classes), preprocess, config.seed).plan(config.lr)

    with run.open(command):
        say(f"Run: {run.name}")
        cohort = medtl.Cohort.prepare(cases, preprocess, run.cache, progress=progress("Preparing scans"))
        cohort.table.to_csv(run.folder / "cases.csv")
        say(table(cohort.summary()) + "\n" + "\n".join(cohort.table.warnings))
        say(f"\nStrategy {config.strategy}:\n{table(plan)}\n")
        tuned = []
        for seed in config.training_seeds:
            say(f"Training, seed {seed}")
            tuned.append(
                medtl.fine_tune(
                    way,
                    run,
                    cohort,
                    name="finetune",
                    seed=seed,
                    config=medtl.FitConfig.of_recipe(
                        config,
                        batch_size=cohort.cases_per_batch(config.batch_size),
                        seed=seed,
                        progress_bar=on_terminal(),
                    ),
                )
            )
            if (result := tuned[-1].result).epochs:
                say(f"Kept epoch {result.best_epoch + 1} of {result.epochs}")
        predictions = run.write_table("predictions.csv", [t.rows for t in tuned])
        results, page = medtl.report_run(
            run,
            cohort,
            medtl.PredictionTable.from_frame(predictions),
            title=f"Fine-tuning on {' and '.join(cohort.sites('source'))}",
            target_seen_unlabelled=False,
            methods={"finetune": way.note},
            **medtl.training_record(run, tuned),
        )
    say("\n" + table(results.summary_table()))
    say(f"\nReport: {page}")


if __name__ == "__main__":
    run_recipe(__file__)
