"""The record of a run: what each of its files held when the run wrote it, so that a changed one is noticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from medtl.errors import CheckpointError
from medtl.files import atomic_write

RECORD = "record.json"


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Record:
    """Digests of files of a run, by their relative paths, in `record.json`.

    It notices files that were damaged, exchanged or edited. It proves nothing about who wrote the run: whoever can
    write the folder can write the record too.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def exists(self) -> bool:
        """Whether the run has one."""
        return (self._folder / RECORD).is_file()

    def add(self, digests: Mapping[Path, str]) -> None:
        """Takes in the digests of files of the run, as `digest_of` computes them."""
        found = self._read() if self.exists else {}
        found |= {self._name(path): digest for path, digest in digests.items()}
        atomic_write(self._folder / RECORD, json.dumps(found, indent=2, sort_keys=True) + "\n")

    def check(self, paths: Iterable[Path], *, complete: bool = True) -> None:
        """Compares files of the run with their digests; does nothing if the run has no record.

        Args:
            paths: the files that are about to be used.
            complete: whether the record must hold each of them; that of a stopped run may lack the last ones.

        Raises:
            CheckpointError: a file is not the one that the run wrote, or the record cannot be read.
        """
        if not self.exists:
            return
        known = self._read()
        for path in paths:
            digest = known.get(self._name(path))
            if digest is None and not complete:
                continue
            if digest != digest_of(path):
                raise CheckpointError(
                    f"{self._name(path)} is not the file that the run wrote: it was changed, exchanged or damaged. "
                    "Restore it from a copy of the run, or run again."
                )

    def _name(self, path: Path) -> str:
        return path.relative_to(self._folder).as_posix()

    def _read(self) -> dict[str, str]:
        try:
            found = json.loads((self._folder / RECORD).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(
                f"{RECORD} cannot be read ({type(error).__name__}). Restore it from a copy of the run."
            ) from error
        if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
            raise CheckpointError(f"{RECORD} is no record of a run. Restore it from a copy of the run.")
        return found
