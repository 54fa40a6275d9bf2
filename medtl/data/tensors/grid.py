"""The transformation between a scan's grid and the network's: one definition for both directions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import nibabel
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate, pad

from medtl.data.tensors.spec import PLANES, Preprocess
from medtl.errors import DataError
from medtl.labelmap import VOID
from medtl.scans.geometry import voxel_spacing
from medtl.scans.items import MAX_BYTES, Affine, VolumeItem

_LABELS = (("L", "R"), ("P", "A"), ("I", "S"))
_SLAB = 1 << 26
"""Size limit of one float32 slab in bytes; a call needs a few slabs beyond its input and result."""

_TIE = 1e-4
"""Differences between shares up to this are rounding."""

Shape3 = tuple[int, int, int]
Slab = Callable[[int, int], Tensor]
"""Slices [start, stop) along the first turned axis, as (C, stop - start, rows, columns) float32."""


@dataclass(frozen=True)
class Grid:
    """Reorients, resamples and pads, and inverts all three.

    Voxels are areas: both grids cover the same extent in the patient (but for padding), so index n of N maps
    to (n + 1/2) M / N - 1/2 of M. Every step is linear; what is made smaller is low-pass filtered.

    Attributes:
        native: (k, j, i) of the scan.
        order: for each turned axis, the scan's axis that it is.
        flips: turned axes that run against the scan's.
        turned: (slices, rows, columns) after the turn.
        size: (slices, rows, columns) after resampling, before padding.
        shape: the network's grid: (H, W) or (D, H, W).
        native_spacing: mm along (slices, rows, columns) of the scan after the turn; 1 without a position.
    """

    native: Shape3
    order: Shape3
    flips: tuple[int, ...]
    turned: Shape3
    size: Shape3
    shape: tuple[int, ...]
    native_spacing: tuple[float, float, float]

    @classmethod
    def of(cls, item: VolumeItem | tuple[Sequence[int], Affine | None], spec: Preprocess) -> Grid:
        """The grid that `spec` gives to a scan, from its header alone.

        Args:
            item: a scan, or its (k, j, i) and its voxel-to-RAS matrix.
            spec: the preprocessing.

        Raises:
            DataError: several slices where images are wanted, or a result beyond the size limit of a volume.
        """
        shape, affine = (item.shape, item.affine) if isinstance(item, VolumeItem) else item
        k, j, i = (int(n) for n in shape)
        if spec.num_slices is None and k > 1:
            raise DataError(f"Images of one slice were expected, got a volume of {k} slices: set num_slices.")
        order, flips, spacing = _turn(affine, spec)
        turned = _pick((k, j, i), order)
        side = spec.image_size
        if spec.spacing is not None and spec.num_slices is not None:
            d, h, w = (
                max(1, round(n * s / t)) for n, s, t in zip(turned, spacing, spec.spacing, strict=True)
            )
            result: tuple[int, ...] = (d, h, w)
        else:
            # Square pixels, the longer side fills the image.
            height, width = turned[1] * spacing[1], turned[2] * spacing[2]
            pixel = max(height, width) / side
            d = spec.num_slices or turned[0]
            h, w = max(1, round(height / pixel)), max(1, round(width / pixel))
            result = (side, side) if spec.num_slices is None else (d, side, side)
        if float(np.prod(result, dtype=np.float64)) * 4 > MAX_BYTES:
            raise DataError(
                f"A scan of {k} x {j} x {i} voxels would become {' x '.join(map(str, result))}, more than the "
                f"limit of {MAX_BYTES >> 30} GiB for one volume: choose a larger spacing or image size."
            )
        return cls((k, j, i), order, flips, turned, (d, h, w), result, spacing)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Spacing in mm along (slices, rows, columns) of the network's grid."""
        d, h, w = (s * n / m for s, n, m in zip(self.native_spacing, self.turned, self.size, strict=True))
        return d, h, w

    @property
    def resampled(self) -> bool:
        """Whether voxels change size (they are only moved otherwise)."""
        return self.size != self.turned

    @property
    def offset(self) -> tuple[int, int]:
        """Rows above and columns left of the scan in the network's grid."""
        return (self.shape[-2] - self.size[1]) // 2, (self.shape[-1] - self.size[2]) // 2

    @property
    def inside(self) -> tuple[slice, slice]:
        """Rows and columns of the network's grid that the scan fills; the others are margin."""
        top, left = self.offset
        return slice(top, top + self.size[1]), slice(left, left + self.size[2])

    def beyond(self, image: NDArray[Any]) -> NDArray[np.float16]:
        """What the network is shown beyond the scan: its `border_value`, without the margin.

        Args:
            image: (C, *shape) values in the network's grid.

        Returns:
            (C,).
        """
        return border_value(image[(..., *self.inside)])

    def turn(self, array: NDArray[Any]) -> NDArray[Any]:
        """Reorients (k, j, i, ...) to the plane's axes; returns a view."""
        rest = range(3, array.ndim)
        return np.flip(array.transpose((*self.order, *rest)), self.flips)

    def turn_back(self, array: NDArray[Any]) -> NDArray[Any]:
        """The inverse of `turn`; returns a view."""
        rest = range(3, array.ndim)
        return np.flip(array, self.flips).transpose((*np.argsort(self.order), *rest))

    def to_network(self, values: Tensor) -> Tensor:
        """Brings values of the scan's grid to the network's.

        Args:
            values: (C, k, j, i).

        Returns:
            (C, *shape) float32; 0 where there is no scan.
        """
        array = self.turn(np.moveaxis(values.numpy(), 0, -1))

        def slab(start: int, stop: int) -> Tensor:
            part = np.moveaxis(array[start:stop], -1, 0)
            return torch.from_numpy(np.ascontiguousarray(part, dtype=np.float32))

        return self.forward(slab, values.shape[0], torch.float32)

    def forward(self, slab: Slab, channels: int, dtype: torch.dtype) -> Tensor:
        """As `to_network`, with values that are made slab by slab and a result of any type.

        Args:
            slab: gives slices of the turned grid.
            channels: C.
            dtype: type of the result.

        Returns:
            (C, *shape).
        """
        result = torch.zeros((channels, self.size[0], *self.shape[-2:]), dtype=dtype)
        for start, stop, values in self._slabs_to_network(slab, channels):
            result[:, start:stop] = values.to(dtype)
        return result.reshape(channels, *self.shape)

    def mask_to_network(self, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Brings class indices of the scan's grid to the network's.

        Each class is resampled as its share of the voxel and the largest share wins: when voxels grow, a
        structure keeps its volume better than with nearest neighbours, which keep or drop it by chance, and its
        outline better than with the wider low-pass filter of the values. When voxels shrink, shares are
        interpolated: outlines get no steps.

        Args:
            mask: (k, j, i) class indices, 255 for void.

        Returns:
            (*shape) uint8; void where void has more than half of the voxel, background where there is no scan.
        """
        view = self.turn(mask)
        # There is nothing to segment beyond the scan.
        result = np.zeros((self.size[0], *self.shape[-2:]), dtype=np.uint8)
        if not self.resampled:
            result[(slice(None), *self.inside)] = view
            return result.reshape(self.shape)
        counts = sum(np.bincount(plane.reshape(-1), minlength=256) for plane in view)
        found = np.flatnonzero(counts).astype(np.uint8)
        lookup = torch.from_numpy(found)[:, None, None, None]

        def slab(start: int, stop: int) -> Tensor:
            part = torch.from_numpy(np.ascontiguousarray(view[start:stop]))
            return (part[None] == lookup).to(torch.float32)

        centres = [
            np.floor((np.arange(m) + 0.5) * n / m).astype(int)
            for m, n in zip(self.size, self.turned, strict=True)
        ]
        for start, stop, shares in self._slabs_to_network(slab, len(found), share=True):
            shares = shares[(slice(None), slice(None), *self.inside)]
            # Two halves are common: with the voxel in the middle deciding, no class gains by its number.
            middle = np.ascontiguousarray(view[centres[0][start:stop]][:, centres[1]][:, :, centres[2]])
            shares += _TIE * (torch.from_numpy(middle)[None] == lookup)
            if found[-1] == VOID and len(found) > 1:
                best = first_argmax(shares[:-1])
                best[shares[-1] > 0.5 + 2 * _TIE] = len(found) - 1
            else:
                best = first_argmax(shares)
            result[(slice(start, stop), *self.inside)] = found[best.numpy()]
        return result.reshape(self.shape)

    def to_native(self, values: Tensor | NDArray[Any]) -> Tensor:
        """Brings values of the network's grid back to the scan's.

        Args:
            values: (C, *shape), probabilities or a map.

        Returns:
            (C, k, j, i) float32, in memory as the scan's axes run.
        """
        result = np.empty((len(values), *self.native), dtype=np.float32)
        for start, stop, part in self._slabs_to_native(values):
            for channel, one in zip(result, part.numpy(), strict=True):
                self.turn(channel)[start:stop] = one
        return torch.from_numpy(result)

    def argmax_native(self, probabilities: Tensor | NDArray[Any]) -> NDArray[np.uint8]:
        """The most probable class of every voxel of the scan; needs little memory beyond its input and result.

        Args:
            probabilities: (K, *shape), or anything monotonic in them such as logits.

        Returns:
            (k, j, i) uint8 class indices.
        """
        result = np.empty(self.native, dtype=np.uint8)
        view = self.turn(result)
        for start, stop, part in self._slabs_to_native(probabilities):
            view[start:stop] = first_argmax(part).numpy()
        return result

    def _slabs_to_network(
        self, slab: Slab, channels: int, share: bool = False
    ) -> Iterator[tuple[int, int, Tensor]]:
        """(start, stop, (C, stop - start, H, W) float32) over the network's slices; `share` as in `_weights`."""
        rows, columns = self.shape[-2:]
        largest = max(self.turned[1] * self.turned[2], rows * columns) * max(
            1.0, self.turned[0] / self.size[0]
        )
        (top, left), (_, h, w) = self.offset, self.size
        around = (left, columns - left - w, top, rows - top - h)
        for start, stop in _ranges(self.size[0], channels * largest):
            first, last, weights = _support(self.turned[0], self.size[0], start, stop, share)
            values = slab(first, last)
            if share and (h, w) != self.turned[1:]:
                values = (
                    resampling_weights(self.turned[1], h, share)
                    @ values
                    @ resampling_weights(self.turned[2], w, share).T
                )
            else:
                values = _resize_planes(values, (h, w))
            if any(around):
                values = pad(values, around)
            yield start, stop, _mix(values, weights, stop - start)

    def _slabs_to_native(self, values: Tensor | NDArray[Any]) -> Iterator[tuple[int, int, Tensor]]:
        """(start, stop, (C, stop - start, rows, columns) float32) over the turned slices of the scan."""
        channels = len(values)
        if tuple(values.shape[1:]) != self.shape:
            raise ValueError(f"Expected (C, {', '.join(map(str, self.shape))}), got {tuple(values.shape)}.")
        _, h, w = self.size
        stacked = values.reshape((channels, self.size[0], *self.shape[-2:]))
        inside = stacked[(slice(None), slice(None), *self.inside)]
        largest = max(self.turned[1] * self.turned[2], h * w) * max(1.0, self.size[0] / self.turned[0])
        for start, stop in _ranges(self.turned[0], channels * largest):
            first, last, weights = _support(self.size[0], self.turned[0], start, stop)
            part = torch.as_tensor(inside[:, first:last]).to("cpu", torch.float32)
            part = _mix(part, weights, stop - start)
            yield start, stop, _resize_planes(part, self.turned[1:])


def border_value(image: NDArray[Any]) -> NDArray[np.float16]:
    """The median of the outermost rows and columns of all slices.

    Most scans end in their own background, which is dark in CT and MR and bright in stained smears. Beyond the scan,
    this value is nothing foreign to the network, to BatchNorm or to a histogram; black would often be.

    Args:
        image: (C, ..., H, W).

    Returns:
        (C,).
    """
    sides = (image[..., :1, :], image[..., -1:, :], image[..., :, :1], image[..., :, -1:])
    border = np.concatenate([side.reshape(len(image), -1) for side in sides], axis=1)
    return np.asarray(np.median(border.astype(np.float32), axis=1), dtype=np.float16)


def plane_of(affine: Affine) -> str:
    """The plane in which a slice (i, j) lies, by the largest component of its normal."""
    matrix = np.array(affine)[:3, :3]
    normal = np.abs(np.cross(matrix[:, 0], matrix[:, 1]))
    return ("sagittal", "coronal", "axial")[int(normal.argmax())]


def _pick(values: Sequence[Any], order: Sequence[int]) -> Any:
    return tuple(values[axis] for axis in order)


def _turn(
    affine: Affine | None, spec: Preprocess
) -> tuple[Shape3, tuple[int, ...], tuple[float, float, float]]:
    """The axis order and flips that give the plane's directions, and the spacing along the reoriented axes."""
    if affine is None:
        return (0, 1, 2), (), (1.0, 1.0, 1.0)
    orientations: Any = nibabel.orientations
    here = orientations.io_orientation(np.array(affine))  # for each of i, j, k: its world axis, and +-1
    # Single images keep their own plane, whose slices run along k however oblique it is; volumes are turned to
    # the common one.
    own = ("sagittal", "coronal", "axial")[int(here[2, 0])]
    there = orientations.axcodes2ornt(PLANES[own if spec.num_slices is None else spec.plane], _LABELS)
    change = orientations.ornt_transform(here, there)
    source = np.argsort(change[:, 0])
    order = tuple(int(2 - source[2 - axis]) for axis in range(3))
    flips = tuple(axis for axis in range(3) if change[2 - order[axis], 1] < 0)
    i, j, k = voxel_spacing(affine)
    return (order[0], order[1], order[2]), flips, _pick((k, j, i), order)


def first_argmax(values: Tensor) -> Tensor:
    """The first of the largest classes; along the outermost axis many times faster than torch's argmax.

    Args:
        values: (K, ...), a class in each row.

    Returns:
        (...) uint8.
    """
    best, index = values[0].clone(), torch.zeros(values.shape[1:], dtype=torch.uint8)
    for number in range(1, len(values)):
        index.masked_fill_(values[number] > best, number)
        torch.maximum(best, values[number], out=best)
    return index


def _ranges(total: int, voxels: float) -> Iterator[tuple[int, int]]:
    """Splits `total` slices into slabs, with `voxels` values to hold for each slice."""
    step = max(1, int(_SLAB / (4 * voxels)))
    for start in range(0, total, step):
        yield start, min(start + step, total)


@lru_cache(maxsize=8)
def resampling_weights(size: int, new_size: int, share: bool = False) -> Tensor:
    """The weight of each slice in each new one.

    Args:
        size: number of slices.
        new_size: number of new slices.
        share: a larger new slice takes what it covers; otherwise a low-pass filter of twice that reach.

    Returns:
        (new_size, size).
    """
    if share and new_size < size:
        ends = torch.arange(new_size + 1, dtype=torch.float64)[:, None] * size / new_size
        covered = (ends - torch.arange(size)).clamp(0, 1)  # of each slice, up to each end
        return (covered.diff(dim=0) * (new_size / size)).float()
    return _interpolate(torch.eye(size)[None], (new_size, size))[0]


def _support(
    size: int, new_size: int, start: int, stop: int, share: bool = False
) -> tuple[int, int, Tensor | None]:
    """Which slices the new slices [start, stop) need, and their weights; None where slices stay."""
    if size == new_size:
        return start, stop, None
    weights = resampling_weights(size, new_size, share)[start:stop]
    used = weights.any(0).nonzero()
    first, last = int(used[0]), int(used[-1]) + 1
    return first, last, weights[:, first:last]


def _mix(values: Tensor, weights: Tensor | None, slices: int) -> Tensor:
    """(C, s, H, W) to (C, slices, H, W) by weights (slices, s)."""
    if weights is None:
        return values
    channels, _, height, width = values.shape
    return (weights @ values.reshape(channels, -1, height * width)).reshape(channels, slices, height, width)


def _resize_planes(values: Tensor, size: tuple[int, int]) -> Tensor:
    """(C, s, H, W) to (C, s, *size)."""
    if tuple(values.shape[2:]) == size:
        return values
    return _interpolate(values, size)


def _interpolate(values: Tensor, size: tuple[int, int]) -> Tensor:
    # Not MONAI's Resize: its low-pass filter takes in zeros from beyond the edge, which darkens border pixels
    # and the first and last slices by a tenth; the weights of this one sum to 1 everywhere.
    batch = values if values.ndim == 4 else values[None]
    result = interpolate(batch, size, mode="bilinear", align_corners=False, antialias=True)
    return result if values.ndim == 4 else result[0]
