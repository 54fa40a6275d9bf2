"""Cases as a torch data set, and the order in which an epoch visits them, from seeds alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from medtl.data.cases.structures import sided
from medtl.data.cases.table import Case
from medtl.data.seeds import derive_seed
from medtl.data.tensors import patches
from medtl.data.tensors.augment import augmentation
from medtl.data.tensors.batch import Batch
from medtl.data.tensors.cache import VolumeCache
from medtl.data.tensors.grid import Grid
from medtl.errors import ConfigError, DataError
from medtl.labelmap import VOID

_Views = tuple[Tensor, Tensor | None, Tensor | None, Tensor]
"""Image, label, strong view, and where the image shows what is beyond the scan."""


class _Frame(NamedTuple):
    """Where the scan lies in the network's grid, and what surrounds it."""

    inside: NDArray[np.bool_]  # (H, W)
    beyond: NDArray[np.float16]  # (C,)


class CaseData(Protocol):
    """The training data of `fit`: cases as images (`CaseDataset`) or as stored features."""

    @property
    def labels(self) -> tuple[int, ...] | None:
        """Class index of each case, or None."""

    def plain(self) -> CaseData:
        """The same cases without augmentation."""

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch that augmentation depends on."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Batch: ...


class Draw(int):
    """An index with the number of times an epoch has drawn it before, so that repeats are augmented differently."""

    repeat: int

    def __new__(cls, index: int, repeat: int = 0) -> Draw:
        """Makes an index; everywhere but in `CaseDataset` it is a plain integer."""
        draw = super().__new__(cls, index)
        draw.repeat = repeat
        return draw

    def __reduce__(self) -> tuple[type[Draw], tuple[int, int]]:
        return Draw, (int(self), self.repeat)


class CaseDataset(Dataset[Batch]):
    """Preprocessed, augmented cases; item i of an epoch depends on (seed, stream, epoch, i) alone.

    If the cache has a label map, the task is segmentation: labels are masks, image and mask are cropped and moved
    together, and the strong view shows the same voxels as the image with other grey values. Without augmentation,
    a case yields the same patch in every epoch.

    Beyond the scan there is nothing to segment: wherever an image shows more than the scan (padding to a square, a
    patch larger than a volume, what a rotation or a shift brings in), it has the value of the scan's border and the
    label of the background. Patches inside a volume bring in real voxels. Voxels that a mask itself calls void stay so.

    Args:
        cases: Cases with an item, in a fixed order.
        cache: Where their preprocessed volumes and masks are.
        classes: Names of the classes in the order of the network's outputs.
        augment: `none`, `standard` or `strong`, for the image.
        with_labels: Whether samples carry labels. False for the target in training: its labels are not even read.
        strong: Whether to add a second view with strong augmentation.
        seed: The run's seed.
        stream: Name of this data set's random numbers, e.g. `source`.
        sites: Names of the sites in order; by default those of the cases, sorted.
        patch: Segmentation: (H, W) or (D, H, W) of the samples; None for whole images or volumes.
        foreground: Share of the patches centred on a voxel of a structure, each structure equally often; the
            others lie anywhere. Without labels all lie anywhere.

    Raises:
        DataError: No cases, or cases without a usable label where labels are asked for.
        ConfigError: A patch that does not fit the scans' dimensions, or for classification.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        cache: VolumeCache,
        *,
        classes: Sequence[str],
        augment: str = "none",
        with_labels: bool,
        strong: bool = False,
        seed: int = 0,
        stream: str = "source",
        sites: Sequence[str] | None = None,
        patch: Sequence[int] | None = None,
        foreground: float = 0.5,
    ) -> None:
        if not cases:
            raise DataError(
                f"There are no cases for {stream!r}: every case was left out or is in another split."
            )
        self.cases = tuple(cases)
        self.cache = cache
        self.classes = tuple(classes)
        self.sites = tuple(sites) if sites is not None else tuple(sorted({case.site for case in cases}))
        self.seed, self.stream, self.epoch = seed, stream, 0
        self.segmentation, self.with_labels = cache.labels is not None, with_labels
        self.patch = self._checked_patch(patch)
        if not 0 <= foreground <= 1:
            raise ConfigError(f"The share of foreground patches is between 0 and 1, got {foreground:g}.")
        self.foreground = foreground
        spec, flip = cache.preprocess, not (self.segmentation and sided(self.classes))
        self._name = augment
        self._augment = augmentation(augment, spec.spatial_dims, spec.channels, flip)
        self._strong = augmentation("strong", spec.spatial_dims, spec.channels, flip) if strong else None
        self._labels = self._label_indices() if with_labels and not self.segmentation else None
        if with_labels and self.segmentation:
            self._check_masks()
        self._keys: dict[int, str] = {}
        self._mask_keys: dict[int, str] = {}
        self._frames: dict[int, _Frame] = {}

    def _checked_patch(self, patch: Sequence[int] | None) -> tuple[int, ...] | None:
        if patch is None:
            return None
        dims = self.cache.preprocess.spatial_dims
        if not self.segmentation or len(patch) != dims or min(patch) < 1:
            raise ConfigError(
                f"A patch is for segmentation and has a positive size for each of {dims} dimensions; got "
                f"{tuple(patch)} for {'segmentation' if self.segmentation else 'classification'}."
            )
        return tuple(int(n) for n in patch)

    def _label_indices(self) -> list[int]:
        wrong = [case.case for case in self.cases if case.label not in self.classes]
        if wrong:
            raise DataError(
                f"{len(wrong)} cases have no label of the classes {', '.join(self.classes)}, such as "
                f"{wrong[0]!r}: select labelled cases only."
            )
        return [self.classes.index(case.label or "") for case in self.cases]

    def _check_masks(self) -> None:
        without = [case.case for case in self.cases if case.mask_item is None]
        if without:
            raise DataError(
                f"{len(without)} cases have no mask, such as {without[0]!r}: select cases with masks only."
            )

    @property
    def augment(self) -> str:
        """Name of the augmentation."""
        return self._name

    @property
    def labels(self) -> tuple[int, ...] | None:
        """Class index of each case, or None without labels and for segmentation."""
        return None if self._labels is None else tuple(self._labels)

    def plain(self) -> CaseDataset:
        """The same cases without augmentation."""
        if self._name == "none":
            return self
        data, spec = copy.copy(self), self.cache.preprocess
        data._name, data._strong = "none", None
        data._augment = augmentation("none", spec.spatial_dims, spec.channels, flip=False)
        return data

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch that augmentation depends on; persistent workers would not see it change."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> Batch:
        case, place = self.cases[index], int(index)
        if case.item is None:
            raise DataError(f"Case {case.case!r} has no scan to read.")
        key = self._keys.get(place)
        if key is None:
            key = self._keys[place] = self.cache.key(case.item)
        array = self.cache.load(case.item, key)
        draw = (self.stream, self.epoch, place, getattr(index, "repeat", 0))
        view = self._segmented if self.segmentation else self._classified
        image, label, strong, outside = view(case, array, draw)
        return Batch(
            image=image,
            label=label,
            index=torch.tensor(place),
            site=torch.tensor(self.sites.index(case.site)),
            strong=strong,
            outside=outside,
        )

    def _frame(self, case: Case, array: NDArray[np.float16], place: int) -> _Frame:
        frame = self._frames.get(place)
        if frame is None:
            assert case.item is not None
            grid = Grid.of(case.item, self.cache.preprocess)
            inside = np.zeros(array.shape[-2:], dtype=np.bool_)
            inside[grid.inside] = True
            frame = self._frames[place] = _Frame(inside, grid.beyond(array))
        return frame

    def _classified(self, case: Case, array: NDArray[np.float16], draw: tuple[str | int, ...]) -> _Views:
        strong, frame = None, self._frame(case, array, int(draw[2]))
        if self._strong is not None:
            strong = self._strong(array, derive_seed(self.seed, "strong", *draw), beyond=frame.beyond)
        label = None if self._labels is None else torch.tensor(self._labels[int(draw[2])])
        inside = torch.from_numpy(frame.inside.astype(np.int64))
        seed = derive_seed(self.seed, "augment", *draw)
        image, inside = self._augment(array, seed, inside, beyond=frame.beyond)
        return image, label, strong, (inside == 0).expand(image.shape[1:])

    def _segmented(self, case: Case, array: NDArray[np.float16], draw: tuple[str | int, ...]) -> _Views:
        stream, _, place, repeat = draw
        entry = None
        if self.with_labels:
            key = self._mask_keys.get(int(place))
            if key is None:
                key = self._mask_keys[int(place)] = self.cache.mask_key(case)
            entry = self.cache.mask(case, key)
        mask = None if entry is None else entry.array
        inside, beyond = self._frame(case, array, int(place))
        slices = np.ones(array.shape[1:-2], dtype=np.bool_)  # those of the scan; of images, one for all
        size = (int(array.shape[-2]), int(array.shape[-1]))
        if self.patch is not None:
            # Without augmentation an epoch repeats the one before it: what is validated on stays the same.
            where = draw if self._name != "none" else (stream, place, repeat)
            generator = np.random.default_rng(derive_seed(self.seed, "patch", *where))
            points = None if entry is None else entry.points
            start = patches.place(array.shape[1:], self.patch, generator, points, self.foreground)
            margin = self._margin(array.shape[1:])
            array = patches.cut(array, start, self.patch, margin, outside=beyond)
            mask = None if mask is None else patches.cut(mask, start, self.patch, margin, outside=0)
            inside = patches.cut(inside, start[-2:], self.patch[-2:], margin[-2:], outside=False)
            slices = patches.cut(slices, start[:-2], self.patch[:-2], outside=False)
            size = (self.patch[-2], self.patch[-1])
        marks = torch.from_numpy(inside[None].astype(np.int64))
        if mask is not None:
            stored = torch.from_numpy(mask if mask.flags.writeable else np.array(mask))
            label = stored.to(torch.int64).masked_fill_(stored == VOID, -1)
            marks = torch.cat([label.reshape(-1, *label.shape[-2:]), marks])
        # One geometry for image, label and strong view; grey values of their own.
        seed = derive_seed(self.seed, "geometry", *draw)
        moved, marks = self._augment.move(array, seed, marks, size, beyond)
        image = self._augment.recolour(moved, derive_seed(self.seed, "augment", *draw))
        strong = None
        if self._strong is not None:
            strong = self._strong.recolour(moved, derive_seed(self.seed, "strong", *draw))
        outside = (marks[-1] == 0) | ~torch.from_numpy(slices)[..., None, None]
        return image, None if mask is None else marks[:-1].reshape(image.shape[1:]), strong, outside

    def _margin(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The margin to read around a patch, so that rotation brings in the scan and not what is beyond."""
        assert self.patch is not None
        reach = math.ceil(self._augment.reach * max(self.patch[-2:]))
        in_plane = (reach if length < size else 0 for length, size in zip(self.patch, shape, strict=True))
        return tuple(n if axis >= len(shape) - 2 else 0 for axis, n in enumerate(in_plane))


class EpochSampler(Sampler[int]):
    """Visits indices in an order that depends on (seed, stream, epoch) alone.

    Args:
        num: Size of the data set.
        seed: The run's seed.
        stream: Name of this sampler's random numbers.
        shuffle: Whether to permute; without it the order is 0, 1, 2, ...
        length: Indices per epoch; by default `num`. More than `num` appends further permutations, so that
            every case is drawn equally often but for the last round.
        classes: The class of each index. Then every class is drawn equally often (but for the last round), and within
            a class every case.

    Raises:
        ValueError: `num` or `length` is not positive.
    """

    def __init__(
        self,
        num: int,
        *,
        seed: int,
        stream: str,
        shuffle: bool = True,
        length: int | None = None,
        classes: Sequence[int] | None = None,
    ) -> None:
        if num < 1 or (length is not None and length < 1):
            raise ValueError(f"A sampler needs at least one index, got num={num}, length={length}.")
        if classes is not None and len(classes) != num:
            raise ValueError(f"A sampler of {num} indices got the classes of {len(classes)}.")
        self._members = [
            [i for i, c in enumerate(classes or ()) if c == k] for k in sorted(set(classes or ()))
        ]
        self.num, self.seed, self.stream, self.shuffle = num, seed, stream, shuffle
        self.length = num if length is None else length
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch that the order depends on."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", self.stream, self.epoch))
        if self._members:
            yield from self._balanced(generator)
            return
        for start in range(0, self.length, self.num):
            order = (
                torch.randperm(self.num, generator=generator).tolist() if self.shuffle else range(self.num)
            )
            for index in order[: self.length - start]:
                yield Draw(index, start // self.num)

    def _balanced(self, generator: torch.Generator) -> Iterator[int]:
        """Rounds over the classes in random order; each class goes through permutations of its own cases."""
        order: list[list[int]] = [[] for _ in self._members]
        repeats = [-1] * len(self._members)
        for drawn in range(self.length):
            place = drawn % len(self._members)
            if place == 0:
                turn = torch.randperm(len(self._members), generator=generator).tolist()
            k = turn[place]
            if not order[k]:
                members = self._members[k]
                order[k] = [members[i] for i in torch.randperm(len(members), generator=generator).tolist()]
                repeats[k] += 1
            yield Draw(order[k].pop(), repeats[k])
