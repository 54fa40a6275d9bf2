"""How fast training is: python -m tests.benchmarks.training

Prints tables of ratios of one run, since machines are noisy:

- `fit()` against a bare PyTorch loop with the same model, loader, optimiser and precision, and channels_last against
  the default layout;
- `fit()` on cached scans against MONAI's CacheDataset and ThreadDataLoader with the same model and random transforms;
- the seconds from the command to the first step.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset, ThreadDataLoader
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    RandAdjustContrastd,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandScaleIntensityd,
    RandShiftIntensityd,
    RandSimulateLowResolutiond,
    Resized,
    ScaleIntensityRanged,
)
from PIL import Image
from torch.utils.data import DataLoader

from medtl import (
    Batch,
    Cohort,
    FitConfig,
    build_adapter,
    build_classifier,
    collect_cases,
    fit,
    suggest_preprocess,
)
from medtl.cli import table
from medtl.data.tensors.batch import collate
from medtl.data.tensors.dataset import EpochSampler
from medtl.models.weights.hub import packaged_available

ROOT = Path(__file__).parents[2]
SIZE, BATCH, CASES, EPOCHS, ROUNDS = 96, 32, 320, 3, 3
WEIGHTS = "imagenet" if packaged_available() else "random"


def adapter(*, channels_last: bool = True) -> Any:
    model = build_classifier("tf_efficientnet_lite0", 2, weights=WEIGHTS)
    if not channels_last:
        encoder = model.encoder.to(memory_format=torch.contiguous_format)
        encoder.forward = lambda image: encoder.network((image - encoder.mean) / encoder.std)
    return build_adapter("finetune", model)


def bare_loop(model: Any, epochs: Iterable[Iterable[Batch]]) -> None:
    """What one would write without a framework: no schedule, no log, no checkpoint."""
    optimizer = torch.optim.AdamW(model.param_groups(3e-4))
    model.train()
    for loader in epochs:
        for batch in loader:
            loss = model(batch, None, progress=0.0)["loss"]
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()


def medtl_epochs(data: Any) -> Iterable[Iterable[Batch]]:
    """The loaders that `fit` makes."""
    for epoch in range(EPOCHS):
        sampler = EpochSampler(len(data), seed=0, stream="source")
        sampler.set_epoch(epoch)
        data.set_epoch(epoch)
        yield DataLoader(data, BATCH, collate_fn=collate, sampler=sampler)


def monai_epochs(data: CacheDataset) -> Iterable[Iterable[Batch]]:
    for _ in range(EPOCHS):
        loader = ThreadDataLoader(
            data, batch_size=BATCH, shuffle=True, num_workers=0, use_thread_workers=True
        )
        yield (Batch(image=b["image"].as_tensor(), label=b["label"]) for b in loader)


def with_fit(data: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        config = FitConfig(epochs=EPOCHS, batch_size=BATCH, accelerator="cpu", tensorboard=False)
        fit(adapter(), data, folder=Path(folder) / "m", config=config)


def write_images(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(CASES):
        pixels = rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((160, 160)).save(folder / f"case{number:03d}.png")
    rows = [f"case{n:03d},p{n},{'ab'[n % 2]}" for n in range(CASES)]
    (folder / "labels.csv").write_text("case,patient,label\n" + "\n".join(rows) + "\n")


def medtl_data(folder: Path, cache: Path, augment: str) -> Any:
    cases = collect_cases(source=[folder], labels=folder / "labels.csv")
    cohort = Cohort.prepare(cases, suggest_preprocess(cases.items(), SIZE), cache)
    return cohort.dataset("source", "train", with_labels=True, augment=augment, cases=cohort.select("source"))


def monai_data(folder: Path) -> CacheDataset:
    """The same steps, with the probabilities of `standard`."""
    keys = "image"
    steps = [
        LoadImaged(keys, image_only=True),
        EnsureChannelFirstd(keys),
        Resized(keys, (SIZE, SIZE)),
        ScaleIntensityRanged(keys, 0, 255, 0, 1, clip=True),
        RandFlipd(keys, prob=0.5, spatial_axis=1),
        RandAffined(
            keys, prob=0.5, rotate_range=0.17, scale_range=0.1, translate_range=4, padding_mode="border",
            spatial_size=(SIZE, SIZE), cache_grid=True,
        ),
        RandAdjustContrastd(keys, prob=0.3, gamma=(1 / 1.4, 1.4)),
        RandScaleIntensityd(keys, prob=0.3, factors=0.2),
        RandShiftIntensityd(keys, prob=0.3, offsets=0.1),
        RandSimulateLowResolutiond(
            keys, prob=0.1, downsample_mode="area", upsample_mode="bilinear", zoom_range=(0.5, 1.0)
        ),
        RandGaussianSmoothd(keys, prob=0.15, sigma_x=(0.3, 0.8), sigma_y=(0.3, 0.8)),
        RandGaussianNoised(keys, prob=0.2, std=0.04),
    ]  # fmt: skip
    files = sorted(folder.glob("*.png"))
    items = [{"image": str(f), "label": n % 2} for n, f in enumerate(files)]
    return CacheDataset(items, Compose(steps), progress=False)


def seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(title: str, ways: dict[str, Callable[[], None]]) -> None:
    """Runs the ways in turn, so that drift hits all alike; the first round warms up."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(ROUNDS + 1):
        for name, work in ways.items():
            spent = seconds(work)
            if number:
                times[name].append(spent)
    first = next(iter(times.values()))
    rows = [
        {
            "way": name,
            "images/s": f"{CASES * EPOCHS / median(t):.0f}",
            "times the first": f"{median(a / b for a, b in zip(first, t, strict=True)):.2f}",
        }
        for name, t in times.items()
    ]
    print(f"\n{title}\n{table(rows)}")


def first_step() -> float:
    """Seconds from the command, on scans that are in the cache, to the end of the first step."""
    site = ROOT / "sample_data/site_a"
    with tempfile.TemporaryDirectory() as folder:
        run = ["-m", "medtl.cli", "run", "finetune", "--source", str(site)]
        run += ["--labels", str(site / "labels.csv"), "--weights", WEIGHTS, "--epochs", "1", "--out"]
        subprocess.run([sys.executable, *run, f"{folder}/warm"], check=True, capture_output=True)
        code = (
            "import sys; from medtl.strategies import Strategy; from medtl import cli\n"
            "def stop(self): print('FIRST STEP'); sys.stdout.flush(); import os; os._exit(0)\n"
            "Strategy.on_step_end = stop\n"
            "cli.main(sys.argv[1:])"
        )
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code, *run[2:], f"{folder}/timed"],
            check=True,
            capture_output=True,
            text=True,
        )
        spent = time.perf_counter() - start
        assert re.search("FIRST STEP", done.stdout)
        return spent


def main() -> None:
    print(
        f"{CASES} images of {SIZE} x {SIZE}, batches of {BATCH}, {EPOCHS} epochs, {torch.get_num_threads()} threads"
    )
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        images.mkdir()
        write_images(images)
        plain = medtl_data(images, Path(folder) / "cache", "none")
        augmented = medtl_data(images, Path(folder) / "cache", "standard")
        compare(
            "One loader, one model",
            {
                "bare loop": lambda: bare_loop(adapter(), medtl_epochs(augmented)),
                "bare loop, default layout": lambda: bare_loop(
                    adapter(channels_last=False), medtl_epochs(augmented)
                ),
                "fit()": lambda: with_fit(augmented),
            },
        )
        with_monai = monai_data(images)
        compare(
            "Data of MONAI and of medtl, one model",
            {
                "MONAI CacheDataset, ThreadDataLoader": lambda: bare_loop(
                    adapter(), monai_epochs(with_monai)
                ),
                "medtl fit()": lambda: with_fit(augmented),
                "medtl fit(), not augmented": lambda: with_fit(plain),
            },
        )
    print(f"\nFirst step after the command: {median(first_step() for _ in range(ROUNDS)):.1f} s")


if __name__ == "__main__":
    main()
