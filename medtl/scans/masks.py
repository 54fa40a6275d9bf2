"""Masks: what a folder of them holds, and their voxels on the scan's own grid as class indices.

A mask is found by `scan_masks` (headers alone), joined with its scan by `pairing.py`, compared with the scan's
geometry by `alignment.py`, and read by `read_mask`. What was counted while reading goes to
`structures.mask_warnings(cases, counts, labels) -> (warnings, faults)`, with one `MaskCounts` for each case:
`read_mask(case.mask_item, case.item, labels, limit=unknown_limit(case.domain)).counts(labels)`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medtl.errors import DataError
from medtl.labelmap import VOID, LabelMap, count_values, slabs
from medtl.scans.alignment import Mismatch, Reorder, reorder
from medtl.scans.catalog import FOREIGN, SUFFIX, walk
from medtl.scans.geometry import as_affine
from medtl.scans.headers import DicomHeader, is_dicom, read_header
from medtl.scans.items import MaskItem, Rejection, VolumeItem
from medtl.scans.plain import (
    IMAGE_SUFFIXES,
    NIFTI_SUFFIXES,
    nifti_affine,
    read_image_header,
    read_nifti_header,
)
from medtl.scans.privacy import Identifiers
from medtl.scans.quiet import quiet_readers

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
"""Share of the voxels beyond the background that may hold unknown values: up to it they become void."""
WHOLE = 1e-3
"""Distance from an integer that is rounding: 255 times a float32 slope of 1/255."""
_GREY = ("1", "L", "P", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_INDICES = "Store the mask as one channel of integer labels: PNG or TIFF in grey or with a palette, or NIfTI."


class MaskError(DataError):
    """A mask that cannot be used; `code` and `next_step` are those of the rejection it becomes."""

    def __init__(self, code: str, item: VolumeItem, detail: str, next_step: str) -> None:
        super().__init__(f"The mask of case {item.name!r} cannot be used: {detail}. {next_step}")
        self.code, self.item, self.detail, self.next_step = code, item, detail, next_step

    def rejection(self) -> Rejection:
        """What `CaseTable.exclude` takes."""
        return Rejection(
            self.item.path, self.code, self.detail, self.next_step, self.item.files, item=self.item
        )


@dataclass(frozen=True)
class MaskCounts:
    """What one mask holds.

    Attributes:
        voxels: number of voxels of each class, background first.
        void: voxels that are not judged, unknown values included.
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
        array: (k, j, i) uint8 in the scan's order of axes; `VOID` where nothing is judged.
        unknown: values that the label map does not name (for a SEG: segment numbers), and their voxels.
        overlap: voxels that several segments of a DICOM SEG claim: the segment of the higher number stands.
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
    """How large a share of unknown values a mask of the domain may hold: any in the target, which decides nothing."""
    return UNKNOWN_LIMIT if domain == "source" else 1.0


def scan_masks(
    folder: Path, *, skip: Collection[Path] = (), identifiers: Identifiers | None = None
) -> tuple[tuple[MaskItem, ...], tuple[Rejection, ...]]:
    """Finds the masks of a folder from headers alone.

    Tables, texts and hidden files are no concern; everything else is a mask or a rejection.

    Args:
        folder: a folder, or a single file.
        skip: resolved paths of files that are known to be no masks.
        identifiers: what identifies the patients of the scans, so that no path of a mask shows it.

    Raises:
        DataError: there is no such folder, or it cannot be listed.
    """
    folder = Path(folder)
    if not folder.exists():
        raise DataError(f"There is no masks folder {folder.name!r}: check the path.")
    root, files = (folder.parent, [folder.name]) if folder.is_file() else (folder, sorted(walk(folder)))
    known = identifiers if identifiers is not None else Identifiers()
    owners: dict[str, DicomHeader] = {}
    items: list[MaskItem] = []
    rejections: list[Rejection] = []
    with quiet_readers():
        for file in files:
            found = None if skip and (root / file).resolve() in skip else _look(root, file, owners)
            if isinstance(found, MaskItem):
                items.append(found)
            elif found is not None:
                rejections.append(found)
    for header in owners.values():
        known.add(header.patient_id, header.patient_name)
    safe = [known.safe_path(r.files[0], *_own(owners.get(r.files[0]))) for r in rejections]
    return (
        tuple(safe_mask(item, known, *_own(owners.get(item.files[0]))) for item in items),
        tuple(replace(r, path=path) for r, path in zip(rejections, safe, strict=True)),
    )


def safe_mask(
    mask: MaskItem,
    identifiers: Identifiers,
    patient_id: str | None,
    patient_name: str | None = None,
    key: str = "",
) -> MaskItem:
    """The mask with a name and a path that show no identifier, its own patient's in particular."""
    own = (patient_id, patient_name, key)
    name = identifiers.safe_path(mask.name, *own)
    return replace(mask, name=name, path=identifiers.safe_path(mask.path, *own))


def _own(header: DicomHeader | None) -> tuple[str | None, str | None, str]:
    return (header.patient_id, header.patient_name, header.study or "") if header else (None, None, "")


def _look(root: Path, file: str, owners: dict[str, DicomHeader]) -> MaskItem | Rejection | None:
    """What one file is, by its name and first bytes."""
    name = PurePosixPath(file).name.lower()
    suffix = ".nii.gz" if name.endswith(".nii.gz") else PurePosixPath(file).suffix.lower()
    if name.startswith("."):
        return None
    if suffix in FOREIGN:
        return _reject(
            file, "unsupported_format", f"a {suffix[1:]} file", "Convert it to NIfTI, PNG or DICOM SEG."
        )
    try:
        with (root / file).open("rb") as handle:
            head = handle.read(132)
    except OSError as error:
        return _reject(file, "unreadable", error.strerror or "it cannot be opened", "Check permissions.")
    if is_dicom(head, suffix):
        return _look_dicom(root, file, owners)
    if suffix not in NIFTI_SUFFIXES and suffix not in IMAGE_SUFFIXES:
        return None
    stem = SUFFIX.sub("", PurePosixPath(file).name)
    found = (read_nifti_header if suffix in NIFTI_SUFFIXES else read_image_header)(root, file, stem)
    if isinstance(found, Rejection):
        return found
    mode = found.header.get("mode", "")
    if found.kind == "image" and (suffix in (".jpg", ".jpeg") or mode not in _GREY):
        why = (
            "a JPEG image, which changes values"
            if suffix in (".jpg", ".jpeg")
            else f"a colour image ({mode})"
        )
        return _reject(file, "mask_values", why, _INDICES)
    # A file that says nothing about its place has none: the fallback of the format would be taken for one.
    placed = "orientation unknown" not in found.header.get("geometry", "")
    return MaskItem(root, (file,), found.kind, stem, file, found.shape, found.affine if placed else None)


def _look_dicom(root: Path, file: str, owners: dict[str, DicomHeader]) -> MaskItem | Rejection:
    from medtl.scans.seg import read_seg_header  # pulls in highdicom: only for those who have such files

    header = read_header(root, file)
    if isinstance(header, Rejection):
        return header
    owners[file] = header
    if header.problem is None or header.problem.code != "mask":
        step = "Give masks as NIfTI, PNG or DICOM SEG; convert contours (RTSTRUCT) first."
        return _reject(file, "mask_unreadable", "a DICOM object that is no segmentation", step)
    try:
        seg = read_seg_header(root / file)
    except DataError as error:
        return _reject(
            file, "mask_unreadable", str(error).rstrip("."), "Export it again, or convert it to NIfTI."
        )
    stem = SUFFIX.sub("", PurePosixPath(file).name)
    return MaskItem(
        root, (file,), "seg", stem, file, seg.shape, seg.affine, seg.series_uid, dict(seg.segments)
    )


def _reject(file: str, code: str, detail: str, next_step: str) -> Rejection:
    return Rejection(file, code, detail, next_step, (file,))


def read_mask(
    mask: MaskItem, item: VolumeItem, labels: LabelMap, *, limit: float = UNKNOWN_LIMIT
) -> MaskVoxels:
    """Reads a mask as class indices on the grid of its scan.

    Segments of a DICOM SEG are known by their labels where one of them is the name of a structure, else by
    their numbers: files number the same structures differently.

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
        raise MaskError("mask_geometry", item, way.detail, way.next_step)
    overlap = 0
    if mask.kind == "seg":
        stored, overlap = _read_seg(mask, item)
        values = _segment_values(mask, labels)
        array = _lookup(stored, values)
        unknown = {n: c for n, c in count_values(stored).items() if n not in values}
    else:
        stored = way.apply(stored_values(mask, item))
        array = labels.encode(stored)
        unknown = labels.unknown(stored)
    beyond = int(np.count_nonzero(array))
    if sum(unknown.values()) > limit * beyond:
        listed = ", ".join(map(str, sorted(unknown)[:8])) + (", ..." if len(unknown) > 8 else "")
        share = f"{100 * sum(unknown.values()) / beyond:.3g} % of the voxels beyond the background"
        detail = f"the values {listed} ({share}) are not in the label map, which is {labels.text()}"
        step = "Name them in labels.json or with --structures, as a structure or as void."
        raise MaskError("unknown_label", item, detail, step)
    return MaskVoxels(np.ascontiguousarray(array), unknown, overlap)


def stored_values(mask: MaskItem, item: VolumeItem) -> NDArray[Any]:
    """The integers of a NIfTI or image mask as they are in the file, (k, j, i) in the mask's own order of axes.

    Raises:
        MaskError: `mask_values` or `mask_unreadable`.
    """
    path = mask.root / mask.files[0]
    try:
        with quiet_readers():
            array, scale = (
                _read_nifti(path, mask) if mask.kind == "nifti" else (_read_image(path), (1.0, 0.0))
            )
    except OSError as error:
        why = error.strerror or f"it is damaged ({type(error).__name__})"
        raise MaskError("mask_unreadable", item, why, "Export the mask again.") from None
    except Exception as error:  # decoders raise nearly anything; their text can hold paths
        why = f"it cannot be decoded ({type(error).__name__})"
        raise MaskError("mask_unreadable", item, why, "Export the mask again.") from None
    if array.shape != mask.shape:
        why = f"it holds {array.shape} voxels, its header said {mask.shape}"
        raise MaskError("mask_unreadable", item, why, "Scan the folder again.")
    return _integers(array, scale, item)


def _read_nifti(path: Path, mask: MaskItem) -> tuple[NDArray[Any], tuple[float, float]]:
    """Stored numbers, and slope and intercept by which they count."""
    image: Any = nibabel.load(path)
    if mask.affine is not None and as_affine(nifti_affine(image.header)[0]) != mask.affine:
        raise ValueError("geometry changed")
    slope, inter = image.dataobj.slope, image.dataobj.inter
    raw: NDArray[Any] = np.asarray(image.dataobj.get_unscaled())
    raw = raw.reshape(raw.shape[:3] + (1,) * (3 - raw.ndim)).transpose(2, 1, 0)
    scaled = bool(np.isfinite(slope) and np.isfinite(inter)) and slope != 0
    return raw, (float(slope), float(inter)) if scaled else (1.0, 0.0)


def _read_image(path: Path) -> NDArray[Any]:
    with Image.open(path) as image:
        array: NDArray[Any] = np.asarray(image)  # of a palette its indices, of one bit 0 and 1
    return (array.astype(np.uint8) if array.dtype == np.bool_ else array)[None]


def _integers(array: NDArray[Any], scale: tuple[float, float], item: VolumeItem) -> NDArray[Any]:
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
            f"{off} of its {array.size} voxels hold no integer, for example {example:.4g}: it was resampled with "
            "interpolation, or holds probabilities"
        )
        raise MaskError(
            "mask_values", item, detail, "Resample masks with nearest neighbour, or threshold them."
        )
    if largest > np.iinfo(np.int32).max:
        raise MaskError("mask_values", item, "its values exceed 32 bits", _INDICES)
    return result


def _read_seg(mask: MaskItem, item: VolumeItem) -> tuple[NDArray[np.uint16], int]:
    from medtl.scans.seg import read_seg

    try:
        return read_seg(mask.root / mask.files[0], item.shape, item.affine)
    except DataError as error:
        step = "Export the segmentation again, or convert it to NIfTI."
        raise MaskError("mask_unreadable", item, str(error).rstrip("."), step) from None


def _segment_values(mask: MaskItem, labels: LabelMap) -> dict[int, int]:
    """Class index of each segment number; a number that is absent is unknown."""
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
