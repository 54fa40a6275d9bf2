"""DICOM: series of files as volumes, single files as images, by their headers and positions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import ClassVar

import numpy as np

from medtl.scans.dicom.headers import SUFFIXES, DicomHeader, is_dicom, read_dicom_header
from medtl.scans.dicom.pixels import modality_values, padding_mask, read_dicom, stored_pixels
from medtl.scans.dicom.series import Plan, plan_volumes
from medtl.scans.items import Rejection, Volume, VolumeItem
from medtl.scans.reader import Found, PixelError, Reader, content, duplicate, without_suffix


class Dicom(Reader):
    """Scans as single-frame DICOM files; segmentations have their own reader."""

    kind: ClassVar[str] = "dicom"
    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES
    by_content: ClassVar[bool] = True
    masks: ClassVar[bool] = False
    display: ClassVar[bool] = True

    def sniff(self, head: bytes, name: str) -> bool:
        """Recognises DICOM by the preamble, or without one by the name."""
        return is_dicom(head, name)

    def items(self, root: Path, files: Sequence[str]) -> Found[VolumeItem]:
        """Groups files into volumes by their headers; of files with one SOPInstanceUID, uses the first intact one."""
        found: Found[VolumeItem] = Found()
        headers: list[DicomHeader] = []
        for file in files:
            header = read_dicom_header(root, file)
            if isinstance(header, Rejection):
                found.add(header)
            else:
                headers.append(header)
        headers, doubles = _drop_same_instance(root, headers)
        plans, refused = plan_volumes(headers)
        found.items = _named(root, plans)
        found.rejections += doubles + refused
        found.owners = {header.file: header.owner for header in headers}
        return found

    def read(self, item: VolumeItem) -> Volume:
        """Values after the modality transform, slice by slice; padding becomes a mask, MONOCHROME1 is inverted."""
        slices, masks, inverted = [], [], []
        for number, file in enumerate(item.files, start=1):
            try:
                dataset = read_dicom(item.root / file)
                if (dataset.get("Rows"), dataset.get("Columns")) != item.shape[1:]:
                    raise PixelError("its size is not the one found when the folder was scanned")
                stored = stored_pixels(dataset)
                if (stored.ndim == 3) != (item.channels == 3):
                    raise PixelError("grey and colour are mixed up between header and pixels")
                masks.append(padding_mask(dataset, stored))
                values, turned = modality_values(dataset, stored)
            except PixelError as error:
                where = f"file {number} of {len(item.files)}: " if len(item.files) > 1 else ""
                raise PixelError(where + str(error)) from None
            slices.append(values)
            inverted.append(turned)
        if len({bool(turned) for turned in inverted}) > 1:
            raise PixelError("its slices differ in photometric interpretation")
        # Slopes may differ from slice to slice, and with them the types: int16 and float32 together
        # become float32.
        array = np.stack(slices) if len(slices) > 1 else slices[0][None]
        if array.dtype not in (np.uint8, np.int16, np.float32):
            array = array.astype(np.float32)
        mask = None
        if any(m is not None for m in masks):
            empty = np.zeros(item.shape[1:], dtype=np.bool_)
            mask = np.stack([empty if m is None else m for m in masks])
        units = "HU" if item.modality == "CT" else "unknown"
        return Volume.of(item, array, mask, inverted=inverted[0], units=units)


def _drop_same_instance(root: Path, headers: list[DicomHeader]) -> tuple[list[DicomHeader], list[Rejection]]:
    """Keeps the first file of each SOPInstanceUID; a damaged file never replaces an intact one."""
    kept: dict[str, DicomHeader] = {}
    order = sorted(headers, key=lambda h: (h.problem is not None, h.file))
    doubles: list[Rejection] = []
    for header in order:
        uid = header.sop_instance
        if uid is None or header.problem is not None:
            continue
        first = kept.setdefault(uid, header)
        if first is not header:
            same = content(root / first.file) == content(root / header.file)
            detail = (
                "the same file as another" if same else "the SOPInstanceUID of another file, with other bytes"
            )
            doubles.append(duplicate(header.file, first.file, detail))
    dropped = {double.files[0] for double in doubles}
    return [h for h in headers if h.file not in dropped], doubles


def _named(root: Path, plans: Sequence[Plan]) -> list[VolumeItem]:
    """Names the planned volumes: a file by its stem, a series by its folder."""
    series_in_folder: dict[PurePosixPath, set[int]] = defaultdict(set)
    for number, plan in enumerate(plans):
        if len(plan.headers) > 1:
            series_in_folder[PurePosixPath(min(h.file for h in plan.headers)).parent].add(number)
    items = []
    for plan in plans:
        first = plan.headers[0]
        if len(plan.headers) == 1:
            path = first.file
            name = without_suffix(PurePosixPath(path).name)
        else:
            folder = PurePosixPath(min(h.file for h in plan.headers)).parent
            path = str(folder)
            name = folder.name or root.resolve().name
            if len(series_in_folder[folder]) > 1:
                name += f"_{first.facts.get('series_number', '0')}"
        facts = {**first.facts, **({"geometry": plan.note} if plan.note else {})}
        items.append(
            VolumeItem(
                root=root,
                files=tuple(h.file for h in plan.headers),
                kind="dicom",
                name=name,
                path=path,
                patient_id=first.owner.patient_id,
                series_uid=first.series,
                shape=(len(plan.headers), first.rows, first.columns),
                channels=3 if first.samples == 3 or first.photometric == "PALETTE COLOR" else 1,
                affine=plan.affine,
                modality=first.modality,
                header=facts,
            )
        )
    return items
