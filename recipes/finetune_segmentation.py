r"""Trains a network to segment scans of one site or several, and tests it on patients kept apart.

Writes every mask in its scan's own grid; with --target, also the masks of another site, where nothing was adapted.

    medtl run finetune_segmentation --source sample_data/site_a --masks sample_data/site_a/masks
    medtl run finetune_segmentation --source sample_data/site_a --masks sample_data/site_a/masks --strategy last:2
    medtl run finetune_segmentation --smoke
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import medtl
from medtl.cli import on_terminal, progress, run_recipe, say, table
from medtl.config import SegmentationConfig


@dataclass(frozen=True, kw_only=True)
class Config(SegmentationConfig):
    """Flags of this recipe."""

    strategy: str = "full"
    """What is trained and how; `medtl list strategies` shows them: head, full, last:2, gradual, layer_decay, ..."""

    epochs: int = 60
    """Passes over the training cases, at most."""

    patience: int | None = 20
    """Stop after so many epochs without a lower loss on source validation, and keep the best."""


def main(config: Config, command: Sequence[str] = ()) -> None:
    """Runs the recipe."""
    run = medtl.Run.plan(Path(__file__).stem, config.reduced())
    config = run.config
    if not config.masks or not config.source:
        raise medtl.ConfigError("Give --source DIR --masks DIR (or try --smoke).")
    way = medtl.SegmenterTuning.of_recipe(config)
    cases = medtl.collect_cases(
        source=config.source,
        labels=config.labels,
        masks=config.masks,
        target=config.target,
        target_masks=config.target_masks,
        structures=config.structures,
        val_fraction=0.2,
        test_fraction=0.2,
        seed=config.seed,
    )
    preprocess = medtl.suggest_preprocess(
        cases.items(), config.image_size, intensity=config.intensity, keep_spacing=True
    )
    # Absent weights and an unknown strategy or loss are errors before anything is written.
    plan = way.build(len(cases.classes), preprocess, config.seed).plan(config.lr)

    with run.open(command):
        say(f"Run: {run.name}")
        cohort = medtl.Cohort.prepare(cases, preprocess, run.cache, progress=progress("Preparing scans"))
        cohort.table.to_csv(run.folder / "cases.csv")
        say(table(cohort.summary()) + "\n" + "\n".join(cohort.table.warnings))
        say(f"\nStrategy {config.strategy}:\n{table(plan)}\n")
        patch = cohort.patch(config.image_size, cube=config.network == "unet_3d")
        held_out = [("source", "validation"), ("source", "test"), ("target", "test")]
        tested = [d for domain, split in held_out if (d := cohort.dataset(domain, split, patch=patch))]
        writer, tuned = medtl.MaskWriter(run.folder, cases.labels), []
        for seed in config.training_seeds:
            say(f"Training, seed {seed}")
            model, done = medtl.fine_tune_segmenter(
                way,
                run,
                cohort,
                name="finetune",
                seed=seed,
                patch=patch,
                config=medtl.FitConfig.of_recipe(
                    config,
                    batch_size=cohort.cases_per_batch(config.batch_size, patch),
                    seed=seed,
                    progress_bar=on_terminal(),
                ),
            )
            tuned.append(done)
            say(f"Kept epoch {done.result.best_epoch + 1} of {done.result.epochs}")
            for data in tested:
                writer.add(medtl.segment_cases(model, data, patch=patch), "finetune", seed)
        results, page = medtl.report_run(
            run,
            cohort,
            writer.finish(),
            title=f"Fine-tuning on {' and '.join(cohort.sites('source'))}",
            target_seen_unlabelled=False,
            methods={"finetune": way.note},
            **medtl.training_record(run, tuned),
        )
    say("\n" + table(results.summary_table()))
    say(f"\nReport: {page}")


if __name__ == "__main__":
    run_recipe(__file__)
