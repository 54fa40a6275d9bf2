r"""Adapts a model from labelled scans of one site to unlabelled scans of another.

Trains source-only and every method on the same cases, for every seed; reports all of them, and decides which model to
keep without reading a label of the target. With --labels the model classifies, with --masks it segments.

    medtl run adapt --source sample_data/site_a --labels sample_data/site_a/labels.csv \
        --target sample_data/site_b --target-labels sample_data/site_b/labels.csv --method dann adabn
    medtl run adapt --source sample_data/site_a --masks sample_data/site_a/masks \
        --target sample_data/site_b --target-masks sample_data/site_b/masks
    medtl run adapt --smoke
"""

from __future__ import annotations

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

    needs_target: ClassVar = True
    task_defaults: ClassVar = {
        "labels": {"method": ("dann",), "epochs": 10},
        "masks": {"method": ("adabn",), "epochs": 20},
    }

    method: tuple[str, ...] = ()
    """Adaptation methods, see `medtl list methods`, or your own file my_method.py; by default dann (masks: adabn)."""

    strategy: str = "full"
    """What of the model learns and how, for every method and source-only: full, lora, layer_decay, gradual, ..."""

    epochs: int | None = None
    """Passes over the longer of source and target; by default 10 with labels, 20 with masks."""


def main(config: Config, command: Sequence[str] = ()) -> None:
    """Runs the recipe."""
    run = medtl.Run.plan(Path(__file__).stem, config)
    config = run.config
    task = medtl.task_of(config)
    ways = medtl.ways_of(
        (config.encoder,),
        methods=listed(config.method, "--method"),
        strategies=(config.strategy,),
        hparams=config.hparams,
    )
    source_only, *adapted = ways
    cases = task.collect()
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
            for way in ways:
                say(f"Training {way.name}, seed {seed}")
                study.train(way, seed)
            study.train_bound(source_only, seed)
        decision = study.recommend(source_only)
        results, page = study.report(
            title=f"{', '.join(way.name for way in adapted)}: {study.sources} to {study.target}",
            decision=decision,
        )
    say("\n" + table(medtl.summary_rows(results)))
    say(f"\nKeep {decision.model}. {decision.reason}")
    say(f"Report: {run.shown(page)}")


if __name__ == "__main__":
    run_recipe(__file__)
