"""Masks: finding them in a folder, and reading them as class indices on the scan's own grid.

`scan_masks` finds a mask (from headers alone), `pairing.py` pairs it with its scan, `alignment.py` compares it with the
scan's geometry, and `read_mask` reads it. The counts made while reading go to
`structures.mask_warnings(cases, counts, labels) -> (warnings, faults)`, with one `MaskCounts` for each case:
`read_mask(case.mask_item, case.item, labels, limit=unknown_limit(case.domain)).counts(labels)`.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtl.errors import DataError
from medtl.labelmap import VOID, LabelMap, count_values, slabs
from medtl.scans.alignment import Mismatch, Reorder, reorder
from medtl.scans.catalog import FOREIGN, printable, walk
from medtl.scans.items import MaskItem, Rejection, VolumeItem
from medtl.scans.privacy import Identifiers, Owner
from medtl.scans.quiet import quiet_readers
from medtl.scans.reader import (
    HEAD_BYTES,
    INDICES,
    PixelError,
    Reader,
    Stored,
    reader_of,
    readers,
    suffix_of,
    suffixes,
)

__all__ = [
    "MaskCounts",
    "MaskError",
    "MaskItem",
    "MaskVoxels",
    "Mismatch",
    "Reorder",
    "read_mask",
    "reorder",
    "scan_masks",
]

UNKNOWN_LIMIT = 0.01
"""Up to this share of the foreground voxels, unknown values become void; above it, the mask is refused."""
WHOLE = 1e-3
"""Up to this distance from an integer, a value is rounded: 255 times a float32 slope of 1/255."""


class MaskError(DataError):
    """A mask that cannot be used.

    Args:
        mask: name of the mask in messages, such as `The mask of case 'c7'`.
        code: a key of `CODES`.
        detail: what was found, with the numbers.
        next_step: what the user can do.
    """

    def __init__(self, mask: str, code: str, detail: str, next_step: str) -> None:
        super().__init__(f"{mask} cannot be used: {detail}. {next_step}")
        self.code, self.detail, self.next_step = code, detail, next_step

    @property
    def reason(self) -> str:
        """What is wrong, to follow the name of the mask in a sentence."""
        return f"cannot be used ({self.detail})"

    def rejection(self, item: VolumeItem) -> Rejection:
        """The rejection of the mask's scan, for `CaseTable.exclude`."""
        return Rejection(item.path, self.code, self.detail, self.next_step, item.files, item=item)


@dataclass(frozen=True)
class MaskCounts:
    """The voxel counts of one mask.

    Attributes:
        voxels: number of voxels of each class, background first.
        void: voxels that are not evaluated, including unknown values.
        unknown: number of voxels of each value that the label map does not name.
        overlap: voxels that several segments of a DICOM SEG claim.
    """

    voxels: tuple[int, ...]
    void: int = 0
    unknown: Mapping[int, int] = field(default_factory=dict, hash=False)
    overlap: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as a JSON file can hold them."""
        return {
            **asdict(self),
            "voxels": list(self.voxels),
            "unknown": {str(v): n for v, n in self.unknown.items()},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MaskCounts:
        """The inverse of `to_dict`."""
        unknown = {int(value): int(count) for value, count in values["unknown"].items()}
        return cls(
            tuple(int(n) for n in values["voxels"]), int(values["void"]), unknown, int(values["overlap"])
        )


@dataclass(frozen=True)
class MaskVoxels:
    """Class indices on the scan's grid.

    Attributes:
        array: (k, j, i) uint8 in the scan's order of axes; `VOID` marks voxels that are not evaluated.
        unknown: values that the label map does not name (for a SEG: segment numbers), and their voxels.
        overlap: voxels that several segments of a DICOM SEG claim: the segment with the highest number wins.
    """

    array: NDArray[np.uint8] = field(repr=False)
    unknown: Mapping[int, int] = field(default_factory=dict)
    overlap: int = 0

    def counts(self, labels: LabelMap) -> MaskCounts:
        """Voxels by class."""
        counted = count_values(self.array)
        voxels = tuple(counted.get(index, 0) for index in range(len(labels.classes)))
        return MaskCounts(voxels, counted.get(VOID, 0), dict(self.unknown), self.overlap)


def unknown_limit(domain: str) -> float:
    """Largest share of unknown values allowed in a mask; no limit in the target, which decides nothing."""
    return UNKNOWN_LIMIT if domain == "source" else 1.0


def scan_masks(
    folder: Path, *, skip: Collection[Path] = (), identifiers: Identifiers | None = None
) -> tuple[tuple[MaskItem, ...], tuple[Rejection, ...]]:
    """Finds the masks of a folder from headers alone.

    Tables, texts and hidden files are ignored; everything else is a mask or a rejection.

    Args:
        folder: a folder, or a single file.
        skip: resolved paths of files that are known not to be masks.
        identifiers: identifiers of the scans' patients, so that no path of a mask shows one.

    Raises:
        DataError: there is no such folder, or it cannot be listed.
    """
    folder = Path(folder)
    if not os.path.exists(folder):
        raise DataError(f"There is no masks folder {folder.name!r}: check the path.")
    root, (files, rejections) = (
        (folder.parent, ([folder.name], [])) if folder.is_file() else (folder, walk(folder))
    )
    known = identifiers if identifiers is not None else Identifiers()
    owners: dict[str, Owner] = {}
    items: list[MaskItem] = []
    parts: dict[Reader, list[str]] = defaultdict(list)
    with quiet_readers():
        for file in files:
            looked = None if skip and (root / file).resolve() in skip else _look(root, file)
            if isinstance(looked, Rejection):
                rejections.append(looked)
            elif looked is not None:
                parts[looked].append(file)
        for reader, part in parts.items():
            found = reader.mask_items(root, part)
            items += found.items
            rejections += found.rejections
            owners |= found.owners
    for owner in owners.values():
        known.add(owner)
    safe = [printable(known.safe_path(r.files[0], owners.get(r.files[0]))) for r in rejections]
    rejected = [replace(r, path=path) for r, path in zip(rejections, safe, strict=True)]
    masks = [safe_mask(item, known, owners.get(item.files[0])) for item in items]
    return tuple(sorted(masks, key=lambda m: m.files)), tuple(sorted(rejected, key=lambda r: r.files))


def safe_mask(mask: MaskItem, identifiers: Identifiers, owner: Owner | None = None) -> MaskItem:
    """The mask with a name and a path that show no identifier, in particular not its own patient's."""
    name, path = (printable(identifiers.safe_path(text, owner)) for text in (mask.name, mask.path))
    return replace(mask, name=name, path=path)


def _look(root: Path, file: str) -> Reader | Rejection | None:
    """Finds the reader of a file by its name and first bytes; None if it is neither mask nor image."""
    name = PurePosixPath(file).name.lower()
    suffix = suffix_of(name)
    if name.startswith("."):
        return None
    if suffix in FOREIGN and suffix not in suffixes():
        step = "Convert it to NIfTI, PNG or DICOM SEG."
        return Rejection.of(file, "unsupported_format", f"a {suffix[1:]} file", step)
    try:
        with (root / file).open("rb") as handle:
            head = handle.read(HEAD_BYTES)
    except OSError as error:
        return Rejection.of(file, "unreadable", error.strerror or "it cannot be opened", "Check permissions.")
    return next((r for r in readers() if r.masks and r.sniff(head, name)), None)


def read_mask(
    mask: MaskItem, item: VolumeItem, labels: LabelMap, *, limit: float = UNKNOWN_LIMIT
) -> MaskVoxels:
    """Reads a mask as class indices on the grid of its scan.

    Segments of a DICOM SEG are identified by their labels if one of them is the name of a structure, else by
    their numbers, because files may number the same structures differently.

    Args:
        mask: the mask.
        item: its scan.
        labels: names and values of the structures.
        limit: largest share of unknown values among the voxels beyond the background.

    Raises:
        MaskError: `mask_geometry`, `mask_values` (fractions), `unknown_label` (more than `limit`), or
            `mask_unreadable`.
    """
    way = reorder(mask, item)
    if isinstance(way, Mismatch):
        raise MaskError(_name(item), "mask_geometry", way.detail, way.next_step)
    found = _stored(mask, item, _name(item))
    if mask.sparse:
        stored, values = found.array, _segment_values(mask, labels)
        array = _lookup(stored, values)
        unknown = {n: c for n, c in count_values(stored).items() if n not in values}
    else:
        stored = way.apply(whole_numbers(found, _name(item)))
        array = labels.encode(stored)
        unknown = labels.unknown(stored)
    beyond = int(np.count_nonzero(array))
    if sum(unknown.values()) > limit * beyond:
        listed = ", ".join(map(str, sorted(unknown)[:8])) + (", ..." if len(unknown) > 8 else "")
        share = f"{100 * sum(unknown.values()) / beyond:.3g} % of the voxels beyond the background"
        detail = f"the values {listed} ({share}) are not in the label map, which is {labels.text()}"
        step = "Name them in labels.json or with --structures, as a structure or as void."
        raise MaskError(_name(item), "unknown_label", detail, step)
    return MaskVoxels(np.ascontiguousarray(array), unknown, found.overlap)


def _name(item: VolumeItem) -> str:
    return f"The mask of case {item.name!r}"


def stored_values(mask: MaskItem, item: VolumeItem | None, name: str = "") -> NDArray[Any]:
    """The integers stored in a mask's file, (k, j, i) in the mask's own order of axes.

    Args:
        mask: the mask.
        item: its scan; None for a mask on its own.
        name: how messages name the mask; by default after its scan.

    Raises:
        MaskError: `mask_values` or `mask_unreadable`.
    """
    called = name or (_name(item) if item is not None else f"The mask {mask.name!r}")
    return whole_numbers(_stored(mask, item, called), called)


def _stored(mask: MaskItem, item: VolumeItem | None, name: str) -> Stored:
    step = "Export the mask again."
    try:
        with quiet_readers():
            found = reader_of(mask.kind).stored(mask, item)
    except DataError as error:
        why, step = str(error).rstrip("."), "Export the segmentation again, or convert it to NIfTI."
        raise MaskError(name, "mask_unreadable", why, step) from None
    except PixelError as error:
        raise MaskError(name, "mask_unreadable", str(error), step) from None
    except OSError as error:
        why = error.strerror or f"it is damaged ({type(error).__name__})"
        raise MaskError(name, "mask_unreadable", why, step) from None
    except Exception as error:  # decoders raise nearly anything; their text can hold paths
        why = f"it cannot be decoded ({type(error).__name__})"
        raise MaskError(name, "mask_unreadable", why, step) from None
    expected = item.shape if mask.sparse and item is not None else mask.shape
    if found.array.shape != expected:
        why = f"it holds {found.array.shape} voxels, its header said {expected}"
        raise MaskError(name, "mask_unreadable", why, "Scan the folder again.")
    return found


def whole_numbers(stored: Stored, name: str) -> NDArray[Any]:
    """Rounds stored numbers to integers; they may be off by up to `WHOLE`.

    Raises:
        MaskError: `mask_values`.
    """
    array, scale = stored.array, stored.scale
    if array.dtype.kind in "iu" and scale == (1.0, 0.0):
        return array
    result = np.empty(array.shape, dtype=np.int32)
    off, example, largest = 0, 0.0, 0.0
    for part in slabs(array):
        with np.errstate(invalid="ignore"):  # of infinities
            values = array[part] * np.float64(scale[0]) + np.float64(scale[1])
            whole = np.rint(values)
            bad = ~(np.abs(values - whole) <= WHOLE)
        if bad.any():
            off, example = off + int(bad.sum()), float(values[bad][0])
            whole[bad] = 0
        largest = max(largest, float(np.abs(whole).max(initial=0)))
        result[part] = whole if largest <= np.iinfo(np.int32).max else 0
    if off:
        detail = (
            f"{off} of its {array.size} voxels are not integers, for example {example:.4g}: it was resampled with "
            "interpolation, or holds probabilities"
        )
        step = "Resample masks with nearest neighbour, or threshold them."
        raise MaskError(name, "mask_values", detail, step)
    if largest > np.iinfo(np.int32).max:
        raise MaskError(name, "mask_values", "its values exceed 32 bits", INDICES)
    return result


def _segment_values(mask: MaskItem, labels: LabelMap) -> dict[int, int]:
    """Class index of each segment number; a missing number is unknown."""
    place = {name.casefold(): index for index, name in enumerate(labels.classes)}
    named = {n: place[label.casefold()] for n, label in mask.segments.items() if label.casefold() in place}
    if not named:
        numbers = {
            value: i for i, values in enumerate(labels.structures.values(), start=1) for value in values
        }
        rest = {**dict.fromkeys(labels.background, 0), **dict.fromkeys(labels.void, VOID)}
        named = {n: {**rest, **numbers}[n] for n in mask.segments if n in numbers or n in rest}
    return {**named, 0: 0}


def _lookup(stored: NDArray[np.uint16], values: Mapping[int, int]) -> NDArray[np.uint8]:
    table = np.full(1 << 16, VOID, dtype=np.uint8)
    for number, index in values.items():
        table[number] = index
    result = np.empty(stored.shape, dtype=np.uint8)
    for part in slabs(stored):
        result[part] = table[stored[part]]
    return result
