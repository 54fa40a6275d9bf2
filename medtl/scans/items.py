"""The result of scanning a folder: volumes that can be read, and rejections with their reasons."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtl.scans.privacy import Identifiers

Affine = tuple[tuple[float, float, float, float], ...]
"""4 x 4, row by row: voxel (i, j, k), i along columns, to RAS in mm."""
MAX_BYTES = 4 << 30
"""Memory limit of one volume as float32; protects against damaged or hostile dimensions."""
_BLOCK, _BLOCKS = 1 << 16, 16
"""Bytes of a block, and blocks of a file, that tell whether a large file has changed."""
NO_POSITION = "no position"
"""Geometry note of an image without a place in the patient."""
UNPLACED = "orientation unknown"
"""Part of the geometry note of a volume whose place is its format's fallback."""

CODES: Mapping[str, str] = MappingProxyType(
    {
        "not_a_scan": "Not an image that can be read as a scan: a table, text, a DICOMDIR, a hidden file.",
        "unsupported_format": "An image or archive of a format that medtl does not read.",
        "mask": "A segmentation: in a folder or with a name kept for masks, or a DICOM SEG object.",
        "unreadable": "Looks like a scan by name or content, but its header cannot be read.",
        "truncated": "The file ends before its pixels do.",
        "no_pixels": "A DICOM object without an image: a report, a plan, a presentation state.",
        "no_decoder": "Compressed in a way that no installed decoder can read.",
        "duplicate": "The same image as another file: equal bytes, the same SOPInstanceUID, or equal pixels.",
        "secondary_capture": "A picture of a screen or page, stored with the scans.",
        "localizer": "A scout or localizer: the image on which the scan was planned.",
        "derived_map": "Computed values (a parametric map), not a scan.",
        "multi_frame": "Several frames in one file (enhanced multi-frame, cine, multi-page TIFF).",
        "mosaic": "Siemens mosaic: the slices of a volume tiled in one image.",
        "four_d": "Several volumes (times, diffusion directions, channels) in one series or file.",
        "no_geometry": "Slices of a volume without position or orientation.",
        "mixed_orientation": "Slices of different orientations in one series.",
        "missing_slices": "Gaps in an otherwise regular series.",
        "irregular_spacing": "Slices whose distances differ.",
        "incomplete_series": "A series of which some files are truncated or cannot be decoded.",
        "bad_affine": "A voxel-to-patient matrix that is singular or not finite.",
        "bad_pixels": "Dimensions or pixel format that are empty, contradictory or not supported.",
        "too_large": "Bigger than the size limit of one volume.",
        "undecodable": "The header is fine; decoding the pixels failed.",
        "not_finite": "Nearly all of its values are no numbers (NaN), or they exceed the range of 32-bit numbers.",
        "mask_unreadable": "The scan's mask cannot be read.",
        "mask_values": "A mask whose values are not labels: a colour image, or numbers with fractions.",
        "mask_geometry": "The mask's voxels do not lie on those of the scan.",
        "unknown_label": "The mask holds values that the label map does not name.",
    }
)
"""All reasons why a file is left out."""
MASK_CODES = frozenset({"mask_unreadable", "mask_values", "mask_geometry", "unknown_label"})
"""The reasons that concern a scan's mask, not the scan."""


@dataclass(frozen=True)
class VolumeItem:
    """One volume or image of a folder, described by its headers; `read_volume` reads its pixels.

    Attributes:
        root: The scanned folder. Never shown.
        files: Its files relative to `root`, with forward slashes, in slice order. Never shown: paths can
            carry names.
        kind: The format: the `kind` of its reader, such as `dicom`, `nifti` or `image`.
        name: The case name: file stem or series folder, free of patient identifiers.
        path: Display-safe path relative to `root`: the file, or the folder of the series.
        patient_id: PatientID as stored, or None. In memory only.
        series_uid: SeriesInstanceUID as stored, or None. In memory only.
        shape: (k, j, i): slices, rows, columns.
        channels: 1 or 3.
        affine: 4 x 4, voxel (i, j, k) to RAS in mm; None for images without a position in the patient.
        modality: DICOM modality such as `CT`, or None.
        header: Facts for domains and preprocessing: manufacturer, model, kernel, field_strength, bits, ...
        hidden: Whether its name or path named someone and was replaced in part.
    """

    root: Path = field(repr=False)
    files: tuple[str, ...] = field(repr=False)
    kind: str
    name: str
    path: str
    patient_id: str | None = field(default=None, repr=False)
    series_uid: str | None = field(default=None, repr=False)
    shape: tuple[int, int, int] = (1, 1, 1)
    channels: int = 1
    affine: Affine | None = None
    modality: str | None = None
    header: Mapping[str, str] = field(default_factory=dict, hash=False)
    hidden: bool = field(default=False, repr=False, compare=False)

    @property
    def order(self) -> tuple[bool, str, tuple[str, ...]]:
        """Sorts by name. What is hidden comes last, shuffled: by no name, and in every project alike."""
        name = hashlib.blake2b("\0".join(self.files).encode(errors="surrogateescape")).hexdigest()
        return self.hidden, name if self.hidden else self.name, self.files

    @property
    def remark(self) -> str:
        """Doubts about its geometry and its slices, or empty."""
        notes = (self.header.get("geometry", ""), self.header.get("doubt", ""))
        return "; ".join(note for note in notes if note not in ("", NO_POSITION))

    @property
    def fingerprint(self) -> str:
        """Digest of the files' paths, sizes, modification times and content: it changes when a file does.

        The folder is included, because two sites may hold files that agree in name, size and time. Of the content of
        files beyond 1 MiB, blocks are read; with the variable `MEDTL_CACHE_DIGEST=full`, all of it.

        Raises:
            OSError: A file has gone.
        """
        return _fingerprint(self.root, self.files)


@dataclass(frozen=True)
class MaskItem:
    """One mask of a folder, described by its headers; `medtl.scans.masks.read_mask` reads its voxels.

    Attributes:
        root: The masks' folder. Never shown.
        files: Its file relative to `root`, with forward slashes. Never shown: paths can carry names.
        kind: The format: `nifti`, `image`, `seg` (a DICOM segmentation), or that of another reader.
        name: The file's stem, free of patient identifiers.
        path: Display-safe path relative to `root`.
        shape: (k, j, i): slices, rows, columns, in the mask's own order of axes.
        affine: 4 x 4, voxel (i, j, k) to RAS in mm; None where the file says nothing about it.
        series_uid: SeriesInstanceUID of the scan that a segmentation was drawn on. In memory only.
        segments: Labels of a segmentation's segments by their numbers.
        sparse: The file leaves empty slices out, and its numbers are those of segments: its grid only has to lie on
            the scan's voxels.
    """

    root: Path = field(repr=False)
    files: tuple[str, ...] = field(repr=False)
    kind: str
    name: str
    path: str
    shape: tuple[int, int, int] = (1, 1, 1)
    affine: Affine | None = None
    series_uid: str | None = field(default=None, repr=False)
    segments: Mapping[int, str] = field(default_factory=dict, hash=False)
    sparse: bool = False

    @property
    def fingerprint(self) -> str:
        """Digest of the files' places, sizes, modification times and content, as for a `VolumeItem`.

        Raises:
            OSError: A file has gone.
        """
        return _fingerprint(self.root, self.files)


def _fingerprint(root: Path, files: tuple[str, ...]) -> str:
    digest = hashlib.blake2b(str(root.resolve()).encode(errors="surrogateescape"), digest_size=16)
    full = os.environ.get("MEDTL_CACHE_DIGEST", "") == "full"
    for name in files:
        path = root / name
        status = path.stat()
        row = f"\0{name}\0{status.st_size}\0{status.st_mtime_ns}\0"
        digest.update(row.encode(errors="surrogateescape"))
        # The time of the last change of a file's state cannot be set: within one process, it tells another content.
        state = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        digest.update(_content(path, state, full))
    return digest.hexdigest()


@lru_cache(maxsize=1 << 18)
def _content(path: Path, state: tuple[int, ...], full: bool) -> bytes:
    """Digest of a file: of all its bytes if there are few, else of `_BLOCKS` blocks from the first to the last."""
    size = state[0]
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        if full or size <= _BLOCK * _BLOCKS:
            while part := file.read(1 << 20):
                digest.update(part)
        else:
            for number in range(_BLOCKS):
                file.seek((size - _BLOCK) * number // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK))
    return digest.digest()


@dataclass(frozen=True)
class Rejection:
    """A file, or the files of a series, that is not used.

    Attributes:
        path: Display-safe path relative to the scanned folder.
        code: A key of `CODES`.
        detail: What was found, with the numbers.
        next_step: What the user can do.
        files: The files concerned, relative to the folder. In memory only.
        same_as: For duplicates, the file (relative, in memory only) that is used instead.
        owners: PatientID and SeriesInstanceUID where the header was readable. In memory only.
        item: For files that failed to decode, the item they belong to.
    """

    path: str
    code: str
    detail: str
    next_step: str
    files: tuple[str, ...] = field(default=(), repr=False)
    same_as: str | None = field(default=None, repr=False)
    owners: tuple[str, ...] = field(default=(), repr=False)
    item: VolumeItem | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.code not in CODES:
            raise ValueError(f"{self.code!r} is no rejection code; there are: {', '.join(CODES)}.")

    @classmethod
    def of(cls, file: str, code: str, detail: str, next_step: str) -> Rejection:
        """Of one file, by its path relative to the folder."""
        return cls(file, code, detail, next_step, (file,))


@dataclass(frozen=True)
class Volume:
    """Voxels and geometry.

    Attributes:
        array: (k, j, i), or (k, j, i, 3) for colour; float32, int16 or uint8. CT in HU.
        affine: 4 x 4, voxel (i, j, k) to RAS in mm; None for images without a position in the patient.
        mask: (k, j, i) bool, True where a voxel is padding and not a measurement; None if there is none.
        meta: `kind`, `modality`, `bits`, `inverted` (MONOCHROME1 was turned around), `units` (`HU`,
            `unknown`).
    """

    array: NDArray[Any] = field(repr=False)
    affine: Affine | None
    mask: NDArray[np.bool_] | None = field(default=None, repr=False)
    meta: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, item: VolumeItem, array: NDArray[Any], mask: NDArray[np.bool_] | None = None, **meta: Any
    ) -> Volume:
        """The voxels of an item; what its header says is in `meta`."""
        known = {"kind": item.kind, "modality": item.modality, "bits": int(item.header.get("bits", "0"))}
        return cls(array, item.affine, mask, {**known, "inverted": False, "units": "unknown", **meta})


def times(shape: Sequence[int]) -> str:
    """Numbers of voxels as a text: `5 x 6 x 7`."""
    return " x ".join(map(str, shape))


@dataclass(frozen=True)
class Catalog:
    """All volumes and rejections of one folder; every file is in exactly one of them.

    Attributes:
        items: the volumes.
        rejections: what is left out.
        identifiers: identifiers of the folder's patients, to make other paths safe to show. In memory only.
    """

    items: tuple[VolumeItem, ...]
    rejections: tuple[Rejection, ...]
    identifiers: Identifiers = field(default_factory=Identifiers, repr=False, compare=False)

    @property
    def num_files(self) -> int:
        """Number of files in the folder."""
        return sum(len(item.files) for item in self.items) + sum(len(r.files) for r in self.rejections)

    def rejected_by_code(self) -> dict[str, int]:
        """Number of files left out, by reason."""
        counts: Counter[str] = Counter()
        for rejection in self.rejections:
            counts[rejection.code] += len(rejection.files)
        return dict(sorted(counts.items()))
