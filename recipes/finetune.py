r"""Fine-tunes a model on labelled scans and tests it on held-out patients.

Training stops early on source validation and keeps the best epoch. With --labels the model classifies, with --masks it
segments. With --target, the same model is also tested at another site (external testing), without adaptation.

    medtl run finetune --source sample_data/site_a --labels sample_data/site_a/labels.csv
    medtl run finetune --source sample_data/site_a --labels sample_data/site_a/labels.csv \
        --strategy probe --head dense:1024
    medtl run finetune --source sample_data/site_a --masks sample_data/site_a/masks --strategy last:2
    medtl run finetune --smoke
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import medtl
from medtl.cli import on_terminal, progress, run_recipe, say, table
from medtl.config import OneEncoder, TrainingConfig


@dataclass(frozen=True, kw_only=True)
class Config(OneEncoder, TrainingConfig):
    """Flags of this recipe."""

    task_defaults: ClassVar = {
        "labels": {"epochs": 20, "patience": 6},
        "masks": {"epochs": 60, "patience": 20},
    }

    strategy: str = "full"
    """What is trained and how, see `medtl list strategies`: probe, head, full, last:2, lp_ft, lora, ..."""

    head: str = "linear"
    """With labels: linear, or dense:N for a hidden layer of N units before it."""

    epochs: int | None = None
    """Maximum number of passes over the training cases; by default 20 with labels, 60 with masks."""

    patience: int | None = None
    """Stop after this many epochs without a lower loss on source validation; by default 6 (masks: 20)."""


def main(config: Config, command: Sequence[str] = ()) -> None:
    """Runs the recipe."""
    run = medtl.Run.plan(Path(__file__).stem, config)
    config = run.config
    task = medtl.task_of(config)
    ways = medtl.ways_of(
        (config.encoder,), strategies=(config.strategy,), hparams=config.hparams, name="finetune"
    )
    cases = task.collect(val_fraction=0.2, test_fraction=0.2)
    preprocess = task.suggest(cases)
    plans = medtl.check_ways(task, ways, cases, preprocess)

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
        say(f"\nStrategy {config.strategy}:\n{table(plans['finetune'])}\n")
        for seed in config.training_seeds:
            say(f"Training, seed {seed}")
            result = study.train(ways[0], seed).result
            if result.epochs:
                say(f"Kept epoch {result.best_epoch + 1} of {result.epochs}")
            study.train_bound(ways[0], seed)
        results, page = study.report(title=f"Fine-tuning on {study.sources}")
    say("\n" + table(medtl.summary_rows(results)))
    say(f"\nReport: {run.shown(page)}")


if __name__ == "__main__":
    run_recipe(__file__)
