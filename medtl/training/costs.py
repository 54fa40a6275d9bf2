"""The cost of a training: time, memory and size, measured once and stored with the model."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from medtl.adapters import Adapter
from medtl.evaluation import Cost
from medtl.runs import Run
from medtl.training.keeper import last_epoch


class CostMeter:
    """Measures the training inside its `with` block.

    with CostMeter(run, folder) as meter:
        fit(adapter, train, folder=folder, config=config)
    cost = meter.cost("full", adapter, lr=config.lr, predict=lambda: len(predict_cases(model, some)))

    The figures are stored in the folder's `cost.json`, so that a resumed run finds what was measured when the model was
    trained. The time of an interrupted training is unknown. Memory is the peak of the GPU or else of the process;
    it is unknown on systems that do not report it.

    Args:
        run: the run.
        folder: folder of the model.
    """

    def __init__(self, run: Run, folder: Path) -> None:
        self._run = run
        self._folder = folder
        self._fresh = last_epoch(folder) is None and not (folder / "model.safetensors").exists()
        self._seconds: float | None = None
        self._megabytes: float | None = None

    def __enter__(self) -> CostMeter:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        else:
            gc.collect()  # what earlier trainings left goes back to the system, and the high-water mark begins anew
            with contextlib.suppress(OSError, AttributeError):
                ctypes.CDLL("libc.so.6").malloc_trim(0)
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")
        self._started = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self._seconds = time.perf_counter() - self._started
        if torch.cuda.is_available():
            self._megabytes = torch.cuda.max_memory_allocated() / 2**20
            return
        with contextlib.suppress(OSError, StopIteration):
            lines = Path("/proc/self/status").read_text().splitlines()
            self._megabytes = int(next(x for x in lines if x.startswith("VmHWM")).split()[1]) / 1024

    def cost(
        self, model: str, adapter: Adapter, *, lr: float, predict: Callable[[], int] | None = None
    ) -> Cost:
        """The cost of the training.

        Args:
            model: its name in the predictions.
            adapter: holds the model.
            lr: peak learning rate.
            predict: predicts some cases and returns their number; it is called if no cost is stored. None leaves out
                the time of a prediction.
        """
        path = self._folder / "cost.json"
        if path.is_file():
            self._run.check(path)
            return Cost(**json.loads(path.read_text(encoding="utf-8")))
        started = time.perf_counter()
        number = 0 if predict is None else predict()
        kept = Cost(
            model=model,
            train_seconds=self._seconds if self._fresh else None,
            predict_seconds_per_case=(time.perf_counter() - started) / number if number else None,
            peak_memory_mb=self._megabytes,
            parameters=sum(p.numel() for p in adapter.predictor.parameters()),
            trained_parameters=_trained_parameters(adapter, lr),
        )
        self._run.write_json(str(path.relative_to(self._run.folder)), asdict(kept))
        return kept


def _trained_parameters(adapter: Adapter, lr: float) -> int:
    """Parameters of the model that the optimiser trains; those of a discriminator do not count."""
    if not adapter.trains:
        return 0
    own = {id(p) for p in adapter.model.parameters()}
    return sum(p.numel() for group in adapter.param_groups(lr) for p in group["params"] if id(p) in own)


def mean_costs(costs: Sequence[Cost]) -> tuple[Cost, ...]:
    """One cost per model, averaged over its training seeds; sizes are the same for all seeds."""
    by_model: dict[str, list[Cost]] = {}
    for cost in costs:
        by_model.setdefault(cost.model, []).append(cost)

    def mean(values: Iterable[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known else None

    return tuple(
        replace(
            found[0],
            train_seconds=mean(cost.train_seconds for cost in found),
            predict_seconds_per_case=mean(cost.predict_seconds_per_case for cost in found),
            peak_memory_mb=mean(cost.peak_memory_mb for cost in found),
        )
        for found in by_model.values()
    )
