"""Segments whole scans: sliding windows through the network, and resampling to the scan's own grid."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from monai.data.utils import compute_importance_map
from monai.inferers.utils import sliding_window_inference
from numpy.typing import NDArray
from torch import Tensor, nn

from medtl.adapters.contract.adapter import Adapter
from medtl.adapters.contract.test_time import TestTimeAdapter
from medtl.data.cases.table import Case
from medtl.data.tensors import patches
from medtl.data.tensors.cache import VolumeCache
from medtl.data.tensors.dataset import CaseDataset
from medtl.data.tensors.grid import Grid
from medtl.errors import ConfigError, DataError, NotFiniteError
from medtl.models.device import default_device
from medtl.models.networks import NETWORKS, STACKED, VOLUMETRIC
from medtl.models.parts import modes_kept
from medtl.prediction.groups import begin_group, end_group, groups_of
from medtl.prediction.rules import apply_rules, check_rules

_WINDOW_VOXELS = 1 << 20
"""Number of voxels, in windows, that pass through the network at once."""
_MOST_WINDOWS = 32
_ADAPT_WINDOWS = 16
"""A test-time method adapts on at most this many patches per case, spread over the scan."""
_ADAPT_GROUP = 256
"""Number of patches per group of cases, which bounds the time for a large site; each case gives at least one."""

Predict = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Segmentation:
    """The mask of one case, with its probabilities.

    Attributes:
        case: the case.
        mask: (k, j, i) uint8 class indices in the scan's own grid.
        probabilities: (K, *shape) float16 in the network's grid.
        grid: the transformation between the two grids.
    """

    case: Case
    mask: NDArray[np.uint8] = field(repr=False)
    probabilities: NDArray[np.float16] = field(repr=False)
    grid: Grid = field(repr=False)

    def probability(self, index: int) -> NDArray[np.float32]:
        """(k, j, i): probability of a class in the scan's own grid."""
        values = self.grid.to_native(self.probabilities[index : index + 1])
        return np.asarray(values[0].numpy(), dtype=np.float32)


def segment_cases(
    model: nn.Module,
    data: CaseDataset,
    *,
    patch: Sequence[int],
    overlap: float = 0.5,
    flips: bool = False,
    rules: Sequence[str] = (),
    device: torch.device | None = None,
    failed: list[str] | None = None,
) -> Iterator[Segmentation]:
    """Segments the cases of a data set one after the other.

    Windows of the size of the training patches slide over the preprocessed scan; their probabilities are averaged
    with Gaussian weights (Isensee et al. 2021, nnU-Net), brought back to the scan's grid, and there the most probable
    class is taken. A volume is processed in slabs of the patch's depth, which needs little memory besides its
    probabilities (float16). Scans smaller than the patch lie in its middle, with the value of their border
    around them, as in training.

    Args:
        model: returns `Output(logits, features)` with logits (N, K, *patch).
        data: cases; its patches and augmentation are not used.
        patch: window in voxels, (h, w) or (d, h, w).
        overlap: overlap of neighbouring windows, as a share of the patch. Along the slices, networks that work slice by
            slice need none, and those that see neighbouring slices need only these.
        flips: average over flips along rows and columns (four passes).
        rules: names of `medtl.prediction.rules.RULES`, applied to the mask.
        device: where to compute; by default a GPU if there is one.
        failed: receives the names of cases for which the network gives values that are not finite; their masks are
            empty and mean nothing. Without it, such a case is an error.

    Returns:
        An iterator, in the order of `data.cases`; each case is computed when it is asked for.

    Raises:
        ConfigError: an unknown rule, or a patch or overlap that does not fit the data.
        DataError: a case cannot be read.
        CheckpointError: the network returns values that are not finite.
    """
    window = _Window(model, data.cache, patch, overlap, flips, device or default_device())
    check_rules(rules)
    return _segment(window, data.cases, rules, failed)


def adapt_cases(
    adapter: Adapter,
    data: CaseDataset,
    *,
    patch: Sequence[int],
    overlap: float = 0.5,
    flips: bool = False,
    rules: Sequence[str] = (),
    device: torch.device | None = None,
    failed: list[str] | None = None,
) -> Iterator[Segmentation]:
    """As `segment_cases` with the adapter's predictor; a test-time method first adapts to each group of cases.

    For each group (case, patient, site) the adapter is reset, sees patches that are spread over the group's cases (at
    most 16 a case and about 256 in all, the same each time), and then segments these cases. Nothing learnt from one
    group reaches another, unless the method is never reset, and the adapter is reset at the end.

    Args:
        adapter: any adapter.
        data: cases of the target; their labels are not used.
        patch: as for `segment_cases`, like all arguments that follow.
        overlap: overlap of neighbouring windows.
        flips: average over flips along rows and columns.
        rules: names of rules, applied to the mask.
        device: where to compute.
        failed: receives the names of cases without finite values.

    Returns:
        An iterator: group after group in the order in which they first appear, cases in the order of `data`.
    """
    if not isinstance(adapter, TestTimeAdapter):
        return segment_cases(
            adapter.predictor,
            data,
            patch=patch,
            overlap=overlap,
            flips=flips,
            rules=rules,
            device=device,
            failed=failed,
        )
    window = _Window(adapter.predictor, data.cache, patch, overlap, flips, device or default_device())
    check_rules(rules)
    return _adapt(adapter, window, data.cases, rules, failed)


@dataclass
class _Window:
    """Sliding windows over scans."""

    model: nn.Module
    cache: VolumeCache
    patch: Sequence[int]
    overlap: float
    flips: bool
    device: torch.device

    def __post_init__(self) -> None:
        self.patch = tuple(int(n) for n in self.patch)
        dims = self.cache.preprocess.spatial_dims
        if len(self.patch) != dims or min(self.patch) < 1:
            raise ConfigError(
                f"The patch is {_by(self.patch)}; the scans have {dims} axes: give {dims} positive numbers."
            )
        if not 0 <= self.overlap < 1:
            raise ConfigError(
                f"overlap is {self.overlap}; expected a share of the patch, at least 0 and below 1."
            )
        self.batch = max(1, min(_MOST_WINDOWS, _WINDOW_VOXELS // math.prod(self.patch)))

    def read(self, case: Case) -> tuple[NDArray[np.float16], Grid]:
        """The preprocessed scan (C, *shape), memory-mapped, and its grid."""
        if case.item is None:
            raise DataError(f"Case {case.case!r} has no scan to read.")
        image, grid = self.cache.get(case.item), Grid.of(case.item, self.cache.preprocess)
        if image.shape[1:] != grid.shape:
            raise DataError(
                f"The preprocessed scan of case {case.case!r} has {_by(image.shape[1:])} voxels, its header asks for "
                f"{_by(grid.shape)}. Scan the folder again."
            )
        return image, grid

    def probabilities(self, images: NDArray[np.float16], beyond: NDArray[np.float16]) -> NDArray[np.float16]:
        """(N, C, *shape), and (N, C) what they show beyond their border, to (N, K, *shape); of volumes, N is 1."""
        with torch.no_grad(), modes_kept(self.model):
            self.model.to(self.device).eval()
            if len(self.patch) == 2:
                return self._finite(self._slide(images, beyond, None)).astype(np.float16)
            return self._volume(images[0], beyond)[None]

    def _volume(self, image: NDArray[np.float16], beyond: NDArray[np.float16]) -> NDArray[np.float16]:
        """(C, D, H, W) to (K, D, H, W), one row of windows at a time.

        MONAI finishes each row in the plane. The weights along the slices are a separate factor, so that the running
        sum of rows equals the average over all windows.
        """
        depth = image.shape[1]
        thick = min(self.patch[0], depth)
        starts = _starts(depth, thick, self._depth_overlap())
        across = compute_importance_map((self.patch[0],), mode="gaussian").float()
        across = across[-patches.centred([thick], self.patch[:1])[0] :][:thick].view(1, -1, 1, 1)
        plane = compute_importance_map(tuple(self.patch[1:]), mode="gaussian").float()
        plane = plane.expand(1, 1, *self.patch)
        result: NDArray[np.float16] | None = None
        total = weight = torch.zeros(0)
        for start, following in itertools.zip_longest(starts, starts[1:]):
            row = self._slide(image[None, :, start : start + thick], beyond, plane)[0]
            if result is None:
                result = np.empty((len(row), *image.shape[1:]), dtype=np.float16)
                total, weight = torch.zeros_like(row), torch.zeros_like(across)
            total += row.mul_(across)
            weight += across
            done = thick if following is None else following - start
            finished = total[:, :done] / weight[:, :done]
            result[:, start : start + done] = self._finite(finished)
            total = torch.cat([total[:, done:], torch.zeros_like(total[:, :done])], dim=1)
            weight = torch.cat([weight[:, done:], torch.zeros_like(weight[:, :done])], dim=1)
        if result is None:
            raise DataError("A volume without slices cannot be segmented.")
        return result

    def _slide(
        self, images: NDArray[np.float16], beyond: NDArray[np.float16], weights: Tensor | None
    ) -> Tensor:
        """(N, C, *shape) to (N, K, *shape) on the CPU: Gaussian weights in the plane."""
        shape = images.shape[2:]
        start = patches.centred(shape, self.patch)
        sides = [max(n, p) for n, p in zip(shape, self.patch, strict=True)]
        padded = [patches.cut(one, start, sides, outside=b) for one, b in zip(images, beyond, strict=True)]
        result: Any = sliding_window_inference(
            torch.from_numpy(np.stack(padded).astype(np.float32)).to(self.device),
            self.patch,
            self.batch,
            self._predict,
            overlap=self.overlap,
            mode="gaussian",
            roi_weight_map=weights,
        )
        scan = [slice(-first, n - first) for first, n in zip(start, shape, strict=True)]
        return torch.as_tensor(result)[:, :, *scan].cpu()

    def _predict(self, images: Tensor) -> Tensor:
        """Probabilities of windows, averaged over flips along rows and columns."""
        total = self._softmax(images)
        flips = ((-1,), (-2,), (-2, -1)) if self.flips else ()
        for axes in flips:
            total = total + self._softmax(images.flip(axes)).flip(axes)
        return total / (1 + len(flips))

    def _softmax(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images).logits
        if logits.ndim != images.ndim or logits.shape[2:] != images.shape[2:]:
            raise ConfigError(
                f"The network gives logits of shape {tuple(logits.shape)} for images of {tuple(images.shape)}; "
                "segmentation needs one for each voxel: (N, K, ...)."
            )
        return logits.float().softmax(1)

    def _finite(self, values: Tensor) -> NDArray[np.float32]:
        if not bool(torch.isfinite(values).all()):
            raise NotFiniteError(
                "The network returns values that are not finite (NaN): its training or adaptation has diverged. "
                "Train again with a lower learning rate."
            )
        return np.asarray(values.numpy(), dtype=np.float32)

    def _depth_overlap(self) -> float:
        """Share of the patch's depth by which rows of windows must overlap."""
        network = getattr(self.model, "network", None)
        if network not in NETWORKS or network == VOLUMETRIC:
            return self.overlap
        if not str(network).endswith(STACKED):
            return 0.0
        return min(self.overlap, 2 * int(getattr(self.model, "neighbours", 1)) / self.patch[0])


def _segment(
    window: _Window, cases: Sequence[Case], rules: Sequence[str], failed: list[str] | None
) -> Iterator[Segmentation]:
    """Passes images of one size through the network together."""
    most = window.batch if len(window.patch) == 2 else 1
    for chunk in _alike(((case, *window.read(case)) for case in cases), most):
        for (case, _, grid), one in zip(chunk, _maps(window, chunk, failed), strict=True):
            mask = apply_rules(grid.argmax_native(one), rules, len(one))
            yield Segmentation(case, mask, one, grid)


Read = tuple[Case, NDArray[np.float16], Grid]


def _maps(window: _Window, chunk: Sequence[Read], failed: list[str] | None) -> Sequence[NDArray[np.float16]]:
    """Probabilities of each scan of a chunk; one that has none does not take the others with it."""
    images, beyond = (np.stack(a) for a in zip(*((i, g.beyond(i)) for _, i, g in chunk), strict=True))
    try:
        return list(window.probabilities(images, beyond))
    except NotFiniteError as error:
        if len(chunk) > 1:
            return [maps for one in chunk for maps in _maps(window, [one], failed)]
        case, image, _ = chunk[0]
        if failed is None:
            raise NotFiniteError(f"{error} It was asked for case {case.case!r}.") from None
        failed.append(case.case)
        return [np.zeros((1, *image.shape[1:]), dtype=np.float16)]


def _alike(found: Iterator[Read], most: int) -> Iterator[list[Read]]:
    """Groups consecutive scans of one shape, at most `most` at once."""
    chunk: list[Read] = []
    for one in found:
        if chunk and (len(chunk) == most or one[1].shape != chunk[0][1].shape):
            yield chunk
            chunk = []
        chunk.append(one)
    if chunk:
        yield chunk


def _adapt(
    adapter: TestTimeAdapter,
    window: _Window,
    cases: Sequence[Case],
    rules: Sequence[str],
    failed: list[str] | None,
) -> Iterator[Segmentation]:
    adapter.to(window.device)
    try:
        for number, places in enumerate(groups_of(adapter, cases)):
            group = [cases[place] for place in places]
            begin_group(adapter, first=number == 0)
            for batch in _batches(window, group):
                adapter.adapt_batch(batch.to(window.device))
            end_group(adapter)
            window.model = adapter.predictor
            yield from _segment(window, group, rules, failed)
    finally:
        adapter.reset()


def _batches(window: _Window, cases: Sequence[Case]) -> Iterator[Tensor]:
    """(n, C, *patch) float32: patches that cover each case evenly, in mixed batches of about one size."""
    most = max(1, min(_ADAPT_WINDOWS, _ADAPT_GROUP // len(cases)))
    found = [cut for case in cases for cut in _cuts(window, case, most)]
    size = max(2, window.batch // 2)  # gradients need memory too
    number = math.ceil(len(found) / size)
    for first in range(number):
        views = [cut().astype(np.float32) for cut in found[first::number]]
        yield torch.from_numpy(np.stack(views))


def _cuts(window: _Window, case: Case, most: int) -> Sequence[Callable[[], NDArray[Any]]]:
    """At most `most` patches (C, *patch), cut when called; patches without contrast, such as air, are left out."""
    image, grid = window.read(case)
    small = patches.centred(grid.shape, window.patch)
    starts = [
        [first + start for start in _starts(n, min(p, n), 0.0, even=True)]
        for n, p, first in zip(grid.shape, window.patch, small, strict=True)
    ]
    cut = partial(patches.cut, image, patch=window.patch, outside=grid.beyond(image))
    found = [partial(cut, start=start) for start in itertools.product(*starts)]
    told = [view for view in found if np.ptp(view()) > 0] or found
    if len(told) > most:
        told = [told[int((n + 0.5) * len(told) / most)] for n in range(most)]
    return told


def _starts(size: int, patch: int, overlap: float, *, even: bool = False) -> list[int]:
    """First voxels of windows that cover an axis: in even steps, or in equal steps except the last."""
    step = max(1, int(patch * (1 - overlap)))
    count = math.ceil((size - patch) / step) + 1
    if even and count > 1:
        return [round(n * (size - patch) / (count - 1)) for n in range(count)]
    return [min(n * step, size - patch) for n in range(count)]


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
