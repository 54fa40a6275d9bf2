r"""Compares encoders, fine-tuning strategies and adaptation methods on one split of the patients, pair by pair.

Trains every strategy on every encoder, or every method with every strategy on every encoder, with the same seeds, and
tests them on the same patients; the report shows cost beside quality. With --target, all are also tested at another
site (external testing). Methods learn from the target's scans; source-only is trained beside them, and all take the
same number of steps.

    medtl run compare --source sample_data/site_a --labels sample_data/site_a/labels.csv \
        --target sample_data/site_b --target-labels sample_data/site_b/labels.csv --strategies probe full lp_ft
    medtl run compare --source sample_data/site_a --masks sample_data/site_a/masks \
        --target sample_data/site_b --target-masks sample_data/site_b/masks --methods adabn histogram
    medtl run compare --smoke
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import medtl
from medtl.cli import on_terminal, progress, run_recipe, say, table
from medtl.config import TrainingConfig, listed


@dataclass(frozen=True, kw_only=True)
class Config(TrainingConfig):
    """Flags of this recipe."""

    task_defaults: ClassVar = {
        "labels": {"epochs": 20, "patience": 6},
        "masks": {"epochs": 60, "patience": 20},
    }

    encoders: tuple[str, ...] = ("tf_efficientnet_lite0",)
    """Encoders by timm's name."""

    strategies: tuple[str, ...] = ()
    """Strategies, see `medtl list strategies`; by default probe full lp_ft (masks: head full last:2), or full."""

    methods: tuple[str, ...] = ()
    """Adaptation methods, each with every strategy; they need --target, and source-only is the reference."""

    head: str = "linear"
    """With labels: linear, or dense:N for a hidden layer of N units before it."""

    epochs: int | None = None
    """Maximum number of passes over the training cases; by default 20 with labels, 60 with masks."""

    patience: int | None = None
    """Epochs without a lower validation loss that stop a strategy, never a method; by default 6 (masks: 20)."""

    seeds: int = 3
    """Number of trainings, with seeds seed, seed + 1, ..."""


STRATEGIES = {"labels": ("probe", "full", "lp_ft"), "masks": ("head", "full", "last:2")}


def main(config: Config, command: Sequence[str] = ()) -> None:
    """Runs the recipe."""
    run = medtl.Run.plan(Path(__file__).stem, config)
    config = run.config
    task = medtl.task_of(config)
    methods = listed(config.methods, "--methods", least=0)
    if methods and config.target is None:
        raise medtl.ConfigError("--methods learn from scans of the target: give --target DIR.")
    ways = medtl.ways_of(
        listed(config.encoders, "--encoders"),
        strategies=listed(config.strategies, "--strategies", least=0)
        or (() if methods else STRATEGIES[config.task]),
        methods=methods,
        hparams=config.hparams,
    )
    reference = next((way for way in ways if way.is_source_only), ways[0])
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
        for seed, way in itertools.product(config.training_seeds, ways):
            say(f"Training {way.name}, seed {seed}")
            study.train(way, seed)
        for seed in config.training_seeds:
            study.train_bound(reference, seed)
        decision = study.recommend(reference) if methods else None
        results, page = study.report(
            title=f"{len(ways)} ways to a model, trained on {study.sources}",
            decision=decision,
            reference_model=reference.name,
        )
    say("\n" + table(medtl.summary_rows(results)))
    if decision is not None:
        say(f"\nKeep {decision.model}. {decision.reason}")
    say(f"\nReport: {run.shown(page)}")


if __name__ == "__main__":
    run_recipe(__file__)
