"""Published shifts on real data, through the Python interface. They take minutes: -m "slow and realdata"."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medtl import Batch, FitConfig, build_adapter, fit, with_features

pytestmark = [pytest.mark.slow, pytest.mark.realdata]


def lenet() -> nn.Module:
    """LeNet with BatchNorm, for 28 x 28 images in [0, 1]."""
    return nn.Sequential(
        nn.Conv2d(1, 20, 5),
        nn.BatchNorm2d(20),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(20, 50, 5),
        nn.BatchNorm2d(50),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(800, 500),
        nn.BatchNorm1d(500),
        nn.ReLU(),
        nn.Linear(500, 10),
    )


class Digits:
    """Digits as a data set; USPS is stretched to 28 x 28."""

    def __init__(self, images: np.ndarray, labels: np.ndarray | None) -> None:
        image = torch.from_numpy(images).float()[:, None] / 255
        if image.shape[-1] != 28:
            image = nn.functional.interpolate(image, (28, 28), mode="bilinear", align_corners=False)
        self.image = image
        self.label = None if labels is None else torch.from_numpy(labels.astype(np.int64))

    def set_epoch(self, epoch: int) -> None:
        """Nothing is augmented."""

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, index: int) -> Batch:
        label = None if self.label is None else self.label[int(index)]
        return Batch(image=self.image[int(index)], label=label)


def accuracy(model: nn.Module, data: Digits) -> float:
    with torch.no_grad():
        logits = torch.cat([model(part).logits for part in data.image.split(1000)])
    correct: Tensor = logits.argmax(1) == data.label
    return float(correct.float().mean())


def run(
    realdata: Path, folder: Path, source: str, target: str, method: str, seed: int, **hparams: object
) -> float:
    archive = np.load(realdata / "digits" / "mnist_usps.npz")
    rng = np.random.default_rng(seed)
    chosen = {
        d: rng.permutation(len(archive[f"{d}_train_labels"]))[:n]
        for d, n in (("mnist", 2000), ("usps", 1800))
    }
    train = Digits(
        archive[f"{source}_train_images"][chosen[source]], archive[f"{source}_train_labels"][chosen[source]]
    )
    unlabelled = Digits(archive[f"{target}_train_images"][chosen[target]], None)
    test = Digits(archive[f"{target}_test_images"], archive[f"{target}_test_labels"])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = with_features(lenet())
    adapter = build_adapter(method, network, seed=seed, **hparams)
    config = FitConfig(epochs=20, batch_size=64, lr=1e-3, seed=seed, accelerator="cpu", tensorboard=False)
    fit(adapter, train, unlabelled, folder=folder / f"{method}{seed}", config=config, target_plain=unlabelled)
    return accuracy(adapter.model.eval(), test)


@pytest.mark.parametrize(("source", "target", "least"), [("mnist", "usps", 0.80), ("usps", "mnist", 0.70)])
def test_dann_wins_back_the_digits(
    realdata: Path, tmp_path: Path, source: str, target: str, least: float
) -> None:
    """2,000 MNIST and 1,800 USPS images, full test sets, three seeds, the target's statistics at test."""
    plain = [run(realdata, tmp_path, source, target, "finetune", s) for s in range(3)]
    adapted = [run(realdata, tmp_path, source, target, "dann", s, statistics="target") for s in range(3)]
    print(f"{source} to {target}: source-only {plain}, DANN {adapted}")
    assert np.mean(adapted) >= least
    assert all(a > p + 0.1 for a, p in zip(adapted, plain, strict=True))
