"""`scan_folder`: every file of a folder becomes part of a volume or a rejection with a reason."""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path, PurePosixPath

from medtl.errors import DataError
from medtl.scans.items import Catalog, Rejection, VolumeItem
from medtl.scans.privacy import Identifiers, Owner
from medtl.scans.quiet import quiet_readers
from medtl.scans.reader import AGAIN, HEAD_BYTES, Reader, readers, suffix_of, without_suffix

log = logging.getLogger(__name__)

MASK_FOLDER = re.compile(
    r"(masks?|labels?(tr|ts)?|segs?|segmentations?|annotations?|ground_?truths?|gt)", re.I
)
_MASK_STEM = re.compile(r".+[._-](masks?|segs?|segmentations?|labels?)", re.I)
_LOST = ("unreadable", "truncated")
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
        Items in the order of `VolumeItem.order`, and a rejection for everything else. Neither depends on the order in
        which the operating system lists files.

    Raises:
        DataError: There is no such folder, it is an archive, or it cannot be listed.
    """
    path = Path(path)
    if not os.path.exists(path):  # Path.exists raises an error below a folder that may not be entered
        raise DataError(
            f"There is no folder {path.name!r}: check the path (relative to {Path.cwd().name!r})."
        )
    root, files, odd = path, [path.name], list[Rejection]()
    if path.is_file():
        if suffix_of(path.name) in _ARCHIVES:
            raise DataError(f"{path.name!r} is an archive, a folder of scans was expected: unpack it first.")
        root = path.parent
    else:
        files, odd = walk(path)
    apart = [place for mask in masks if (place := _inside(root, Path(mask)))]
    with quiet_readers():
        return _catalog(root, files, odd, apart)


def _inside(root: Path, folder: Path) -> str:
    """Relative path of a folder inside `root`, with a trailing slash; empty if it is elsewhere, or the root."""
    try:
        place = folder.resolve().relative_to(root.resolve()).as_posix()
    except (ValueError, OSError, RuntimeError):  # elsewhere, or links that lead in a circle
        return ""
    return "" if place == "." else f"{place}/"


def walk(root: Path) -> tuple[list[str], list[Rejection]]:
    """Relative paths of all files, sorted; and a rejection for what is neither a file nor a folder that can be listed.

    Links are followed, each folder is entered once. Nothing but regular files is ever opened: reading a pipe would wait
    for somebody to write into it.

    Raises:
        DataError: the folder itself cannot be listed.
    """
    seen: set[tuple[int, int]] = set()
    files: list[str] = []
    odd: list[Rejection] = []
    above = frozenset(root.resolve().parents)
    stack = [root]
    while stack:
        folder = stack.pop()
        try:
            status = folder.stat()
            entries = list(os.scandir(folder))
        except OSError as error:
            if folder == root:
                why = f"this folder cannot be listed ({error.strerror}): {root.name!r}"
                raise DataError(f"{why}. Check its permissions.") from None
            odd.append(_unlisted(folder.relative_to(root).as_posix(), error))
            continue
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        if status.st_dev in _system() and folder != root:
            name = folder.relative_to(root).as_posix()
            odd.append(
                Rejection.of(name, "not_a_scan", "a folder of the operating system", "Remove the link.")
            )
            continue
        for entry in entries:
            file = Path(entry.path).relative_to(root).as_posix()
            found = _kind(file, entry, above)
            if isinstance(found, Rejection):
                odd.append(found)
            elif found:
                stack.append(Path(entry.path))
            else:
                files.append(file)
    return sorted(files), odd


@cache
def _system() -> frozenset[int]:
    """Devices whose files are no stored data: reading some of them never ends."""
    return frozenset(os.stat(folder).st_dev for folder in ("/proc", "/sys") if os.path.exists(folder))


def _unlisted(folder: str, error: OSError) -> Rejection:
    why = f"a folder that cannot be listed ({error.strerror or 'read error'})"
    step = "Shorten its path." if error.errno == errno.ENAMETOOLONG else "Check its permissions."
    return Rejection.of(folder, "unreadable", why, step)


def _kind(file: str, entry: os.DirEntry[str], above: Collection[Path]) -> bool | Rejection:
    """Whether an entry is a folder, and not a file; or why it is neither."""
    try:
        if entry.is_dir():
            if entry.is_symlink() and Path(entry.path).resolve() in above:
                why = "a link to a folder that this one lies in"
                return Rejection.of(file, "not_a_scan", why, "Remove the link.")
            return True
        if entry.is_file():
            return False
        mode = entry.stat().st_mode
    except (OSError, RuntimeError) as error:  # a broken link, or links that lead in a circle
        why = (error.strerror if isinstance(error, OSError) else None) or "it cannot be opened"
        return Rejection.of(file, "unreadable", why, "Check the link and its permissions.")
    what = "a named pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
    return Rejection.of(file, "not_a_scan", f"{what}, not a file", "Nothing.")


def _catalog(root: Path, files: list[str], odd: Sequence[Rejection], apart: Sequence[str]) -> Catalog:
    items: list[VolumeItem] = []
    rejections = list(odd)
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
    items = _doubted(items, [r for r in rejections if r.code in _LOST and r.files[0] not in owners])
    for item in items:
        if item.patient_id is not None:
            owners.setdefault(item.files[0], Owner(item.patient_id))
    identifiers = Identifiers()
    for owner in dict.fromkeys(owner._replace(series=None) for owner in owners.values()):
        identifiers.add(owner)
    items = _resolve_clashes([_safe_item(item, owners, identifiers) for item in items])
    rejections = [_safe_rejection(r, owners, identifiers) for r in rejections]
    return Catalog(
        tuple(sorted(items, key=lambda item: item.order)),
        tuple(sorted(rejections, key=lambda r: r.files)),
        identifiers,
    )


def _doubted(items: Sequence[VolumeItem], lost: Sequence[Rejection]) -> list[VolumeItem]:
    """The items, with a doubt on each series beside which lie files of its kind that cannot be opened."""
    beside = Counter(_kindred(r.files[0]) for r in lost)
    result = []
    for item in items:
        number = beside[_kindred(item.files[0])] if len(item.files) > 1 else 0
        if number:
            files, slices = "1 file" if number == 1 else f"{number} files", len(item.files)
            doubt = f"{files} beside its {slices} slices cannot be opened: slices may be missing"
            item = replace(item, header={**item.header, "doubt": doubt})
        result.append(item)
    return result


def _kindred(file: str) -> tuple[str, str]:
    """Folder and suffix of a file; the numbers of slices (`IM.0001`) are no suffix."""
    suffix = suffix_of(file)
    return str(PurePosixPath(file).parent), "" if suffix[1:].isdigit() else suffix


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


def printable(path: str) -> str:
    r"""A path that every table and terminal can show: bytes that are no UTF-8 and control characters as `%FF`.

    Example:
        >>> printable("new\nline.png")
        'new%0Aline.png'
    """
    if path.isprintable():
        return path
    return "".join(
        "".join(f"%{byte:02X}" for byte in ch.encode(errors="surrogateescape"))
        if unicodedata.category(ch)[0] == "C"
        else ch
        for ch in path
    )


def _safe_item(item: VolumeItem, owners: Mapping[str, Owner], identifiers: Identifiers) -> VolumeItem:
    """The item with a name and path that identify nobody."""
    owner = owners.get(item.files[0])
    name, path = (identifiers.safe_path(text, owner) for text in (item.name, item.path))
    hidden = (name, path) != (item.name, item.path)
    return replace(item, name=printable(name), path=printable(path), hidden=hidden)


def _safe_rejection(rejection: Rejection, owners: Mapping[str, Owner], identifiers: Identifiers) -> Rejection:
    owner = owners.get(rejection.files[0], Owner())
    path = rejection.files[0]
    if len(rejection.files) > 1 and "/" in path:
        path = str(PurePosixPath(path).parent)
    known = tuple(o for o in (owner.patient_id, owner.series) if o)
    return replace(rejection, path=printable(identifiers.safe_path(path, owner)), owners=known)


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
