"""`scan_folder`: every file of a folder becomes part of a volume or a rejection with a reason."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from medtl.errors import DataError
from medtl.scans.items import Catalog, Rejection, VolumeItem
from medtl.scans.privacy import Identifiers
from medtl.scans.quiet import quiet_readers
from medtl.scans.reader import AGAIN, HEAD_BYTES, Owner, Reader, readers, suffix_of, without_suffix

log = logging.getLogger(__name__)

MASK_FOLDER = re.compile(
    r"(masks?|labels?(tr|ts)?|segs?|segmentations?|annotations?|ground_?truths?|gt)", re.I
)
_MASK_STEM = re.compile(r".+[._-](masks?|segs?|segmentations?|labels?)", re.I)
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")
FOREIGN = frozenset(
    (
        *_ARCHIVES,
        *(".nrrd", ".nhdr", ".mha", ".mhd", ".mgz", ".mgh", ".img", ".hdr", ".svs", ".ndpi", ".czi", ".lif"),
        *(".gif", ".webp", ".jp2", ".npy", ".npz", ".mat", ".h5", ".hdf5", ".avi", ".mp4"),
    )
)
"""Suffixes of images and archives that no reader takes; rejections name them as such."""


def scan_folder(path: Path, *, masks: Sequence[Path] = ()) -> Catalog:
    """Finds the volumes of a folder from headers alone.

    Args:
        path: A folder, or a single scan file.
        masks: Folders of masks: files of theirs inside `path` are not scans, whatever their names.

    Returns:
        Items in order of their names, and a rejection for everything else. Neither depends on the order in which the
        operating system lists files.

    Raises:
        DataError: There is no such folder, it is an archive, or it cannot be listed.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(
            f"There is no folder {path.name!r}: check the path (relative to {Path.cwd().name!r})."
        )
    if path.is_file():
        if suffix_of(path.name) in _ARCHIVES:
            raise DataError(f"{path.name!r} is an archive, a folder of scans was expected: unpack it first.")
        root, files = path.parent, [path.name]
    else:
        root, files = path, sorted(walk(path))
    apart = [place for mask in masks if (place := _inside(root, Path(mask)))]
    with quiet_readers():
        return _catalog(root, files, apart)


def _inside(root: Path, folder: Path) -> str:
    """Relative path of a folder inside `root`, with a trailing slash; empty if it is elsewhere, or the root."""
    try:
        place = folder.resolve().relative_to(root.resolve()).as_posix()
    except ValueError:
        return ""
    return "" if place == "." else f"{place}/"


def walk(root: Path) -> Iterator[str]:
    """Relative paths of all files; links are followed, each folder is entered once."""
    seen: set[tuple[int, int]] = set()
    stack = [root]
    while stack:
        folder = stack.pop()
        try:
            status = folder.stat()
            entries = list(os.scandir(folder))
        except OSError as error:
            name = "this folder" if folder == root else "a folder inside it"
            raise DataError(
                f"{name} cannot be listed ({error.strerror}): {root.name!r}. Check its permissions."
            ) from None
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in entries:
            if entry.is_dir():
                stack.append(Path(entry.path))
            else:
                yield Path(entry.path).relative_to(root).as_posix()


def _catalog(root: Path, files: list[str], apart: Sequence[str]) -> Catalog:
    items: list[VolumeItem] = []
    rejections: list[Rejection] = []
    owners: dict[str, Owner] = {}
    parts: dict[Reader, list[str]] = defaultdict(list)
    for file in files:
        looked = _look(root, file, apart)
        if isinstance(looked, Rejection):
            rejections.append(looked)
        else:
            parts[looked].append(file)
    for reader, part in parts.items():
        found = reader.items(root, part)
        items += found.items
        rejections += found.rejections
        owners |= found.owners
    identifiers = Identifiers()
    for owner in owners.values():
        identifiers.add(owner.patient_id, owner.patient_name)
    items = _resolve_clashes([_safe_item(item, owners, identifiers) for item in items])
    rejections = [_safe_rejection(r, owners, identifiers) for r in rejections]
    return Catalog(
        tuple(sorted(items, key=lambda item: (item.name, item.files))),
        tuple(sorted(rejections, key=lambda r: r.files)),
        identifiers,
    )


def _look(root: Path, file: str, apart: Sequence[str] = ()) -> Reader | Rejection:
    """Finds the reader of a file by its name and first bytes."""
    pure = PurePosixPath(file)
    name = pure.name.lower()
    try:
        with (root / file).open("rb") as handle:
            head = handle.read(HEAD_BYTES)
    except OSError as error:
        return Rejection.of(file, "unreadable", error.strerror or "it cannot be opened", "Check permissions.")
    reader = next((r for r in readers() if r.scans and r.sniff(head, name)), None)
    if name.startswith(".") or reader is None:
        suffix = suffix_of(name)
        if suffix in FOREIGN and not name.startswith("."):
            step = "Convert it to NIfTI, DICOM or PNG; unpack archives."
            return Rejection.of(file, "unsupported_format", f"a {suffix[1:]} file", step)
        return Rejection.of(file, "not_a_scan", f"a {suffix[1:] or 'nameless'} file", "Nothing.")
    if not head:
        return Rejection.of(file, "truncated", "the file is empty", AGAIN)
    if any(file.startswith(folder) for folder in apart):
        return Rejection.of(file, "mask", "it lies in the masks' folder", "Nothing.")
    stem = without_suffix(pure.name)
    if any(MASK_FOLDER.fullmatch(part) for part in pure.parts[:-1]) or _MASK_STEM.fullmatch(stem):
        step = "Nothing if it is one; rename the file or folder if it is a scan."
        return Rejection.of(file, "mask", "its name or folder is one kept for masks", step)
    return reader


def _safe_item(item: VolumeItem, owners: Mapping[str, Owner], identifiers: Identifiers) -> VolumeItem:
    """The item with a name and path that do not identify the patient named in the header."""
    owner = owners.get(item.files[0])
    if owner is None:
        return item
    name, path = (identifiers.safe_path(text, *owner[:3]) for text in (item.name, item.path))
    return replace(item, name=name, path=path)


def _safe_rejection(rejection: Rejection, owners: Mapping[str, Owner], identifiers: Identifiers) -> Rejection:
    owner = owners.get(rejection.files[0], Owner())
    path = rejection.files[0]
    if len(rejection.files) > 1 and "/" in path:
        path = str(PurePosixPath(path).parent)
    known = tuple(o for o in (owner.patient_id, owner.series) if o)
    return replace(rejection, path=identifiers.safe_path(path, *owner[:3]), owners=known)


def _resolve_clashes(items: list[VolumeItem]) -> list[VolumeItem]:
    """Makes names unique: clashing names become relative paths, with numbers if these still clash."""
    counts = Counter(item.name for item in items)
    result: list[VolumeItem] = []
    taken: Counter[str] = Counter(name for name, count in counts.items() if count == 1)
    for item in sorted(items, key=lambda item: item.files):
        name = item.name
        if counts[name] > 1:
            name = without_suffix(item.path) if len(item.files) == 1 else item.path
            base, number = name, 1
            while taken[name]:
                number += 1
                name = f"{base}_{number}"
            taken[name] += 1
        result.append(replace(item, name=name))
    return result
