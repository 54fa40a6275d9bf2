"""`read_volume`: the voxels of an item and their place in the patient. One reader per format for all of medtl."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from medtl.errors import DataError
from medtl.scans.items import MAX_BYTES, Volume, VolumeItem, times
from medtl.scans.quiet import quiet_readers
from medtl.scans.reader import PixelError, reader_of

MOST_MISSING = 0.95
"""Largest share of voxels without a number: a skull-stripped brain fills less than a tenth of a large field of view."""
LARGEST = 1e37
"""Largest magnitude of a value: sums and differences of a few must stay within 32-bit floats."""

_SMALL = 1 << 28
"""Bytes of a volume that fit into memory anyway."""


class ScanError(DataError):
    """A scan that cannot be used for a reason of its own; `code` is a key of `CODES`."""

    def __init__(self, message: str, code: str = "undecodable") -> None:
        super().__init__(message)
        self.code = code


def read_volume(item: VolumeItem) -> Volume:
    """Reads the voxels of an item.

    Voxels without a number (NaN) get the scan's lowest value and are padding in `Volume.mask`; `meta["missing"]` is
    their number.

    Args:
        item: a volume that `scan_folder` found.

    Raises:
        ScanError: A file is gone, damaged, of another size than its header said, or cannot be decoded;
            the text names the case and, for series, which file of how many. Or nearly all values are no numbers, or
            too large; or there is not enough memory.
    """
    _check_size(item)
    try:
        with quiet_readers():
            return _finite(item, reader_of(item.kind).read(item))
    except PixelError as error:
        raise ScanError(_message(item, str(error))) from None
    except OSError as error:
        raise ScanError(_message(item, error.strerror or f"it is damaged ({type(error).__name__})")) from None
    except DataError:
        raise
    except MemoryError:
        raise ScanError(_too_large(item, "there is not enough memory for it"), "too_large") from None
    except Exception as error:  # decoders raise nearly anything; their text can hold paths and header values
        raise ScanError(_message(item, f"it cannot be decoded ({type(error).__name__})")) from None


def _message(item: VolumeItem, why: str) -> str:
    what = f"{item.kind} of {len(item.files)} files" if len(item.files) > 1 else item.kind
    return (
        f"Case {item.name!r} ({what}) cannot be read: {why}. The file may have changed since the folder "
        "was scanned: export or copy it again, or leave it out."
    )


def _check_size(item: VolumeItem) -> None:
    """Refuses what is beyond the limit of a volume, or would not fit into memory."""
    needed = int(np.prod(item.shape, dtype=np.int64)) * item.channels * 4
    if needed > MAX_BYTES:
        limit = f"more than the limit of {MAX_BYTES >> 30} GiB for one volume"
        raise ScanError(_too_large(item, limit), "too_large")
    if needed > _SMALL and 2 * needed > (free := free_memory()):
        why = f"which need {2 * needed / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} GiB are free"
        raise ScanError(_too_large(item, why), "too_large")


def _too_large(item: VolumeItem, why: str) -> str:
    return f"The volume of case {item.name!r} has {times(item.shape)} voxels, {why}: crop or resample it."


def free_memory() -> float:
    """Bytes of memory that are free, in the machine and in the container; infinite where nothing says so."""
    found = [float("inf")]
    try:
        with Path("/proc/meminfo").open() as lines:
            found += [1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
        limit, used = (Path(f"/sys/fs/cgroup/memory.{name}").read_text().split() for name in ("max", "stat"))
        if limit != ["max"]:
            found.append(float(limit[0]) - float(used[used.index("anon") + 1]))
    except (OSError, ValueError, IndexError):
        pass
    return min(found)


def _finite(item: VolumeItem, volume: Volume) -> Volume:
    """The volume without NaN."""
    array = volume.array
    if array.dtype.kind != "f" or not array.size:
        return volume
    low, high = float(array.min()), float(array.max())
    if low >= -LARGEST and high <= LARGEST:
        return volume
    absent = np.isnan(array)
    kept = array[~absent]
    if kept.size < (1 - MOST_MISSING) * array.size:
        share = f"{100 * (1 - kept.size / array.size):.3g} % of its values are no numbers (NaN)"
        raise ScanError(_unusable(item, share), "not_finite")
    if float(np.abs(kept).max()) > LARGEST:
        why = f"its values exceed the range of 32-bit numbers (beyond {LARGEST:.0e})"
        raise ScanError(_unusable(item, why), "not_finite")
    missing = absent if absent.ndim == 3 else absent.any(axis=-1)
    filled = np.where(absent, kept.min(), array)
    mask = missing if volume.mask is None else missing | volume.mask
    meta = {**volume.meta, "missing": int(np.count_nonzero(missing))}
    return replace(volume, array=filled, mask=mask, meta=meta)


def _unusable(item: VolumeItem, why: str) -> str:
    return f"Case {item.name!r} ({item.kind}) cannot be used: {why}. Export it again, or leave it out."
