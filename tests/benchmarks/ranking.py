"""Whether the order of frozen scores is the order after training: python -m tests.benchmarks.ranking [epochs [name]]

Candidates are one encoder with the packaged weights, with Gaussian noise added to them (in units of each tensor's
standard deviation), and with random weights. Each is ranked without training, then trained in full, and judged on
patients that neither has seen. Kendall's tau between the two orders is printed, on sample_data, and on the white blood
cells if MEDTL_REALDATA names the folder of real scans.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from scipy.stats import kendalltau

from medtl import (
    Cohort,
    FitConfig,
    build_adapter,
    build_classifier,
    build_encoder,
    collect_cases,
    extract_features,
    fit,
    predict_cases,
    suggest_preprocess,
)
from medtl.cli import table
from medtl.encoders.ranking import SCORES, Candidate, rank_candidates
from medtl.encoders.source_head import source_head, source_probabilities
from medtl.evaluation.metrics.discrimination import auroc

ROOT = Path(__file__).parents[2]
ENCODER = "tf_efficientnet_lite0"
SIZE = 64
NOISE = (0.0, 0.25, 0.5, 1.0)
SEEDS = (0, 1)


def weight_sets(folder: Path) -> dict[str, str]:
    """Files of perturbed weights by name, and what needs no file."""
    found = {}
    clean = build_encoder(ENCODER).network.state_dict()
    for noise in NOISE:
        generator = torch.Generator().manual_seed(0)
        state = {
            k: (v + noise * v.std() * torch.randn(v.shape, generator=generator)).contiguous()
            if v.ndim > 1
            else v.clone()
            for k, v in clean.items()
        }
        path = folder / f"noise{noise}.safetensors"
        save_file(state, path)
        found[f"noise {noise:g} sd"] = str(path)
    return found | {"random": "random"}


def measure(name: str, folder: Path, epochs: int, **where: Any) -> None:
    """Ranks and trains all sets of weights on one data set, and prints both."""
    cases = collect_cases(**where, val_fraction=0.2, test_fraction=0.3, seed=0)
    preprocess = suggest_preprocess(cases.items(), SIZE)
    cohort = Cohort.prepare(cases, preprocess, folder / "cache")
    chosen = [c for split in ("train", "validation") for c in cohort.select("source", split)]
    seen = cohort.dataset("source", "train", with_labels=True, cases=chosen)
    test = cohort.dataset("source", "test", with_labels=True)
    train = cohort.dataset("source", "train", with_labels=True, augment="standard")
    validation = cohort.dataset("source", "validation", with_labels=True)
    if seen is None or test is None or train is None:
        raise SystemExit(f"{name}: a split is empty")
    truth, k = np.array(test.labels), len(cohort.table.classes)
    started, candidates, trained = time.perf_counter(), {}, {}
    sets = weight_sets(folder)
    torch.manual_seed(0)  # of the random weights
    for label, weights in sets.items():
        encoder = build_encoder(ENCODER, weights=weights, in_channels=preprocess.channels)
        features = extract_features(encoder, seen, folder / "features")
        head = source_head(encoder, weights)
        probs = None if head is None else source_probabilities(head, features.features[:, 0])
        candidates[label] = Candidate(features.vectors[:, 0].numpy(), probs)
    encoded = time.perf_counter() - started
    started = time.perf_counter()
    who = np.array([c.patient for c in chosen])
    ranking = rank_candidates(candidates, np.array(seen.labels), who)
    ranked = time.perf_counter() - started
    started = time.perf_counter()
    for label, weights in sets.items():
        values = []
        for seed in SEEDS:
            model = build_classifier(ENCODER, k, weights=weights, in_channels=preprocess.channels, seed=seed)
            config = FitConfig(epochs=epochs, batch_size=cohort.cases_per_batch(32), lr=3e-4, seed=seed)
            out = folder / f"{name}-{label}-{seed}".replace(" ", "-")
            adapter = build_adapter("finetune", model)
            fit(adapter, train, folder=out, config=config, validation=validation)
            logits = np.asarray(predict_cases(adapter.model, test), dtype=np.float64)
            probs = np.exp(logits - logits.max(axis=1, keepdims=True))
            probs /= probs.sum(axis=1, keepdims=True)
            values.append(np.mean([auroc(probs[:, c], truth == c) for c in range(k)]))
        trained[label] = float(np.mean(values))
    seconds = time.perf_counter() - started
    rows = [
        {"weights": row.name, "first in halves": f"{row.first:.2f}"}
        | {SCORES[s]: f"{e.value:.3f}" for s, e in row.scores.items()}
        | {"AUROC after training": f"{trained[row.name]:.3f}"}
        for row in ranking.rows
    ]
    print(f"\n{name}: {len(seen)} cases ranked, {len(test)} tested, {epochs} epochs, {len(SEEDS)} seeds")
    print(table(rows))
    after = [trained[row.name] for row in ranking.rows]
    for score in ("logme", "h_score", "knn"):
        tau = kendalltau([row.scores[score].value for row in ranking.rows], after).statistic
        print(f"Kendall tau of {SCORES[score]} with the order after training: {tau:.2f}")
    print(f"Seconds: features {encoded:.0f}, ranking {ranked:.1f}, training {seconds:.0f}")


def main() -> None:
    """Prints the tables."""
    epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    sites = {"sample_data site_a": ROOT / "sample_data" / "site_a"}
    if real := os.environ.get("MEDTL_REALDATA"):
        sites["wbc lab_a"] = Path(real) / "wbc" / "lab_a"
    for name, site in sites.items():
        if len(sys.argv) > 2 and not name.startswith(sys.argv[2]):
            continue
        with tempfile.TemporaryDirectory() as folder:
            where: dict[str, Any] = {"source": [site], "labels": site / "labels.csv"}
            if name.startswith("wbc"):
                where = {"source": [site / "images"], "labels": site / "labels.csv"}
                where["classes"] = ["neutrophil", "lymphocyte", "monocyte", "eosinophil"]
            measure(name, Path(folder), epochs, **where)


if __name__ == "__main__":
    main()
