"""Cases as a torch data set, and the order in which an epoch visits them, from seeds alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Dataset, Sampler

from medtl.data.augment import augmentation
from medtl.data.batch import Batch
from medtl.data.cache import VolumeCache
from medtl.data.cases import Case
from medtl.data.seeds import derive_seed
from medtl.errors import DataError


class Draw(int):
    """An index that knows how often an epoch has drawn it before: repeats are augmented differently."""

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

    Args:
        cases: Cases with an item, in a fixed order.
        cache: Where their preprocessed volumes are.
        classes: Names of the classes in the order of the network's outputs.
        augment: `none`, `standard` or `strong`, for the image.
        with_labels: Whether samples carry labels. False for the target in training: no label is even
            looked at.
        strong: Whether to add a second view with strong augmentation.
        seed: The run's seed.
        stream: Name of this data set's random numbers, e.g. `source`.
        sites: Names of the sites in order; by default those of the cases, sorted.

    Raises:
        DataError: No cases, or cases without a usable label where labels are asked for.
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
        spec = cache.preprocess
        self._augment = augmentation(augment, spec.spatial_dims, spec.channels)
        self._strong = augmentation("strong", spec.spatial_dims, spec.channels) if strong else None
        self._labels = self._label_indices() if with_labels else None
        self._keys: dict[int, str] = {}

    def _label_indices(self) -> list[int]:
        wrong = [case.case for case in self.cases if case.label not in self.classes]
        if wrong:
            raise DataError(
                f"{len(wrong)} cases have no label of the classes {', '.join(self.classes)}, such as "
                f"{wrong[0]!r}: select labelled cases only."
            )
        return [self.classes.index(case.label or "") for case in self.cases]

    @property
    def labels(self) -> tuple[int, ...] | None:
        """Class index of each case, or None without labels."""
        return None if self._labels is None else tuple(self._labels)

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
        strong = self._strong(array, derive_seed(self.seed, "strong", *draw)) if self._strong else None
        return Batch(
            image=self._augment(array, derive_seed(self.seed, "augment", *draw)),
            label=None if self._labels is None else torch.tensor(self._labels[place]),
            index=torch.tensor(place),
            site=torch.tensor(self.sites.index(case.site)),
            strong=strong,
        )


class EpochSampler(Sampler[int]):
    """Visits indices in an order that depends on (seed, stream, epoch) alone.

    Args:
        num: Size of the data set.
        seed: The run's seed.
        stream: Name of this sampler's random numbers.
        shuffle: Whether to permute; without it the order is 0, 1, 2, ...
        length: Indices an epoch; by default `num`. More than `num` appends further permutations, so that
            every case is drawn equally often but for the last round.

    Raises:
        ValueError: `num` or `length` is not positive.
    """

    def __init__(
        self, num: int, *, seed: int, stream: str, shuffle: bool = True, length: int | None = None
    ) -> None:
        if num < 1 or (length is not None and length < 1):
            raise ValueError(f"A sampler needs at least one index, got num={num}, length={length}.")
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
        for start in range(0, self.length, self.num):
            order = (
                torch.randperm(self.num, generator=generator).tolist() if self.shuffle else range(self.num)
            )
            for index in order[: self.length - start]:
                yield Draw(index, start // self.num)
