r"""Shows how much more labelled patients would help: trains on 5, 10, 20, ... of them and draws the curve.

Each training set contains all smaller ones; all models are tested on the same patients. Training takes a fixed number
of epochs, because few patients leave none for early stopping. With --labels the models classify, with --masks they
segment.

    medtl run data_efficiency --source sample_data/site_a --labels sample_data/site_a/labels.csv \
        --target sample_data/site_b --target-labels sample_data/site_b/labels.csv --strategies probe
    medtl run data_efficiency --source sample_data/site_a --masks sample_data/site_a/masks --patients 5 10
    medtl run data_efficiency --smoke
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import medtl
from medtl.cli import on_terminal, progress, run_recipe, say, table
from medtl.config import OneEncoder, TrainingConfig, listed


@dataclass(frozen=True, kw_only=True)
class Config(OneEncoder, TrainingConfig):
    """Flags of this recipe."""

    task_defaults: ClassVar = {
        "labels": {"epochs": 15},
        "masks": {"epochs": 40},
    }

    strategies: tuple[str, ...] = ()
    """Strategies, see `medtl list strategies`; by default probe and full, and full with masks or methods."""

    methods: tuple[str, ...] = ()
    """Adaptation methods, each with every strategy, beside source-only; they need --target."""

    head: str = "linear"
    """With labels: linear, or dense:N for a hidden layer of N units before it."""

    patients: tuple[int, ...] = (5, 10, 20, 50, 100)
    """Numbers of labelled training patients; all of them come last."""

    epochs: int | None = None
    """Passes over the training cases; by default 15 with labels, 40 with masks."""

    seeds: int = 3
    """Number of trainings, each on its own draw of patients."""


def main(config: Config, command: Sequence[str] = ()) -> None:
    """Runs the recipe."""
    run = medtl.Run.plan(Path(__file__).stem, config)
    config = run.config
    task = medtl.task_of(config)
    methods = listed(config.methods, "--methods", least=0)
    if methods and config.target is None:
        raise medtl.ConfigError("--methods learn from scans of the target: give --target DIR.")
    ways = medtl.ways_of(
        (config.encoder,),
        strategies=listed(config.strategies, "--strategies", least=0)
        or (("full",) if methods or config.task == "masks" else ("probe", "full")),
        methods=methods,
        hparams=config.hparams,
    )
    cases = task.collect(val_fraction=0.2, test_fraction=0.2)
    preprocess = task.suggest(cases)
    medtl.check_ways(task, ways, cases, preprocess)

    with run.open(command, cases.hide) as run:
        say(f"Run: {run.name}")
        study = medtl.Study.prepare(
            run,
            task,
            ways,
            cases,
            preprocess,
            progress=progress("Preparing scans"),
            progress_bar=on_terminal(),
        )
        say(table(study.cohort.summary()) + "\n" + "\n".join(study.warnings))
        for seed in config.training_seeds:
            subsets = study.cohort.subsets(config.patients, seed)
            for (number, chosen), way in itertools.product(subsets.items(), ways):
                say(f"Training {way.name} on {number} patients, seed {seed}")
                study.train(way, seed, cases=chosen, size=number)
            study.train_bound(ways[0], seed)
        results, page = study.report(
            title=f"How many labelled patients of {study.sources}",
            notes=(
                "The patients of source validation set temperature and operating point of every model; they are not "
                "counted among its labelled patients.",
            ),
        )
    say("\n" + table(medtl.summary_rows(results)))
    say(f"\nReport: {run.shown(page)}")


if __name__ == "__main__":
    run_recipe(__file__)
