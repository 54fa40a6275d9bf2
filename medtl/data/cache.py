"""Preprocessed volumes on disk: computed once, memory-mapped, checked, recomputed when stale."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray

from medtl.data.items import Rejection, VolumeItem
from medtl.data.preprocess import Preprocess, preprocess
from medtl.data.volume import read_volume
from medtl.errors import DataError
from medtl.runs import atomic_write

log = logging.getLogger(__name__)

FORMAT = 1
"""Version of the files in the cache: a change makes old entries unreachable."""


class VolumeCache:
    """One `.npy` a case, memory-mapped on reading, with a JSON sidecar that holds its checksum.

    An entry's name is a digest of the files' state, the preprocessing and the format: an entry is never
    stale, and several runs, image sizes and processes can share a folder. It holds no identifier.

    Attributes:
        folder: Where the entries are; made when the first is written.
        preprocess: What every volume goes through.
    """

    def __init__(self, folder: Path, preprocess: Preprocess) -> None:
        self.folder = Path(folder)
        self.preprocess = preprocess
        self._verified: set[str] = set()

    def key(self, item: VolumeItem) -> str:
        """Name of the entry of `item` as its files are now.

        Raises:
            DataError: A file has gone.
        """
        try:
            text = f"{item.fingerprint} {self.preprocess.key()} {FORMAT}"
        except OSError as error:
            raise DataError(
                f"Case {item.name!r} cannot be read: {error.strerror}. Scan the folder again."
            ) from None
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def get(self, item: VolumeItem) -> NDArray[np.float16]:
        """The preprocessed volume, computed and stored if it is not there.

        Returns:
            A read-only array, (C, H, W) or (C, D, H, W) float16 in [0, 1].

        Raises:
            DataError: The case cannot be read.
        """
        return self.load(item, self.key(item))

    def load(self, item: VolumeItem, key: str) -> NDArray[np.float16]:
        """As `get`, with the key known: saves asking the file system for the state of every slice."""
        entry = self._read(key, item)
        if entry is None:
            self._write(key, preprocess(read_volume(item), self.preprocess))
            entry = self._read(key, item)
            if entry is None:
                raise DataError(
                    f"The cache entry of case {item.name!r} was altered while it was written: try again."
                )
        return entry

    def prepare(
        self,
        items: Iterable[VolumeItem],
        *,
        jobs: int = -1,
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[Rejection, ...]:
        """Computes the entries that are missing, in threads.

        Args:
            items: What will be needed.
            jobs: Threads, as in joblib: -1 for all cores; `joblib.parallel_config` chooses another engine.
            progress: Called with (done, total) after each item.

        Returns:
            A rejection, with its `item`, for each that cannot be read.
        """
        todo = list(items)
        found: list[Rejection] = []
        work = Parallel(n_jobs=jobs, prefer="threads", return_as="generator")
        for done, rejection in enumerate(work(delayed(self._prepare_one)(item) for item in todo), start=1):
            if rejection is not None:
                found.append(rejection)
            if progress is not None:
                progress(done, len(todo))
        return tuple(found)

    def _prepare_one(self, item: VolumeItem) -> Rejection | None:
        try:
            self.get(item)
        except DataError as error:
            step = "Export the files again, or leave the case out."
            return Rejection(item.path, "undecodable", str(error), step, files=item.files, item=item)
        return None

    def _paths(self, key: str) -> tuple[Path, Path]:
        return self.folder / f"{key}.npy", self.folder / f"{key}.json"

    def _write(self, key: str, array: NDArray[np.float16]) -> None:
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        data = buffer.getvalue()
        sidecar = {
            "format": FORMAT,
            "shape": list(array.shape),
            "dtype": str(array.dtype),
            "blake2b": _digest(data),
        }
        values, facts = self._paths(key)
        # The sidecar comes last: an entry without one is an interrupted write.
        atomic_write(values, data)
        atomic_write(facts, json.dumps(sidecar))
        self._verified.discard(key)

    def _read(self, key: str, item: VolumeItem) -> NDArray[np.float16] | None:
        """The entry, or None if it is absent or damaged. Checked once by each process."""
        values, facts = self._paths(key)
        if not facts.exists():
            return None
        try:
            if key not in self._verified:
                if json.loads(facts.read_text())["blake2b"] != _digest(values.read_bytes()):
                    raise ValueError("checksum")
                self._verified.add(key)
            array: NDArray[np.float16] = np.load(values, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, KeyError, TypeError):
            log.warning("The cache entry of case %r is damaged: it is computed again.", item.name)
            facts.unlink(missing_ok=True)
            return None
        return array


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
