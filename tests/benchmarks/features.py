"""How fast features are: python -m tests.benchmarks.features

Prints ratios of one run, since machines are noisy: `extract_features` against a plain timm loop over the same images,
and an epoch of the probe on cached features against an epoch of full fine-tuning, both through `fit`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch
from torch.utils.data import DataLoader

from medtl import FitConfig, build_adapter, build_classifier, extract_features, fit
from medtl.cli import table
from medtl.data.tensors.batch import collate
from tests.benchmarks.training import BATCH, CASES, SIZE, WEIGHTS, medtl_data, seconds, write_images

ENCODER, ROUNDS, EPOCHS = "tf_efficientnet_lite0", 3, 3


def timm_loop(network: Any, data: Any) -> None:
    """What one would write: normalise, encode, gather."""
    mean, std = (torch.tensor(network.pretrained_cfg[k]).view(1, -1, 1, 1) for k in ("mean", "std"))
    parts = []
    with torch.no_grad():
        for batch in DataLoader(data, 64, collate_fn=collate):
            parts.append(network((batch.image - mean) / std))
    torch.cat(parts)


def encode_twice(encoder: Any, network: Any, data: Any, fresh: Path) -> tuple[float, float]:
    return seconds(lambda: timm_loop(network, data)), seconds(lambda: extract_features(encoder, data, fresh))


def per_epoch(strategy: str, data: Any) -> float:
    """Seconds of an epoch: of many less those of one, so that the start does not count."""
    spent = []
    for epochs in (1, 1, 1 + EPOCHS * (20 if strategy == "probe" else 1)):  # the first warms up
        model = build_classifier(ENCODER, 2, weights=WEIGHTS)
        config = FitConfig(epochs=epochs, batch_size=BATCH, accelerator="cpu", tensorboard=False)
        with tempfile.TemporaryDirectory() as folder:
            work: Callable[[], Any] = lambda: fit(  # noqa: E731
                build_adapter("finetune", model, strategy=strategy),  # noqa: B023
                data,
                folder=Path(folder) / "m",
                config=config,  # noqa: B023
            )
            spent.append((epochs, seconds(work)))
    _, (few, first), (many, second) = spent
    return (second - first) / (many - few)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        images.mkdir()
        write_images(images)
        data = medtl_data(images, Path(folder) / "cache", "none")
        encoder = build_classifier(ENCODER, 2, weights=WEIGHTS).encoder
        network = timm.create_model(ENCODER, num_classes=0).eval()
        network.load_state_dict(encoder.network.state_dict())
        ours, theirs = [], []
        for number in range(ROUNDS + 1):
            times = encode_twice(encoder, network, data, Path(folder) / f"features{number}")
            if number:
                theirs.append(times[0])
                ours.append(times[1])
        ratio = median(a / b for a, b in zip(theirs, ours, strict=True))
        rows = [
            {
                "way": "plain timm loop",
                "images/s": f"{CASES / median(theirs):.0f}",
                "times the first": "1.00",
            },
            {
                "way": "extract_features",
                "images/s": f"{CASES / median(ours):.0f}",
                "times the first": f"{ratio:.2f}",
            },
        ]
        print(f"{CASES} images of {SIZE} x {SIZE}, {torch.get_num_threads()} threads\n{table(rows)}\n")
        kept = extract_features(encoder, data, Path(folder) / "features0")
        full, probe = per_epoch("full", data), per_epoch("probe", kept)
        rows = [
            {"strategy": "full", "ms an epoch": f"{1e3 * full:.0f}", "times the first": "1"},
            {
                "strategy": "probe",
                "ms an epoch": f"{1e3 * probe:.1f}",
                "times the first": f"{full / probe:.0f}",
            },
        ]
        print(table(rows))


if __name__ == "__main__":
    main()
