"""`read_volume`: the voxels of an item and their place in the patient. One reader per format for all of medtl."""

from __future__ import annotations

from medtl.errors import DataError
from medtl.scans.items import MAX_BYTES, Volume, VolumeItem
from medtl.scans.quiet import quiet_readers
from medtl.scans.reader import PixelError, reader_of


def read_volume(item: VolumeItem) -> Volume:
    """Reads the voxels of an item.

    Args:
        item: a volume that `scan_folder` found.

    Raises:
        DataError: A file is gone, damaged, of another size than its header said, or cannot be decoded;
            the text names the case and, for series, which file of how many.
    """
    j, i = item.shape[1:]
    if item.shape[0] * j * i * item.channels * 4 > MAX_BYTES:
        raise DataError(
            f"The volume of case {item.name!r} has {item.shape[0]} x {j} x {i} voxels, more than the limit "
            f"of {MAX_BYTES >> 30} GiB for one volume: crop or resample it."
        )
    try:
        with quiet_readers():
            return reader_of(item.kind).read(item)
    except PixelError as error:
        raise DataError(_message(item, str(error))) from None
    except OSError as error:
        raise DataError(_message(item, error.strerror or f"it is damaged ({type(error).__name__})")) from None
    except (MemoryError, DataError):
        raise
    except Exception as error:  # decoders raise nearly anything; their text can hold paths and header values
        raise DataError(_message(item, f"it cannot be decoded ({type(error).__name__})")) from None


def _message(item: VolumeItem, why: str) -> str:
    what = f"{item.kind} of {len(item.files)} files" if len(item.files) > 1 else item.kind
    return (
        f"Case {item.name!r} ({what}) cannot be read: {why}. The file may have changed since the folder "
        "was scanned: export or copy it again, or leave it out."
    )
