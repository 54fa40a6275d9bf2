r"""Compares encoders and fine-tuning strategies on one split of the patients, pair by pair.

Every combination is trained with the same seeds and tested on the same patients; the report sets cost beside
quality. With --target, all are also tested at another site (external testing), without adaptation.

    medtl run compare_methods --source sample_data/site_a --labels sample_data/site_a/labels.csv \
        --target sample_data/site_b --target-labels sample_data/site_b/labels.csv --strategies probe,full,lp_ft
    medtl run compare_methods --smoke
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import medtl
from medtl.cli import on_terminal, progress, run_recipe, say, table
from medtl.config import ClassificationConfig, listed


@dataclass(frozen=True, kw_only=True)
class Config(ClassificationConfig):
    """Flags of this recipe."""

    encoders: str = "tf_efficientnet_lite0"
    """Encoders by timm's name, separated by commas."""

    strategies: str = "probe,full,lp_ft"
    """Strategies, separated by commas; `medtl list strategies` shows them. The first one is the reference."""

    head: str = "linear"
    """linear, or dense:N for a hidden layer of N units before it."""

    epochs: int = 20
    """Passes over the training cases, at most."""

    patience: int = 6
    """Stop after so many epochs without a lower loss on source validation."""

    seeds: int = 3
    """Train so many times, with seeds seed, seed + 1, ..."""


def main(config: Config, command: Sequence[str] = ()) -> None:
    """Runs the recipe."""
    run = medtl.Run.plan(Path(__file__).stem, config.reduced())
    config = run.config
    if config.labels is None or not config.source:
        raise medtl.ConfigError("Give --source DIR --labels CSV (or try --smoke).")
    encoders = listed(config.encoders, "--encoders")
    strategies = listed(config.strategies, "--strategies")
    ways = {
        (f"{encoder}/{strategy}" if len(encoders) > 1 else strategy): medtl.FineTuning.of_recipe(
            config, encoder=encoder, strategy=strategy
        )
        for encoder, strategy in itertools.product(encoders, strategies)
    }
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
    for way in ways.values():  # absent weights are an error before anything is written
        way.build(len(cases.classes), preprocess, config.seed)

    with run.open(command):
        say(f"Run: {run.name}")
        cohort = medtl.Cohort.prepare(cases, preprocess, run.cache, progress=progress("Preparing scans"))
        cohort.table.to_csv(run.folder / "cases.csv")
        say(table(cohort.summary()) + "\n" + "\n".join(cohort.table.warnings))
        tuned = []
        for seed, (name, way) in itertools.product(config.training_seeds, ways.items()):
            say(f"Training {name}, seed {seed}")
            fit = medtl.FitConfig.of_recipe(
                config,
                batch_size=cohort.cases_per_batch(config.batch_size),
                seed=seed,
                progress_bar=on_terminal(),
            )
            tuned.append(medtl.fine_tune(way, run, cohort, name=name, seed=seed, config=fit))
        predictions = run.write_table("predictions.csv", [t.rows for t in tuned])
        results, page = medtl.report_run(
            run,
            cohort,
            medtl.PredictionTable.from_frame(predictions),
            title=f"{len(ways)} ways of fine-tuning {' and '.join(encoders)} on {' and '.join(cohort.sites('source'))}",
            reference_model=next(iter(ways)),
            target_seen_unlabelled=False,
            methods={name: way.note for name, way in ways.items()},
            **medtl.training_record(run, tuned),
        )
    say("\n" + table(results.summary_table()))
    say(f"\nReport: {page}")


if __name__ == "__main__":
    run_recipe(__file__)
