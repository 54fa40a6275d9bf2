"""Preprocessed volumes and masks on disk: computed once, memory-mapped, checksummed, recomputed when stale."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtl.data.cases.table import Case
from medtl.data.seeds import derive_seed
from medtl.data.tensors.grid import Grid
from medtl.data.tensors.preprocess import preprocess
from medtl.data.tensors.spec import Preprocess
from medtl.errors import DataError
from medtl.files import atomic_write
from medtl.labelmap import LabelMap
from medtl.parallel import map_items
from medtl.scans.items import MaskItem, Rejection, Volume, VolumeItem
from medtl.scans.masks import MaskCounts, MaskError, read_mask, unknown_limit
from medtl.scans.volume import ScanError, read_volume

log = logging.getLogger(__name__)

FORMAT = 2
"""Version of the cache's file format; changing it makes old entries unreachable."""
MAX_POINTS = 10_000
"""Number of voxels per structure stored as centres for patches; more would not help."""


@dataclass(frozen=True)
class ScanFacts:
    """What reading a scan told about its voxels.

    Attributes:
        missing: voxels without a number, which count as padding.
        constant: whether one grey value is left everywhere.
        pixels: digests of the decoded voxels and of the preprocessed ones. Equal scans agree in one of them, whatever
            their files, headers and formats are; empty for constant scans.
    """

    missing: int = 0
    constant: bool = False
    pixels: tuple[str, ...] = ()

    @classmethod
    def of(cls, volume: Volume, preprocessed: NDArray[np.float16]) -> ScanFacts:
        """The facts of a volume, before and after preprocessing."""
        constant = bool(preprocessed.min() == preprocessed.max())
        pixels = () if constant else (_pixels(volume.array), _pixels(preprocessed))
        return cls(int(volume.meta.get("missing", 0)), constant, pixels)


@dataclass(frozen=True)
class MaskEntry:
    """A mask in the network's grid.

    Attributes:
        array: (*shape) uint8 class indices, `VOID` where nothing is trained on; a read-only memory map.
        points: For each structure present, its class index and the (n, dimensions) coordinates of its voxels: all, or
            `MAX_POINTS` drawn with a fixed seed.
    """

    array: NDArray[np.uint8]
    points: Mapping[int, NDArray[np.int32]]


class VolumeCache:
    """One `.npy` a volume or mask, memory-mapped on reading, with a JSON sidecar that holds its checksum.

    An entry's name is a digest of the files' state and content, the preprocessing and the format: an entry is never
    stale, and several runs, image sizes and processes can share a folder. It holds no identifier, and only its owner
    may read it.

    Attributes:
        folder: The folder of the entries; created with the first entry.
        preprocess: The preprocessing of every volume.
        labels: The meaning of the masks' values; None without masks.
    """

    def __init__(self, folder: Path, preprocess: Preprocess, labels: LabelMap | None = None) -> None:
        self.folder = Path(folder)
        self.preprocess = preprocess
        self.labels = labels
        self._verified: dict[str, Mapping[str, Any]] = {}  # sidecars by key
        self._layouts: dict[Path, dict[str, Any]] = {}  # of the files that were checked

    def key(self, item: VolumeItem) -> str:
        """Name of the entry for the current state of the item's files.

        Raises:
            DataError: A file has gone.
        """
        return _key(item, item.name, self.preprocess.key())

    def mask_key(self, case: Case) -> str:
        """Name of the entry for the current state of the case's scan and mask.

        Raises:
            DataError: A file has gone, or the case has no mask.
        """
        if case.item is None or case.mask_item is None or self.labels is None:
            raise DataError(f"Case {case.case!r} has no mask to train on or to compare with.")
        # The order matters because it numbers the classes; the limit, because it decides what is refused.
        meaning = json.dumps([list(self.labels.to_dict().items()), unknown_limit(case.domain)])
        scan = _key(case.item, case.case, self.preprocess.key())
        return _key(case.mask_item, case.case, f"{scan} {meaning}")

    def get(self, item: VolumeItem) -> NDArray[np.float16]:
        """The preprocessed volume, computed and stored if it is missing.

        Returns:
            A read-only array, (C, H, W) or (C, D, H, W) float16 in [0, 1].

        Raises:
            DataError: The case cannot be read.
        """
        return self.load(item, self.key(item))

    def load(self, item: VolumeItem, key: str) -> NDArray[np.float16]:
        """As `get` with a known key, which saves a file-system call for every slice."""
        entry = self._read(key, item.name, "")
        if entry is None:
            self._write_volume(key, item)
            entry = self._read(key, item.name, "")
        if entry is None:
            raise DataError(_ALTERED.format(item.name))
        return entry[0]

    def facts(self, item: VolumeItem) -> ScanFacts:
        """What reading the scan told about its voxels.

        Raises:
            DataError: The case cannot be read.
        """
        key = self.key(item)
        self.load(item, key)
        found = self._verified[key]["scan"]
        return ScanFacts(found["missing"], found["constant"], tuple(found["pixels"]))

    def _write_volume(self, key: str, item: VolumeItem) -> None:
        volume = read_volume(item)
        array = preprocess(volume, self.preprocess)
        if not np.isfinite(array).all():
            raise ScanError(
                f"Case {item.name!r} holds values that are no numbers after preprocessing: export it again, or leave "
                "it out.",
                "not_finite",
            )
        self._write(key, {"": array}, {"scan": asdict(ScanFacts.of(volume, array))})

    def load_mask(self, case: Case) -> NDArray[np.uint8]:
        """The case's mask in the network's grid, computed and stored if it is missing.

        Returns:
            (*shape) uint8 class indices, 255 for void; a read-only memory map.

        Raises:
            DataError: There is no mask, or it cannot be used.
        """
        return self.mask(case).array

    def foreground(self, case: Case) -> Mapping[int, NDArray[np.int32]]:
        """Coordinates of voxels in the network's grid, (n, dimensions), for each structure present."""
        return self.mask(case).points

    def counts(self, case: Case) -> MaskCounts:
        """Voxel counts of the mask in the scan's own grid."""
        key = self.mask_key(case)
        self.mask(case, key)
        return MaskCounts.from_dict(self._verified[key]["counts"])

    def mask(self, case: Case, key: str | None = None) -> MaskEntry:
        """The case's mask entry; a known key saves file-system calls.

        Raises:
            DataError: There is no mask, or it cannot be used.
        """
        key = key or self.mask_key(case)
        found = self._read(key, case.case, "", ".points")
        if found is None:
            self._write_mask(key, case)
            found = self._read(key, case.case, "", ".points")
        if found is None:
            raise DataError(_ALTERED.format(case.case))
        facts, points, start = self._verified[key], {}, 0
        for index, number in enumerate(facts["points"], start=1):
            if number:
                points[index] = found[1][start : start + number]
            start += number
        return MaskEntry(found[0], points)

    def _write_mask(self, key: str, case: Case) -> None:
        assert case.item is not None
        assert case.mask_item is not None
        assert self.labels is not None
        voxels = read_mask(case.mask_item, case.item, self.labels, limit=unknown_limit(case.domain))
        mask = Grid.of(case.item, self.preprocess).mask_to_network(voxels.array)
        points = [_sample(mask, index) for index in range(1, len(self.labels.classes))]
        facts = {"points": [len(p) for p in points], "counts": voxels.counts(self.labels).to_dict()}
        self._write(key, {"": mask, ".points": np.concatenate(points)}, facts)

    def prepare(
        self,
        items: Iterable[VolumeItem],
        *,
        jobs: int = -1,
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[Rejection, ...]:
        """Computes the entries that are missing, in threads.

        Args:
            items: The items that will be needed.
            jobs: Threads, as in joblib: -1 for all cores; `joblib.parallel_config` chooses another engine.
            progress: Called with (done, total) after each item.

        Returns:
            A rejection, with its `item`, for each one that cannot be read.
        """
        found = map_items(self._prepare_one, list(items), jobs=jobs, progress=progress)
        return tuple(r for r in found if r is not None)

    def prepare_masks(
        self,
        cases: Iterable[Case],
        *,
        jobs: int = -1,
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[Rejection, ...]:
        """As `prepare`, for the masks of cases that have one."""
        masked = [c for c in cases if c.mask_item is not None]
        found = map_items(self._prepare_mask, masked, jobs=jobs, progress=progress)
        return tuple(r for r in found if r is not None)

    def _prepare_one(self, item: VolumeItem) -> Rejection | None:
        try:
            self.get(item)
        except DataError as error:
            step = "Export the files again, or leave the case out."
            code = error.code if isinstance(error, ScanError) else "undecodable"
            return Rejection(item.path, code, str(error), step, files=item.files, item=item)
        return None

    def _prepare_mask(self, case: Case) -> Rejection | None:
        assert case.item is not None
        try:
            self.mask(case)
        except MaskError as error:
            return error.rejection(case.item)
        except DataError as error:
            step = "Export the mask again, or leave the case out."
            return Rejection(
                case.item.path, "mask_unreadable", str(error), step, case.item.files, item=case.item
            )
        return None

    def _write(
        self, key: str, arrays: Mapping[str, NDArray[Any]], more: Mapping[str, Any] | None = None
    ) -> None:
        """Writes one file for each suffix, and the sidecar."""
        first = arrays[""]
        sidecar: dict[str, Any] = {"format": FORMAT, "shape": list(first.shape), "dtype": str(first.dtype)}
        for suffix, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, array, allow_pickle=False)
            data = buffer.getvalue()
            sidecar["blake2b" + suffix] = _digest(data)
            atomic_write(self.folder / f"{key}{suffix}.npy", data, private=True)
        # The sidecar comes last: an entry without one is an interrupted write.
        atomic_write(self.folder / f"{key}.json", json.dumps({**sidecar, **(more or {})}), private=True)
        self._verified.pop(key, None)

    def _read(self, key: str, name: str, *suffixes: str) -> list[NDArray[Any]] | None:
        """The entry's arrays, or None if it is missing or damaged. Each process verifies an entry once."""
        facts = self.folder / f"{key}.json"
        files = [self.folder / f"{key}{suffix}.npy" for suffix in suffixes]
        if key not in self._verified and not _is_there(facts):
            return None
        try:
            if key not in self._verified:
                sidecar = json.loads(facts.read_text())
                for suffix, file in zip(suffixes, files, strict=True):
                    if sidecar["blake2b" + suffix] != _digest(file.read_bytes()):
                        raise ValueError("checksum")
                    self._layouts[file] = _layout(file)
                self._verified[key] = sidecar
            return [np.memmap(file, mode="r", **self._layouts[file]) for file in files]
        except PermissionError:
            raise DataError(_FOREIGN.format(self.folder.name)) from None
        except (OSError, ValueError, KeyError, TypeError):
            log.warning("The cache entry of case %r is damaged: it is computed again.", name)
            facts.unlink(missing_ok=True)
            self._verified.pop(key, None)
            return None


_ALTERED = "The cache entry of case {!r} was altered while it was written: try again."

_FOREIGN = "The cache {!r} belongs to another user, who alone may read it: write your runs into another folder (--out)."


def _is_there(file: Path) -> bool:
    try:
        return file.exists()
    except PermissionError:
        raise DataError(_FOREIGN.format(file.parent.name)) from None


def _key(item: VolumeItem | MaskItem, name: str, rest: str) -> str:
    try:
        text = f"{item.fingerprint} {rest} {FORMAT}"
    except OSError as error:
        raise DataError(f"Case {name!r} cannot be read: {error.strerror}. Scan the folder again.") from None
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _sample(mask: NDArray[np.uint8], index: int) -> NDArray[np.int32]:
    """(n, dimensions): at most `MAX_POINTS` voxels of a class, in the order of memory."""
    places = np.flatnonzero(mask == index)
    if len(places) > MAX_POINTS:
        generator = np.random.default_rng(derive_seed(0, "foreground", index))
        places = np.sort(generator.choice(places, MAX_POINTS, replace=False))
    return np.stack(np.unravel_index(places, mask.shape), axis=1).astype(np.int32)


def _layout(file: Path) -> dict[str, Any]:
    """The facts needed to map an array without parsing its header again, which takes longer than the mapping."""
    array: np.memmap[Any, Any] = np.load(file, mmap_mode="r", allow_pickle=False)
    order = "C" if array.flags.c_contiguous else "F"
    return {"dtype": array.dtype, "offset": array.offset, "shape": array.shape, "order": order}


def _pixels(array: NDArray[Any]) -> str:
    """Digest of the values and their shape."""
    plain = np.ascontiguousarray(array)
    digest = hashlib.blake2b(f"{plain.shape} {plain.dtype.str}".encode(), digest_size=16)
    digest.update(plain.data)
    return digest.hexdigest()


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
