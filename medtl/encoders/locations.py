"""Places in scans, labelled by masks, on which encoders are scored for segmentation.

A whole scan has no single label then, but each place in it has one. Scoring every voxel would take as long as training,
and nearly all are background, so places are sampled: equal numbers of each structure from each patient. OTCE has shown
that a sample of pixels is enough to rank pretrained networks for segmentation (Tan et al. 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from medtl.data.cases.table import Case
from medtl.data.cohort import Cohort
from medtl.data.seeds import derive_seed
from medtl.data.tensors.grid import Grid
from medtl.encoders.features import ready
from medtl.errors import DataError
from medtl.labelmap import VOID
from medtl.models.device import default_device
from medtl.models.encoder import Encoder

CELL = 4
"""Pixels along each side of a place: most decoders compute their logits at a quarter of the resolution."""
SLICES = 4
"""Number of slices per scan to draw from: neighbouring slices are alike, and each has to be encoded."""
MOST = 1024
"""Approximate total number of places: scores take time cubic in it, for every candidate and every half."""
_STRIDE = 32
"""Images are padded to a multiple of this, so that the maps of all depths lie over each other."""


@dataclass(frozen=True)
class Locations:
    """Places in the scans of some cases.

    Attributes:
        cases: the cases that have places.
        where: (n, 4) index of the case, slice, row and column, in cells of `CELL` pixels in the network's grid.
        labels: (n,) class index, as in the masks.
        left_out: structures without places in two patients, which cannot be scored.
    """

    cases: tuple[Case, ...]
    where: NDArray[np.int64]
    labels: NDArray[np.int64]
    left_out: tuple[str, ...] = ()

    @property
    def patients(self) -> NDArray[Any]:
        """(n,) patient of each place."""
        return np.array([self.cases[number].draw for number in self.where[:, 0]])


def find_locations(cohort: Cohort, cases: Sequence[Case], *, seed: int = 0, most: int = MOST) -> Locations:
    """Draws places, balanced over patients and structures as far as the masks allow.

    Args:
        cohort: scans and masks.
        cases: cases with masks.
        seed: seed of the draw.
        most: approximate total number of places; each patient and structure has an equal share, and at least one.

    Raises:
        DataError: fewer than two classes have places in two patients.
    """
    classes = cohort.table.classes
    masked = tuple(case for case in cases if case.mask_item is not None)
    patients = sorted({case.draw for case in masked})
    share = max(1, most // max(1, len(patients) * len(classes)))
    drawn: list[tuple[int, NDArray[np.int64]]] = []
    backgrounds = []
    for patient in patients:
        generator = np.random.default_rng(derive_seed(seed, "locations", patient))
        own = [number for number, case in enumerate(masked) if case.draw == patient]
        found = [_cells(cohort, masked[number], len(classes), generator, number) for number in own]
        for index in range(len(classes)):
            cells = np.concatenate([by_class[index] for by_class in found])
            cells = cells[generator.permutation(len(cells))[:share]]
            backgrounds.append(cells) if index == 0 else drawn.append((index, cells))
    # Every patient has background, but few have each structure: thin out the background to the most common one.
    commonest = max(sum(len(cells) for k, cells in drawn if k == index) for index in range(1, len(classes)))
    drawn += [(0, cells[: -(-commonest // len(patients))]) for cells in backgrounds]
    places = np.concatenate([np.zeros((0, 4), np.int64), *(cells for _, cells in drawn)])
    label = np.concatenate([np.zeros(0, np.int64), *(np.full(len(cells), k) for k, cells in drawn)])
    order = np.lexsort((*places.T[::-1],))
    places, label = places[order], label[order]
    people = np.array([patients.index(masked[number].draw) for number in places[:, 0]], np.int64)
    enough = [k for k in range(len(classes)) if len(np.unique(people[label == k])) > 1]
    if len(enough) < 2:
        raise DataError(
            f"In squares of {CELL} x {CELL} pixels, the masks of {len(patients)} patients show "
            f"{' and '.join(classes[k] for k in enough) or 'nothing'} in two patients or more; expected two classes at "
            "least, the background being one. Add masks, or use a larger --image-size."
        )
    kept = np.isin(label, enough)
    left_out = tuple(name for k, name in enumerate(classes) if k not in enough)
    return Locations(masked, places[kept], label[kept], left_out)


def location_features(
    encoder: Encoder,
    cohort: Cohort,
    locations: Locations,
    *,
    batch_size: int = 32,
    device: torch.device | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, NDArray[np.float32]]:
    """The encoder's maps at the places, by depth.

    Maps of another resolution are resampled: bilinear, low-pass filtered where they are finer than the places.

    Args:
        encoder: the encoder; in eval mode meanwhile.
        cohort: the scans.
        locations: the places.
        batch_size: slices at once.
        device: where to compute; by default a GPU if there is one.
        progress: called with (done, total) cases.

    Returns:
        (n, F_d) by the name of the depth, `stage1` (shallow) first.

    Raises:
        ConfigError: the encoder takes only images of one size, and the scans have another.
    """
    found: dict[str, NDArray[np.float32]] = {}
    number, slices = locations.where[:, 0], locations.where[:, 1]
    wanted = [np.unique(slices[number == n]) for n in range(len(locations.cases))]
    device = device or default_device()
    with ready(encoder, device):
        for n, chosen, image in _images(encoder, cohort, locations.cases, wanted, batch_size, progress):
            size = [side // CELL for side in image.shape[-2:]]
            for depth, maps in encoder.maps_at(image.to(device)).items():
                grid = functional.interpolate(
                    maps.float(), size=size, mode="bilinear", antialias=True, align_corners=False
                )
                for place, one in zip(chosen, grid, strict=True):
                    rows = np.flatnonzero((number == n) & (slices == place))
                    row, column = locations.where[rows, 2], locations.where[rows, 3]
                    values = found.setdefault(depth, np.zeros((len(number), one.shape[0]), np.float32))
                    values[rows] = one[:, row, column].T.cpu().numpy()
    return found


def slice_features(
    encoder: Encoder,
    cohort: Cohort,
    cases: Sequence[Case],
    *,
    batch_size: int = 32,
    device: torch.device | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float32]:
    """One vector per case, (N, F): the encoder's features, averaged over some slices of the scan. Reads no mask.

    Arguments are those of `location_features`.
    """
    wanted = []
    for case in cases:
        depth = _volume(cohort, case).shape[1]
        wanted.append(np.unique(np.linspace(0, depth - 1, SLICES + 2).round().astype(int)[1:-1]))
    sums = np.zeros((len(cases), encoder.num_features), np.float32)
    device = device or default_device()
    with ready(encoder, device):
        for n, _, image in _images(encoder, cohort, cases, wanted, batch_size, progress):
            sums[n] += encoder(image.to(device)).float().sum(0).cpu().numpy()
    counts = np.array([[len(chosen)] for chosen in wanted], np.float32)
    return np.asarray(sums / counts, dtype=np.float32)


def _cells(
    cohort: Cohort, case: Case, num_classes: int, generator: np.random.Generator, number: int
) -> list[NDArray[np.int64]]:
    """The places of a case in some of its slices, (m, 4) as `Locations.where`, for each class."""
    assert case.item is not None
    mask = cohort.cache.load_mask(case)
    # Beyond the scan is background that any encoder can tell.
    scan = (..., *Grid.of(case.item, cohort.cache.preprocess).inside)
    known = np.full_like(mask, VOID)
    known[scan] = mask[scan]
    shown = majority(known[None] if known.ndim == 2 else known, num_classes)
    holds = [np.flatnonzero((shown == index).any(axis=(1, 2))) for index in range(num_classes)]
    chosen = np.sort(_slices(holds, len(shown), generator))
    found = []
    for index in range(num_classes):
        place, row, column = np.nonzero(shown[chosen] == index)
        found.append(np.stack([np.full(len(place), number), chosen[place], row, column], axis=1))
    return found


def _slices(
    holds: Sequence[NDArray[np.int64]], depth: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """At most `SLICES` slices, drawn from those of each structure in turn; the middle one of a scan without any.

    Args:
        holds: slices that hold each class, the background first.
        depth: slices of the scan.
        generator: of random numbers.
    """
    queues = [list(generator.permutation(slices)) for slices in holds[1:] if len(slices)]
    chosen: list[int] = []
    while any(queues) and len(chosen) < SLICES:
        for queue in queues:
            while queue and queue[-1] in chosen:
                queue.pop()
            if queue and len(chosen) < SLICES:
                chosen.append(queue.pop())
    return np.array(chosen or [depth // 2], np.int64)


def majority(mask: NDArray[np.uint8], num_classes: int) -> NDArray[np.uint8]:
    """The class that fills more than half of each cell, `VOID` where none does.

    Args:
        mask: (D, H, W) class indices; `VOID` belongs to no class.
        num_classes: K.

    Returns:
        (D, H // CELL, W // CELL); what is left over at the edges is no cell.

    Example:
        >>> majority(np.repeat([[[0, 1, 1, 255]]], 4, axis=1).astype(np.uint8), 2).tolist()
        [[[255]]]
    """
    depth, height, width = mask.shape[0], mask.shape[1] // CELL, mask.shape[2] // CELL
    cells = mask[:, : height * CELL, : width * CELL].reshape(depth, height, CELL, width, CELL)
    result = np.full((depth, height, width), VOID, np.uint8)
    for index in range(num_classes):
        result[2 * (cells == index).sum(axis=(2, 4)) > CELL**2] = index
    return result


def _images(
    encoder: Encoder,
    cohort: Cohort,
    cases: Sequence[Case],
    wanted: Sequence[NDArray[np.int64]],
    batch_size: int,
    progress: Callable[[int, int], None] | None,
) -> Iterator[tuple[int, NDArray[np.int64], Tensor]]:
    """Number of the case, slices, and these as (B, C, H, W), padded with their edge unless the size is fixed."""
    config: Any = encoder.network.pretrained_cfg
    for number, (case, slices) in enumerate(zip(cases, wanted, strict=True)):
        volume = _volume(cohort, case)
        for start in range(0, len(slices), batch_size):
            chosen = slices[start : start + batch_size]
            image = torch.from_numpy(np.moveaxis(volume[:, chosen], 1, 0).astype(np.float32))
            if not config.get("fixed_input_size"):
                right, below = (-side % _STRIDE for side in (image.shape[-1], image.shape[-2]))
                image = functional.pad(image, (0, right, 0, below), mode="replicate")
            yield number, chosen, image
        if progress is not None:
            progress(number + 1, len(cases))


def _volume(cohort: Cohort, case: Case) -> NDArray[np.float16]:
    """(C, D, H, W) from the cache; an image is one slice."""
    assert case.item is not None
    array = cohort.cache.get(case.item)
    return array[:, None] if array.ndim == 3 else array
