"""`scan_folder`: every file of a folder becomes part of a volume or a rejection with a reason."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from medtl.errors import DataError
from medtl.scans.headers import DicomHeader, is_dicom, read_header
from medtl.scans.items import Catalog, Rejection, VolumeItem
from medtl.scans.plain import IMAGE_SUFFIXES, NIFTI_SUFFIXES, read_image_header, read_nifti_header
from medtl.scans.privacy import Identifiers
from medtl.scans.quiet import quiet_readers
from medtl.scans.series import Plan, plan_volumes

log = logging.getLogger(__name__)

MASK_FOLDER = re.compile(
    r"(masks?|labels?(tr|ts)?|segs?|segmentations?|annotations?|ground_?truths?|gt)", re.I
)
_MASK_STEM = re.compile(r".+[._-](masks?|segs?|segmentations?|labels?)", re.I)
FOREIGN = frozenset(
    {
        *(
            ".zip",
            ".tar",
            ".tgz",
            ".7z",
            ".rar",
            ".gz",
            ".nrrd",
            ".nhdr",
            ".mha",
            ".mhd",
            ".mgz",
            ".mgh",
            ".img",
        ),
        *(
            ".hdr",
            ".svs",
            ".ndpi",
            ".gif",
            ".webp",
            ".jp2",
            ".npy",
            ".npz",
            ".mat",
            ".h5",
            ".hdf5",
            ".avi",
            ".mp4",
        ),
        *(".czi", ".lif"),
    }
)
SUFFIX = re.compile(r"(\.nii\.gz|\.nii|\.dcm|\.dicom|\.ima|\.png|\.jpe?g|\.tiff?|\.bmp)$", re.I)


def scan_folder(path: Path, *, masks: Sequence[Path] = ()) -> Catalog:
    """Finds the volumes of a folder from headers alone.

    Args:
        path: A folder, or a single scan file.
        masks: Folders of masks: what they hold inside `path` is no scan, whatever it is called.

    Returns:
        Items in order of their names, and a rejection for everything else. Both are the same however the
        operating system lists the files.

    Raises:
        DataError: There is no such folder, it is an archive, or it cannot be listed.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(
            f"There is no folder {path.name!r}: check the path (relative to {Path.cwd().name!r})."
        )
    if path.is_file():
        if path.suffix.lower() in (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar") and not SUFFIX.search(
            path.name
        ):
            raise DataError(f"{path.name!r} is an archive, a folder of scans was expected: unpack it first.")
        root, files = path.parent, [path.name]
    else:
        root, files = path, sorted(walk(path))
    apart = [place for mask in masks if (place := _inside(root, Path(mask)))]
    with quiet_readers():
        return _catalog(root, files, apart)


def _inside(root: Path, folder: Path) -> str:
    """Relative path of a folder inside `root` with a slash behind it; empty if it is elsewhere, or the root."""
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
    headers: list[DicomHeader] = []
    items: list[VolumeItem] = []
    rejections: list[Rejection] = []
    for file in files:
        found = _look(root, file, apart)
        (
            headers
            if isinstance(found, DicomHeader)
            else items
            if isinstance(found, VolumeItem)
            else rejections
        ).append(
            found  # type: ignore[arg-type]
        )
    headers, doubles = _drop_same_instance(root, headers)
    items, copies = _drop_same_bytes(root, items)
    plans, refused = plan_volumes(headers)
    rejections += doubles + copies + refused
    identifiers = Identifiers()
    by_file = {header.file: header for header in headers}
    for header in headers:
        identifiers.add(header.patient_id, header.patient_name)
    items += _dicom_items(root, plans, identifiers)
    rejections = [_safe_rejection(r, by_file, identifiers) for r in rejections]
    items = _resolve_clashes(items)
    return Catalog(
        tuple(sorted(items, key=lambda item: (item.name, item.files))),
        tuple(sorted(rejections, key=lambda r: r.files)),
        identifiers,
    )


def _look(root: Path, file: str, apart: Sequence[str] = ()) -> DicomHeader | VolumeItem | Rejection:
    """Decides by name and first bytes what a file is, and reads its header."""
    pure = PurePosixPath(file)
    name = pure.name.lower()
    suffix = ".nii.gz" if name.endswith(".nii.gz") else pure.suffix.lower()
    try:
        with (root / file).open("rb") as handle:
            head = handle.read(132)
    except OSError as error:
        return Rejection(
            file, "unreadable", error.strerror or "it cannot be opened", "Check permissions.", (file,)
        )
    dicom = is_dicom(head, suffix)
    scan = dicom or suffix in NIFTI_SUFFIXES or suffix in IMAGE_SUFFIXES
    if name.startswith(".") or not scan:
        if suffix in FOREIGN and not name.startswith("."):
            step = "Convert it to NIfTI, DICOM or PNG; unpack archives."
            return Rejection(file, "unsupported_format", f"a {suffix[1:]} file", step, (file,))
        return Rejection(file, "not_a_scan", f"a {suffix[1:] or 'nameless'} file", "Nothing.", (file,))
    if not head:
        return Rejection(file, "truncated", "the file is empty", "Copy or export the file again.", (file,))
    stem = SUFFIX.sub("", pure.name)
    if any(file.startswith(folder) for folder in apart):
        return Rejection(file, "mask", "it lies in the masks' folder", "Nothing.", (file,))
    if any(MASK_FOLDER.fullmatch(part) for part in pure.parts[:-1]) or _MASK_STEM.fullmatch(stem):
        step = "Nothing if it is one; rename the file or folder if it is a scan."
        return Rejection(file, "mask", "its name or folder is one kept for masks", step, (file,))
    if dicom:
        return read_header(root, file)
    reader = read_nifti_header if suffix in NIFTI_SUFFIXES else read_image_header
    return reader(root, file, stem)


def _drop_same_instance(root: Path, headers: list[DicomHeader]) -> tuple[list[DicomHeader], list[Rejection]]:
    """Keeps the first file of each SOPInstanceUID; a damaged file never stands for a whole one."""
    kept: dict[str, DicomHeader] = {}
    order = sorted(headers, key=lambda h: (h.problem is not None, h.file))
    doubles: list[Rejection] = []
    for header in order:
        uid = header.sop_instance
        if uid is None or header.problem is not None:
            continue
        first = kept.setdefault(uid, header)
        if first is not header:
            same = _content(root / first.file) == _content(root / header.file)
            detail = (
                "the same file as another" if same else "the SOPInstanceUID of another file, with other bytes"
            )
            doubles.append(_duplicate(header.file, first.file, detail))
    dropped = {double.files[0] for double in doubles}
    return [h for h in headers if h.file not in dropped], doubles


def _drop_same_bytes(root: Path, items: list[VolumeItem]) -> tuple[list[VolumeItem], list[Rejection]]:
    """Keeps the first of byte-identical files; reads only files of equal size and start."""
    by_size: dict[int, list[VolumeItem]] = defaultdict(list)
    for item in items:
        by_size[(root / item.files[0]).stat().st_size].append(item)
    doubles: list[Rejection] = []
    for group in by_size.values():
        by_start: dict[bytes, list[VolumeItem]] = defaultdict(list)
        for item in group if len(group) > 1 else []:
            by_start[_content(root / item.files[0], 1 << 16)].append(item)
        for alike in by_start.values():
            first: dict[bytes, VolumeItem] = {}
            for item in alike if len(alike) > 1 else []:
                kept = first.setdefault(_content(root / item.files[0]), item)
                if kept is not item:
                    doubles.append(_duplicate(item.files[0], kept.files[0], "the same file as another"))
    dropped = {double.files[0] for double in doubles}
    return [item for item in items if item.files[0] not in dropped], doubles


def _content(path: Path, limit: int = -1) -> bytes:
    digest = hashlib.blake2b()
    with path.open("rb") as file:
        if limit >= 0:
            digest.update(file.read(limit))
        else:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.digest()


def _duplicate(file: str, kept: str, detail: str) -> Rejection:
    return Rejection(file, "duplicate", detail, "Nothing: the other one is used.", (file,), same_as=kept)


def _dicom_items(root: Path, plans: list[Plan], identifiers: Identifiers) -> list[VolumeItem]:
    """Names the planned volumes and drops what may not leave the header."""
    series_in_folder: dict[PurePosixPath, set[int]] = defaultdict(set)
    for number, plan in enumerate(plans):
        if len(plan.headers) > 1:
            series_in_folder[PurePosixPath(min(h.file for h in plan.headers)).parent].add(number)
    items = []
    for plan in plans:
        first = plan.headers[0]
        if len(plan.headers) == 1:
            path = first.file
            name = SUFFIX.sub("", PurePosixPath(path).name)
        else:
            folder = PurePosixPath(min(h.file for h in plan.headers)).parent
            path = str(folder)
            name = folder.name or root.resolve().name
            if len(series_in_folder[folder]) > 1:
                name += f"_{first.facts.get('series_number', '0')}"
        own = (first.patient_id, first.patient_name, first.study or "")
        facts = {**first.facts, **({"geometry": plan.note} if plan.note else {})}
        items.append(
            VolumeItem(
                root=root,
                files=tuple(h.file for h in plan.headers),
                kind="dicom",
                name=identifiers.safe_path(name, *own),
                path=identifiers.safe_path(path, *own),
                patient_id=first.patient_id,
                series_uid=first.series,
                shape=(len(plan.headers), first.rows, first.columns),
                channels=3 if first.samples == 3 or first.photometric == "PALETTE COLOR" else 1,
                affine=plan.affine,
                modality=first.modality,
                header=facts,
            )
        )
    return items


def _safe_rejection(
    rejection: Rejection, headers: dict[str, DicomHeader], identifiers: Identifiers
) -> Rejection:
    header = headers.get(rejection.files[0])
    own = (header.patient_id, header.patient_name, header.study or "") if header else (None, None, "")
    path = rejection.files[0]
    if len(rejection.files) > 1 and "/" in path:
        path = str(PurePosixPath(path).parent)
    owners = tuple(o for o in (header.patient_id, header.series) if o) if header else ()
    return replace(rejection, path=identifiers.safe_path(path, *own), owners=owners)


def _resolve_clashes(items: list[VolumeItem]) -> list[VolumeItem]:
    """Makes names unique: clashing ones become relative paths, numbered if those still clash."""
    counts = Counter(item.name for item in items)
    result: list[VolumeItem] = []
    taken: Counter[str] = Counter(name for name, count in counts.items() if count == 1)
    for item in sorted(items, key=lambda item: item.files):
        name = item.name
        if counts[name] > 1:
            name = SUFFIX.sub("", item.path) if len(item.files) == 1 else item.path
            base, number = name, 1
            while taken[name]:
                number += 1
                name = f"{base}_{number}"
            taken[name] += 1
        result.append(replace(item, name=name))
    return result
