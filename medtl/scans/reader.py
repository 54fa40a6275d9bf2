"""The contract of a reader: one file format, in a module of `medtl/scans/readers/`, found by its file name.

    class Raw(FileReader):
        kind, suffixes = "raw", (".raw",)

        def header(self, root, file, name): ...   # VolumeItem or Rejection, from the header alone
        def read(self, item): ...                 # Volume

defines a format in which every file is a volume: `medtl inspect`, the recipes and `predict` then read it, and so do
masks. Readers are asked in the order of `readers`; the first that recognises a file gets it.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import pkgutil
import re
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from medtl.errors import DataError
from medtl.labelmap import LabelMap
from medtl.scans.items import UNPLACED, MaskItem, Rejection, Volume, VolumeItem
from medtl.scans.privacy import Owner

Item = TypeVar("Item", VolumeItem, MaskItem)

PACKAGE = "medtl.scans.readers"
"""The package whose modules are the readers."""
AGAIN = "Copy or export the file again."


class PixelError(Exception):
    """The pixels of a file cannot be used; the text is safe to show."""


@dataclass
class Found(Generic[Item]):
    """The volumes or masks that a reader finds; paths and names are still raw, and the caller makes them safe to show.

    Attributes:
        items: volumes or masks.
        rejections: files that are neither.
        owners: the patient of each file whose header names one.
    """

    items: list[Item] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    owners: dict[str, Owner] = field(default_factory=dict)

    def add(self, found: Item | Rejection) -> None:
        """Adds one more result."""
        if isinstance(found, Rejection):
            self.rejections.append(found)
        else:
            self.items.append(found)


@dataclass(frozen=True)
class Stored:
    """The numbers of a mask as stored in the file.

    Attributes:
        array: (k, j, i) in the mask's own order of axes; of a sparse mask, on the scan's grid.
        scale: slope and intercept to apply to the numbers.
        overlap: voxels that several structures claim.
    """

    array: NDArray[Any] = field(repr=False)
    scale: tuple[float, float] = (1.0, 0.0)
    overlap: int = 0


class Reader(ABC):
    """A file format: recognises its files, finds their volumes or masks, and reads the voxels.

    Attributes:
        kind: name of the format, as in `VolumeItem.kind` and `MaskItem.kind`.
        suffixes: endings of file names, in lower case.
        by_content: whether it recognises files by their first bytes; such readers are asked first.
        scans: whether its files may be scans.
        masks: whether its files may be masks.
        display: whether 8-bit values are grey values for a screen, from black to white, and not measurements.
    """

    kind: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    by_content: ClassVar[bool] = False
    scans: ClassVar[bool] = True
    masks: ClassVar[bool] = True
    display: ClassVar[bool] = False

    def sniff(self, head: bytes, name: str) -> bool:
        """Whether a file is of this format.

        Args:
            head: its first `HEAD_BYTES` bytes.
            name: its name in lower case.
        """
        return name.endswith(self.suffixes)

    def items(self, root: Path, files: Sequence[str]) -> Found[VolumeItem]:
        """Finds the volumes of some files from headers alone; a damaged file is a rejection, never an error.

        Args:
            root: the scanned folder.
            files: paths relative to `root`, sorted; all of them passed `sniff`.

        Returns:
            Every file in one item or one rejection.
        """
        raise NotImplementedError(f"Files of the format {self.kind} hold no scans.")

    def read(self, item: VolumeItem) -> Volume:
        """Reads the voxels of an item; NaN where there is no number, infinite where it exceeds 32 bits (`to_float32`).

        Raises:
            PixelError: they cannot be used; the text gives the reason and quotes nothing from the header.
            OSError: a file cannot be opened.
        """
        raise NotImplementedError(f"Files of the format {self.kind} hold no scans.")

    def mask_items(self, root: Path, files: Sequence[str]) -> Found[MaskItem]:
        """Finds the masks of some files from headers alone, as `items` finds volumes."""
        raise NotImplementedError(f"Files of the format {self.kind} hold no masks.")

    def stored(self, mask: MaskItem, item: VolumeItem | None) -> Stored:
        """Reads the numbers of a mask; `item` is its scan, which a sparse mask needs.

        Raises:
            DataError: it cannot be used; the text gives the reason.
            OSError: the file cannot be opened.
        """
        raise NotImplementedError(f"Files of the format {self.kind} hold no masks.")

    def writes(self, item: VolumeItem) -> bool:
        """Whether `write` can put a mask into the grid of this scan."""
        return False

    def write(self, path: Path, array: NDArray[Any], item: VolumeItem, labels: LabelMap | None) -> Path:
        """Writes a mask, or a map, voxel for voxel on the scan.

        Args:
            path: the file without its suffix.
            array: (k, j, i) class indices, or with `labels` None numbers in [0, 1].
            item: the scan, of any format.
            labels: the value of each class.

        Returns:
            The path with its suffix.

        Raises:
            DataError: the scan has changed, or the format cannot hold the values.
        """
        raise NotImplementedError(f"Files of the format {self.kind} are not written.")


class FileReader(Reader):
    """A format in which every file is one volume.

    Attributes:
        title: name of the format in messages; `kind` if it is empty.
    """

    title: ClassVar[str] = ""

    @abstractmethod
    def header(self, root: Path, file: str, name: str) -> VolumeItem | Rejection:
        """Reads one header and checks that the file holds the voxels it announces.

        Args:
            root: the scanned folder.
            file: path relative to `root`.
            name: the file's name without its suffix.

        Raises:
            Exception: any, if the header cannot be parsed; it becomes a rejection.
        """

    def items(self, root: Path, files: Sequence[str]) -> Found[VolumeItem]:
        """One volume per file; of byte-identical files, only the first."""
        found: Found[VolumeItem] = Found()
        for file in files:
            found.add(self.look(root, file))
        found.items, doubles = _drop_same_bytes(root, found.items)
        found.rejections += doubles
        return found

    def look(self, root: Path, file: str) -> VolumeItem | Rejection:
        """Calls `header` and turns every error into a rejection."""
        try:
            return self.header(root, file, without_suffix(PurePosixPath(file).name))
        except OSError as error:
            detail = error.strerror or f"its {self.title or self.kind} header cannot be parsed"
        except Exception as error:  # damaged headers raise nearly anything; the text may hold what is in them
            detail = f"its {self.title or self.kind} header cannot be parsed ({type(error).__name__})"
        return Rejection.of(file, "unreadable", detail, AGAIN)

    def no_mask(self, item: VolumeItem) -> str:
        """Why a file cannot be a mask, such as its colours; empty if it can."""
        return ""

    def mask_items(self, root: Path, files: Sequence[str]) -> Found[MaskItem]:
        """One mask per file."""
        found: Found[MaskItem] = Found()
        for file in files:
            item = self.look(root, file)
            if isinstance(item, Rejection):
                found.add(item)
            elif why := self.no_mask(item):
                found.add(Rejection.of(file, "mask_values", why, INDICES))
            else:
                # A file without a stated position has none: do not mistake the format's fallback for one.
                placed = UNPLACED not in item.header.get("geometry", "")
                affine = item.affine if placed else None
                found.add(MaskItem(root, (file,), self.kind, item.name, file, item.shape, affine))
        return found

    def stored(self, mask: MaskItem, item: VolumeItem | None) -> Stored:
        """The values that `read` returns."""
        header = self.look(mask.root, mask.files[0])
        if isinstance(header, Rejection):
            raise DataError(f"{header.detail}.")
        return Stored(self.read(header).array)


INDICES = "Store the mask as one channel of integer labels: PNG or TIFF in grey or with a palette, or NIfTI."
HEAD_BYTES = 132
"""Number of bytes of a file that `sniff` gets."""


@cache
def readers() -> tuple[Reader, ...]:
    """All readers: first those that look at the content, then by name.

    Raises:
        TypeError: a module of the package does not define exactly one reader.
    """
    found = []
    for module in pkgutil.iter_modules(importlib.import_module(PACKAGE).__path__):
        full = f"{PACKAGE}.{module.name}"
        own = [
            kind
            for _, kind in inspect.getmembers(importlib.import_module(full), inspect.isclass)
            if issubclass(kind, Reader) and kind.__module__ == full
        ]
        if len(own) != 1:
            raise TypeError(f"{full} defines {len(own)} readers; expected one class that is a Reader.")
        found.append(own[0]())
    return tuple(sorted(found, key=lambda reader: (not reader.by_content, reader.kind)))


def reader_of(kind: str) -> Reader:
    """The reader of a format, by `VolumeItem.kind` or `MaskItem.kind`."""
    return next(reader for reader in readers() if reader.kind == kind)


def file_reader(path: Path) -> FileReader | None:
    """The reader of a file on its own, by its name; None if its format is none of one volume a file."""
    ours = (reader for reader in readers() if isinstance(reader, FileReader))
    return next((reader for reader in ours if path.name.lower().endswith(reader.suffixes)), None)


@cache
def suffixes() -> tuple[str, ...]:
    """The suffixes of all readers, longest first."""
    return tuple(sorted({s for reader in readers() for s in reader.suffixes}, key=lambda s: (-len(s), s)))


def suffix_of(name: str) -> str:
    """The suffix of a file name in lower case: a reader's (`.nii.gz`), else the part after the last dot."""
    name = name.lower()
    return next((s for s in suffixes() if name.endswith(s) and name != s), PurePosixPath(name).suffix)


def without_suffix(name: str) -> str:
    """A name or path without a reader's suffix; other suffixes stay."""
    return _endings().sub("", name)


@cache
def _endings() -> re.Pattern[str]:
    return re.compile(f"({'|'.join(map(re.escape, suffixes()))})$", re.I)


def _drop_same_bytes(root: Path, items: list[VolumeItem]) -> tuple[list[VolumeItem], list[Rejection]]:
    """Keeps the first of byte-identical files; reads only files of equal size and start."""
    by_size: dict[int, list[VolumeItem]] = defaultdict(list)
    for item in items:
        by_size[(root / item.files[0]).stat().st_size].append(item)
    doubles: list[Rejection] = []
    for group in by_size.values():
        by_start: dict[bytes, list[VolumeItem]] = defaultdict(list)
        for item in group if len(group) > 1 else []:
            by_start[content(root / item.files[0], 1 << 16)].append(item)
        for alike in by_start.values():
            first: dict[bytes, VolumeItem] = {}
            for item in alike if len(alike) > 1 else []:
                kept = first.setdefault(content(root / item.files[0]), item)
                if kept is not item:
                    doubles.append(duplicate(item.files[0], kept.files[0], "the same file as another"))
    dropped = {double.files[0] for double in doubles}
    return [item for item in items if item.files[0] not in dropped], doubles


def to_float32(stored: NDArray[Any], slope: float = 1.0, intercept: float = 0.0) -> NDArray[np.float32]:
    """Stored numbers after slope and intercept.

    Returns:
        NaN where the stored number is not finite; infinite where the result exceeds 32-bit floats, which `read_volume`
        refuses.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        array = stored.astype(np.float32)
        if (slope, intercept) != (1.0, 0.0):
            array *= np.float32(slope)
            array += np.float32(intercept)
    if stored.dtype.kind == "f":
        array[~np.isfinite(stored)] = np.nan
    return array


def content(path: Path, limit: int = -1) -> bytes:
    """Digest of a file, or of its first `limit` bytes."""
    digest = hashlib.blake2b()
    with path.open("rb") as file:
        if limit >= 0:
            digest.update(file.read(limit))
        else:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.digest()


def duplicate(file: str, kept: str, detail: str) -> Rejection:
    """The rejection of a file with the same content as `kept`."""
    return Rejection(file, "duplicate", detail, "Nothing: the other one is used.", (file,), same_as=kept)
