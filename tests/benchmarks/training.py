"""How fast training is: python -m tests.benchmarks.training

Prints a table of ratios of one run, since machines are noisy: channels_last against the default layout, and
`fit()` against a bare PyTorch loop with the same model, batches, optimiser and number of steps.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch.utils.data import DataLoader

from medtl import Batch, FitConfig, build_adapter, build_classifier, fit
from medtl.cli import table
from medtl.data.batch import collate
from medtl.models.weights import packaged_available

SIZE, BATCH, STEPS, ROUNDS = 96, 32, 10, 3


class Images:
    """Random images in memory."""

    def __init__(self, num: int = BATCH * STEPS) -> None:
        self.image = torch.rand(num, 3, SIZE, SIZE)

    def set_epoch(self, epoch: int) -> None:
        """Nothing is augmented."""

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, index: int) -> Batch:
        return Batch(image=self.image[int(index)], label=torch.tensor(int(index) % 2))


def adapter(*, channels_last: bool = True) -> torch.nn.Module:
    weights = "imagenet" if packaged_available() else "random"
    model = build_classifier("tf_efficientnet_lite0", 2, weights=weights)
    if not channels_last:
        encoder = model.encoder.to(memory_format=torch.contiguous_format)
        encoder.forward = lambda image: encoder.network((image - encoder.mean) / encoder.std)
    return build_adapter("finetune", model)


def bare_loop(model: torch.nn.Module, data: Images) -> None:
    optimizer = torch.optim.AdamW(model.param_groups(3e-4))
    model.train()
    for step, batch in enumerate(DataLoader(data, BATCH, collate_fn=collate, shuffle=True)):
        loss = model(batch, progress=step / STEPS)["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def with_fit(model: torch.nn.Module, data: Images) -> None:
    with tempfile.TemporaryDirectory() as folder:
        config = FitConfig(epochs=1, batch_size=BATCH, accelerator="cpu", tensorboard=False)
        fit(model, data, folder=Path(folder) / "m", config=config)


def seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Runs the three in turn, so that drift hits all alike."""
    data = Images()
    ways: dict[str, Callable[[], None]] = {
        "bare loop, default layout": lambda: bare_loop(adapter(channels_last=False), data),
        "bare loop, channels_last": lambda: bare_loop(adapter(), data),
        "fit(), channels_last": lambda: with_fit(adapter(), data),
    }
    for work in ways.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, work in ways.items():
            times[name].append(seconds(work))
    first = times["bare loop, default layout"]
    print(f"{len(data)} images of {SIZE} x {SIZE}, batches of {BATCH}, {torch.get_num_threads()} threads")
    rows = [
        {
            "way": name,
            "images/s": f"{len(data) / median(t):.0f}",
            "times the first": f"{median(a / b for a, b in zip(first, t, strict=True)):.2f}",
        }
        for name, t in times.items()
    ]
    print(table(rows))


if __name__ == "__main__":
    main()
