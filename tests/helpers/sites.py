"""Two small sites of images, for tests that need folders of scans."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

TINY = [
    *("--encoder", "test_resnet", "--weights", "random", "--image-size", "32"),
    *("--epochs", "1", "--batch-size", "8", "--augment", "none"),
]
"""Flags of a training that takes a second."""


def write_site(folder: Path, num: int = 16, *, offset: int = 0, shade: int = 0, classes: int = 2) -> Path:
    """PNG images whose stripes tell the class, with labels.csv; `shade` shifts all values."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(offset)
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "patient", "label"])
        for number in range(num):
            label = number % classes
            stripes = (np.arange(32) % (2 + 2 * label) < 1 + label) * 90
            image = np.clip(rng.normal(60 + shade, 15, (32, 32)) + stripes, 0, 255).astype(np.uint8)
            name = f"c{offset + number:03d}"
            Image.fromarray(image).save(folder / f"{name}.png")
            writer.writerow([name, f"Patient^Secret{offset + number}", f"class{label}"])
    return folder
