"""Calibration of voxel probabilities from histograms of log odds, so that no volume is needed twice.

For each case and structure the log odds of "structure against all else" are counted in fixed bins, together with how
many of these voxels the reference gives to the structure. Only voxels within a margin of the structure count, in the
reference or in the mask: a scan is mostly background that no model doubts, and pooled with it every model looks
calibrated. Void voxels are left out. Every case weighs the same, however many voxels it has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medtl.errors import DataError
from medtl.evaluation.metrics.calibration import MAX_LOG_TEMPERATURE, BinnedGap, equal_width_edges
from medtl.evaluation.metrics.metric import VoxelMetric
from medtl.evaluation.metrics.surfaces import SLACK, bounding_box
from medtl.evaluation.statistics.arrays import Bools, Floats, Ints, sigmoid, sum_by_patient
from medtl.labelmap import VOID, LabelMap

if TYPE_CHECKING:
    import pandas as pd

NUM_BINS = 256
LIMIT = 16.0
"""Bins cut the log odds from -16 to 16 (probabilities of about 1e-7 and 1 - 1e-7); the outer two are open."""
CENTRES: Floats = np.linspace(-LIMIT, LIMIT, NUM_BINS, endpoint=False) + LIMIT / NUM_BINS
"""Log odds that stand for each bin."""
MARGIN = 5.0
"""Default margin: 5 mm, or 5 pixels for images without a pixel size."""
SUM_TOLERANCE = 0.02
"""The probabilities of a voxel's classes may miss a sum of 1 by this much: half precision rounds each of them."""


def band_name(margin: float, unit: str) -> str:
    """Names the evaluated voxels in a report; `unit` is `mm` or `px`."""
    return f"voxels within {margin:g} {unit} of the structure, in the reference or in the mask"


def near(
    mask: Bools, spacing: Sequence[float] | None, margin: float
) -> tuple[tuple[slice, ...], Bools] | None:
    """The voxels within `margin` of a mask (Euclidean, centre to centre), the mask included.

    A ball is a pile of lines: shifting the mask, widened along its last axis, over the ball's other offsets takes a
    fraction of the time of a distance transform, and is exact.

    Args:
        mask: (k, j, i).
        spacing: of the voxels; None counts in voxels.
        margin: in the unit of the spacing.

    Returns:
        A box and the voxels within it; None for an empty mask.
    """
    box = bounding_box(mask)
    if box is None:
        return None
    size = np.ones(mask.ndim) if spacing is None else np.asarray(spacing, dtype=np.float64)
    limit = margin * (1 + SLACK)
    reach = np.floor(limit / size).astype(int).tolist()
    wide = tuple(
        slice(max(cut.start - r, 0), min(cut.stop + r, length))
        for cut, r, length in zip(box, reach, mask.shape, strict=True)
    )
    start = mask[wide]
    widths: dict[int, list[tuple[int, int]]] = {}
    for dk in range(-reach[0], reach[0] + 1):
        for dj in range(-reach[1], reach[1] + 1):
            rest = limit**2 - (dk * size[0]) ** 2 - (dj * size[1]) ** 2
            if rest >= 0:
                widths.setdefault(int(np.sqrt(rest) / size[2]), []).append((dk, dj))
    inside, row = start.copy(), start.copy()
    for width in range(max(widths) + 1):
        if width:
            row[..., width:] |= start[..., :-width]
            row[..., :-width] |= start[..., width:]
        for dk, dj in widths.get(width, ()):
            to_k, from_k = _shift(dk, row.shape[0])
            to_j, from_j = _shift(dj, row.shape[1])
            inside[to_k, to_j] |= row[from_k, from_j]
    return wide, inside


def _shift(by: int, length: int) -> tuple[slice, slice]:
    """Target and source slices of an axis shifted by `by`."""
    kept = max(length - abs(by), 0)
    first = max(by, 0), max(-by, 0)
    return slice(first[0], first[0] + kept), slice(first[1], first[1] + kept)


def voxel_histogram(
    probability_of: Callable[[int], NDArray[Any]],
    reference: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    labels: LabelMap,
    spacing: Sequence[float] | None,
    *,
    margin: float = MARGIN,
) -> pd.DataFrame:
    """Histograms of the log odds of each structure against all other classes, in one case.

    The odds are a class's probability over the sum of the others': one minus the probability would lose all odds
    above some thousands to one in half precision.

    Args:
        probability_of: gives the probabilities (k, j, i) of a class by its index; asked once for each class, the
            background included.
        reference: (k, j, i) class indices, `VOID` where there is no reference standard.
        mask: (k, j, i) class indices that the model made.
        labels: names of the classes.
        spacing: mm along (k, j, i), or None for images.
        margin: of the band that counts (see `band_name`), in mm or pixels.

    Returns:
        Rows `structure, bin, n, k, margin`: n voxels in a bin of `CENTRES`, k of them of the structure. A structure
        that is in neither mask has no rows.

    Raises:
        DataError: probabilities of another shape, or that are none.
    """
    import pandas as pd

    judged = reference != VOID
    bands = {}
    for index in range(1, len(labels.classes)):
        found = near(((reference == index) | (mask == index)) & judged, spacing, margin)
        if found is not None:
            bands[index] = (found[0], found[1] & judged[found[0]])
    own: dict[int, Floats] = {}
    rest = {index: np.zeros(int(np.count_nonzero(inside))) for index, (_, inside) in bands.items()}
    for cls in range(len(labels.classes)) if bands else ():
        probability = probability_of(cls)
        if probability.shape != reference.shape:
            raise DataError(
                f"Probabilities have the shape {probability.shape}, the reference has {reference.shape}: give them on "
                "the scan's own grid."
            )
        for index, (box, inside) in bands.items():
            values = probability[box][inside].astype(np.float64)
            if cls == index:
                own[index] = values
            else:
                rest[index] += values
    parts = []
    for index, (box, inside) in bands.items():
        p, q = own[index], rest[index]
        if not np.all((p >= 0) & (q >= 0) & (np.abs(p + q - 1) <= SUM_TOLERANCE)):
            raise DataError(
                f"The probabilities of {labels.classes[index]!r} and of the other classes must be 0 or more and sum "
                "to 1 in every voxel; they do not. Give the output of a softmax."
            )
        with np.errstate(divide="ignore"):
            odds = np.log(p) - np.log(q)
        bins = np.clip((odds + LIMIT) * (NUM_BINS / (2 * LIMIT)), 0, NUM_BINS - 1).astype(np.int64)
        n = np.bincount(bins, minlength=NUM_BINS)
        k = np.bincount(bins[reference[box][inside] == index], minlength=NUM_BINS)
        used = np.flatnonzero(n)
        columns = {
            "structure": labels.classes[index],
            "bin": used,
            "n": n[used],
            "k": k[used],
            "margin": margin,
        }
        parts.append(pd.DataFrame(columns))
    empty = pd.DataFrame({"structure": [], "bin": [], "n": [], "k": [], "margin": []})
    return pd.concat(parts, ignore_index=True) if parts else empty


def fit_voxel_temperature(n: Ints, k: Ints, weight: Floats | None = None) -> float:
    """The temperature T that minimises the mean over cases of a case's mean log loss, for log odds / T.

    A bounded scalar search over log(1 / T), as in `fit_temperature`; T within 0.01 and 100.

    Args:
        n: (C, 256) voxels of each case in each bin.
        k: (C, 256) those of the structure.
        weight: (C,) weight of each case (default 1).

    Raises:
        DataError: no case with voxels, or voxels of one kind only.
    """
    from scipy.optimize import minimize_scalar

    share, hits = _shares(n, k, weight)
    share, hits = share.sum(axis=0), hits.sum(axis=0)
    if not 0 < hits.sum() < share.sum():
        raise DataError(
            "A temperature for voxels needs cases with voxels of the structure and voxels beside it. Keep the model's "
            "own probabilities, or hold out more patients."
        )

    def loss(log_inverse: float) -> float:
        z = CENTRES * np.exp(log_inverse)
        return float((hits * np.logaddexp(0, -z) + (share - hits) * np.logaddexp(0, z)).sum())

    bounds = (-MAX_LOG_TEMPERATURE, MAX_LOG_TEMPERATURE)
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-8})
    return float(np.exp(-found.x))


def _shares(n: Ints, k: Ints, weight: Floats | None) -> tuple[Floats, Floats]:
    """Voxels as shares of their case times its weight; a case without voxels has none."""
    total = n.sum(axis=1, keepdims=True)
    own = np.ones(len(n)) if weight is None else weight
    scale = np.divide(own[:, None], total, out=np.zeros(total.shape), where=total > 0)
    return n * scale, k * scale


class VoxelStage:
    """Calibration measures of one structure at one temperature, for the sample and any resample of patients.

    Each case with voxels weighs the same (times its weight); a case without voxels near the structure has no part.

    Args:
        n: (C, 256) voxels of each case in each bin.
        k: (C, 256) those of the structure.
        patient: (C,) index of each case's patient.
        num_patients: P.
        weight: (C,) weight of each case (default 1).
        temperature: T; 1 leaves the probabilities as they are.

    Attributes:
        predicted: (r,) probabilities, one for each case and bin with voxels; `observed`, `share` and `patient`
            likewise, as `SmoothCurve.prepare` takes them.
        gap: observed against predicted in 10 bins of equal width.
        num_cases: cases that have voxels.
    """

    def __init__(
        self,
        n: Ints,
        k: Ints,
        patient: Ints,
        num_patients: int,
        weight: Floats | None = None,
        temperature: float = 1.0,
    ) -> None:
        z = CENTRES / temperature
        p = sigmoid(z)
        share, hits = _shares(n, k, weight)
        loss = hits * np.logaddexp(0, -z) + (share - hits) * np.logaddexp(0, z)
        square = hits * (1 - p) ** 2 + (share - hits) * p**2
        columns = np.stack([share.sum(axis=1), loss.sum(axis=1), square.sum(axis=1)], axis=1)
        self._sums = sum_by_patient(columns, patient, num_patients)
        case, bin_ = np.nonzero(n)
        self.predicted: Floats = p[bin_]
        self.observed: Floats = k[case, bin_] / n[case, bin_]
        self.share: Floats = share[case, bin_]
        self.patient: Ints = patient[case]
        self.gap = BinnedGap(
            self.predicted, self.observed, self.patient, num_patients, equal_width_edges(), self.share
        )
        self.num_cases = int(np.count_nonzero(n.sum(axis=1)))

    def log_loss(self, counts: Floats) -> Floats:
        """Mean log loss (b,) on resamples (b, P); nan where no case has voxels."""
        return self._mean(counts, 1)

    def brier(self, counts: Floats) -> Floats:
        """Mean squared error (b,), 0 to 1, on resamples (b, P); nan where no case has voxels."""
        return self._mean(counts, 2)

    def calibration_error(self, counts: Floats) -> Floats:
        """Expected calibration error (b,) in 10 bins of equal width, on resamples (b, P)."""
        with np.errstate(invalid="ignore"):
            return self.gap.error(counts)

    def _mean(self, counts: Floats, column: int) -> Floats:
        sums = counts @ self._sums
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(sums[:, column] / sums[:, 0])


METRICS = (
    VoxelMetric(
        name="voxel_nll",
        title="Log loss of voxels",
        definition=(
            "Mean negative natural logarithm of the probability given to what a voxel is, within the "
            "band. Mean over the case's voxels, then over cases."
        ),
        section="calibration",
        interval="percentile",
        better="lower",
        paired=True,
        main=True,
        from_voxels=VoxelStage.log_loss,
    ),
    VoxelMetric(
        name="voxel_brier",
        title="Brier score of voxels",
        definition=(
            "Mean squared distance between a voxel's probability and the reference (0 or 1), within "
            "the band. Mean over the case's voxels, then over cases."
        ),
        section="calibration",
        interval="percentile",
        better="lower",
        paired=True,
        from_voxels=VoxelStage.brier,
    ),
    VoxelMetric(
        name="voxel_ece",
        title="Calibration error of voxels",
        definition=(
            "Mean absolute gap between predicted and observed share in 10 bins of equal width, within "
            "the band; every case weighs the same. Biased upwards, therefore without an interval; log "
            "loss is the one to compare."
        ),
        section="calibration",
        interval="point",
        better="lower",
        from_voxels=VoxelStage.calibration_error,
    ),
)
