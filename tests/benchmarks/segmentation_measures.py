"""How fast the measures of a segmentation are: python -m tests.benchmarks.segmentation_measures

Prints a table of seconds and ratios of one run, since machines are noisy. Both ways measure HD95, HD, ASSD and surface
Dice of one pair of masks and must agree; MONAI's functions measure the surfaces anew for each of them.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice

from medtl.cli import table
from medtl.evaluation.metrics.surfaces import surface_distances

Pair = tuple[np.ndarray, np.ndarray]
SPACING, TOLERANCE, ROUNDS = (2.5, 0.8, 0.8), 2.0, 3


def ball(shape: tuple[int, int, int], centre: tuple[int, int, int], radius: float) -> np.ndarray:
    k, j, i = np.ogrid[tuple(slice(n) for n in shape)]
    return (k - centre[0]) ** 2 + (j - centre[1]) ** 2 + (i - centre[2]) ** 2 < radius**2


def examples() -> dict[str, Pair]:
    """An organ with a stray blob in a CT; a lesion; two large organs that lie far apart."""
    shape = (120, 512, 512)
    called = ball(shape, (61, 253, 249), 58)
    called[3:6, 20:25, 480:490] = True
    return {
        "512 x 512 x 120, organ and stray blob": (called, ball(shape, (60, 250, 250), 58)),
        "512 x 512 x 120, lesion": (ball(shape, (61, 253, 249), 6), ball(shape, (60, 250, 250), 6)),
        "256 x 256 x 160, organ 40 voxels away": (
            ball((160, 256, 256), (80, 100, 108), 70),
            ball((160, 256, 256), (80, 140, 148), 70),
        ),
    }


def ours(called: np.ndarray, reference: np.ndarray) -> list[float]:
    found = surface_distances(called, reference, SPACING)
    return [found.hd95, found.hd, found.assd, found.nsd(TOLERANCE)]


def with_monai(called: np.ndarray, reference: np.ndarray) -> list[float]:
    pair = [torch.from_numpy(mask[None, None]) for mask in (called, reference)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [
            compute_hausdorff_distance(*pair, True, percentile=95, spacing=[SPACING]),
            compute_hausdorff_distance(*pair, True, spacing=[SPACING]),
            compute_average_surface_distance(*pair, True, symmetric=True, spacing=[SPACING]),
            compute_surface_dice(*pair, [TOLERANCE], True, spacing=[SPACING]),
        ]
    return [float(value) for value in found]


def hd95_with_monai(called: np.ndarray, reference: np.ndarray) -> list[float]:
    pair = [torch.from_numpy(mask[None, None]) for mask in (called, reference)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [float(compute_hausdorff_distance(*pair, True, percentile=95, spacing=[SPACING]))]


def seconds(work: Callable[[np.ndarray, np.ndarray], list[float]], pair: Pair) -> tuple[float, list[float]]:
    start = time.perf_counter()
    found = work(*pair)
    return time.perf_counter() - start, found


def main() -> None:
    """Runs the ways in turn, so that drift hits all alike."""
    ways = {"medtl, all": ours, "MONAI, all": with_monai, "MONAI, HD95 alone": hd95_with_monai}
    rows = []
    for name, pair in examples().items():
        times: dict[str, list[float]] = {way: [] for way in ways}
        found: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            for way, work in ways.items():
                spent, found[way] = seconds(work, pair)
                times[way].append(spent)
        np.testing.assert_allclose(found["medtl, all"], found["MONAI, all"], rtol=1e-5)
        base = median(times["medtl, all"])
        rows.extend(
            {
                "masks": name,
                "way": way,
                "seconds": f"{median(spent):.3f}",
                "times medtl": f"{median(spent) / base:.1f}",
            }
            for way, spent in times.items()
        )
    print(table(rows))


if __name__ == "__main__":
    main()
