r"""Adapts a segmentation network from scans with masks of one site to scans without masks of another.

Trains source-only and an adapted model side by side, for every seed, writes their masks in each scan's own grid, and
reports both structure by structure; says which to keep without looking at a mask of the target.

    medtl run adapt_segmentation --source sample_data/site_a --masks sample_data/site_a/masks \
        --target sample_data/site_b --target-masks sample_data/site_b/masks
    medtl run adapt_segmentation --smoke
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import medtl
from medtl.cli import on_terminal, progress, run_recipe, say, table
from medtl.config import SegmentationConfig


@dataclass(frozen=True, kw_only=True)
class Config(SegmentationConfig):
    """Flags of this recipe."""

    method: str = "adabn"
    """Adaptation method; `medtl list methods` shows them. Or a file of your own, my_method.py."""

    epochs: int = 20
    """Passes over the longer of source and target."""

    target_trained: bool = False
    """Also train on the target's masks, two halves of the patients in turn: an upper bound, never a candidate."""


def main(config: Config, command: Sequence[str] = ()) -> None:
    """Runs the recipe."""
    run = medtl.Run.plan(Path(__file__).stem, config.reduced())
    config = run.config
    if config.target is None or not config.masks or not config.source:
        raise medtl.ConfigError("Give --source DIR --masks DIR --target DIR (or try --smoke).")
    if config.target_trained and config.target_masks is None:
        raise medtl.ConfigError("--target-trained needs the target's masks: give --target-masks DIR.")
    hparams = medtl.parse_hparams(config.method, config.hparams)
    cases = medtl.collect_cases(
        source=config.source,
        labels=config.labels,
        masks=config.masks,
        target=config.target,
        target_masks=config.target_masks,
        structures=config.structures,
        seed=config.seed,
    )
    preprocess = medtl.suggest_preprocess(
        cases.items(), config.image_size, intensity=config.intensity, keep_spacing=True
    )
    network = medtl.choose_network(config.network, preprocess.spatial_dims)

    def build(seed: int) -> medtl.Segmenter:
        return medtl.build_segmenter(
            config.encoder,
            len(cases.classes),
            network=network,
            weights=config.weights,
            in_channels=preprocess.channels,
            seed=seed,
        )

    # Absent weights, an unknown loss, and a method that cannot do it are errors before anything is written.
    medtl.SegmentationLoss(config.loss)
    medtl.build_adapter(config.method, build(config.seed), **hparams)
    adapted = Path(config.method).stem
    models = {"source_only": ("finetune", {}), adapted: (config.method, hparams)}

    with run.open(command):
        say(f"Run: {run.name}")
        cohort = medtl.Cohort.prepare(cases, preprocess, run.cache, progress=progress("Preparing scans"))
        cohort.table.to_csv(run.folder / "cases.csv")
        say(table(cohort.summary()) + "\n" + "\n".join(cohort.table.warnings))
        patch = cohort.patch(config.image_size, cube=network == "unet_3d")
        validation = cohort.dataset("source", "validation", with_labels=True, patch=patch)
        target_plain = cohort.dataset("target", "test", patch=patch)
        writer = medtl.MaskWriter(run.folder, cases.labels)

        def train(name: str, method: str, options: dict[str, Any], seed: int, **data: Any) -> medtl.Adapter:
            say(f"Training {name}, seed {seed}")
            model, kind = build(seed), medtl.adapter_class(method)
            ready = kind.source_weights and not options  # source-only's training is its own
            if ready or "source" not in kind.needs:
                medtl.restore_weights(model, run.model_folder("source_only", seed))
            loss = medtl.SegmentationLoss.balanced(config.loss, cohort.voxel_counts())
            adapter = medtl.build_adapter(method, model, seed=seed, criterion=loss, **options)
            medtl.fit(
                adapter,
                **data,
                folder=run.model_folder(name, seed),
                config=medtl.FitConfig.of_recipe(
                    config,
                    **({"epochs": 0} if ready else {}),
                    batch_size=cohort.cases_per_batch(config.batch_size, patch),
                    seed=seed,
                    progress_bar=on_terminal(),
                ),
                header=medtl.model_header(
                    adapter, cases.classes, preprocess, labels=cases.labels, patch=patch, hparams=options
                ),
                metrics=run.metrics(name, seed),
            )
            return adapter

        for seed in config.training_seeds:
            common = {"augment": config.augment, "seed": seed, "patch": patch}
            for name, (method, options) in models.items():
                strong = "strong_view" in medtl.adapter_class(method).needs
                adapter = train(
                    name,
                    method,
                    options,
                    seed,
                    source=cohort.dataset("source", "train", with_labels=True, **common),
                    target=cohort.dataset("target", "test", strong=strong, **common),
                    validation=validation,
                    target_plain=target_plain,
                )
                with adapter.on_source():
                    writer.add(medtl.segment_cases(adapter.model, validation, patch=patch), name, seed)
                writer.add(medtl.adapt_cases(adapter, target_plain, patch=patch), name, seed)
            for number, (half, rest) in enumerate(
                cohort.halves("target") if config.target_trained else (), 1
            ):
                data = cohort.dataset("target", "test", cases=half, with_labels=True, **common)
                adapter = train(f"target_trained_{number}", "finetune", {}, seed, source=data)
                unseen = cohort.dataset("target", "test", cases=rest, patch=patch)
                masks = medtl.segment_cases(adapter.model, unseen, patch=patch)
                writer.add(masks, "target_trained", seed, oracle=True)
        predictions = writer.finish()
        decision = medtl.recommend_masks(writer.evidence, tuple(cases.labels.structures))
        run.write_json("decision.json", decision.to_dict())
        results, page = medtl.report_run(
            run,
            cohort,
            predictions,
            title=f"{adapted}: {' and '.join(cohort.sites('source'))} to {config.target.name}",
            keep=decision.to_dict(),
            target_seen_unlabelled=True,
            target_trained=("target_trained",) if config.target_trained else (),
        )
    say("\n" + table(results.summary_table()))
    say(f"\nKeep {decision.model}. {decision.reason}")
    say(f"Report: {page}")


if __name__ == "__main__":
    run_recipe(__file__)
