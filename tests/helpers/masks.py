"""Two small sites of images and masks, for tests that need folders of both."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image


def write_masked_site(
    folder: Path, num: int = 10, *, offset: int = 0, shade: int = 0, sizes: tuple[int, ...] = (32,)
) -> Path:
    """PNG images of a bright disc with a brighter core, and masks of both: 0, 128, 255; `shade` shifts all values."""
    (folder / "scans").mkdir(parents=True, exist_ok=True)
    (folder / "masks").mkdir(exist_ok=True)
    (folder / "labels.json").write_text(json.dumps({"background": 0, "rim": 128, "core": 255}))
    rng = np.random.default_rng(offset)
    for number in range(num):
        size = sizes[number % len(sizes)]
        centre = rng.uniform(0.35, 0.65, 2) * size
        distance = np.hypot(*(np.indices((size, size)) - centre[:, None, None]))
        mask = np.select([distance < 0.12 * size, distance < 0.28 * size], [255, 128], 0).astype(np.uint8)
        image = rng.normal(50 + shade, 10, (size, size)) + np.select([mask == 255, mask == 128], [120, 60], 0)
        name = f"c{offset + number:03d}.png"
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(folder / "scans" / name)
        Image.fromarray(mask).save(folder / "masks" / name)
    return folder
