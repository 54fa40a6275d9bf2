r"""Shows how much more labelled patients would help: trains on 5, 10, 20, ... of them and draws the curve.

The patients of a smaller training set are among those of every larger one; all models are tested on the same
patients. Training takes a fixed number of epochs: with few patients there are none to stop on.

    medtl run data_efficiency --source sample_data/site_a --labels sample_data/site_a/labels.csv \
        --target sample_data/site_b --target-labels sample_data/site_b/labels.csv --strategies probe
    medtl run data_efficiency --smoke
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import medtl
from medtl.cli import on_terminal, progress, run_recipe, say, table
from medtl.config import ClassificationConfig, OneEncoder, listed


@dataclass(frozen=True, kw_only=True)
class Config(OneEncoder, ClassificationConfig):
    """Flags of this recipe."""

    strategies: str = "probe,full"
    """Strategies, separated by commas; `medtl list strategies` shows them."""

    patients: tuple[int, ...] = (5, 10, 20, 50, 100)
    """Numbers of labelled training patients; all that there are come last."""

    epochs: int = 15
    """Passes over the training cases."""

    seeds: int = 3
    """Train so many times, each on patients of its own choice."""


def main(config: Config, command: Sequence[str] = ()) -> None:
    """Runs the recipe."""
    run = medtl.Run.plan(Path(__file__).stem, config.reduced())
    config = run.config
    if config.labels is None or not config.source:
        raise medtl.ConfigError("Give --source DIR --labels CSV (or try --smoke).")
    ways = {
        s: medtl.FineTuning.of_recipe(config, strategy=s) for s in listed(config.strategies, "--strategies")
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
        tuned, sizes = [], {}
        for seed in config.training_seeds:
            subsets = cohort.subsets(config.patients, seed)
            for (number, chosen), (strategy, way) in itertools.product(subsets.items(), ways.items()):
                name = f"{strategy}@{number}"
                sizes[name] = number
                say(f"Training {strategy} on {number} patients, seed {seed}")
                fit = medtl.FitConfig.of_recipe(
                    config,
                    batch_size=cohort.cases_per_batch(config.batch_size),
                    seed=seed,
                    progress_bar=on_terminal(),
                )
                tuned.append(
                    medtl.fine_tune(way, run, cohort, name=name, seed=seed, config=fit, cases=chosen)
                )
        predictions = run.write_table("predictions.csv", [t.rows for t in tuned])
        results, page = medtl.report_run(
            run,
            cohort,
            medtl.PredictionTable.from_frame(predictions),
            title=f"How many labelled patients of {' and '.join(cohort.sites('source'))}",
            target_seen_unlabelled=False,
            sizes=sizes,
            methods={name: ways[name.partition("@")[0]].note for name in sizes},
            notes=(
                *cohort.table.warnings,
                "The patients of source validation set temperature and operating point of every model; they are not "
                "counted among its labelled patients.",
            ),
            **medtl.training_record(run, tuned),
        )
    say("\n" + table(results.summary_table()))
    say(f"\nReport: {page}")


if __name__ == "__main__":
    run_recipe(__file__)
