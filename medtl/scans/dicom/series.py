"""Groups headers into volumes: which files belong together, in which order, and which cannot be used."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from medtl.scans.dicom.headers import PROJECTION, SLICED, DicomHeader
from medtl.scans.geometry import Irregular, dicom_affine, same_orientation, slice_normal, stack_slices
from medtl.scans.items import MAX_BYTES, NO_POSITION, Affine, Rejection

_LOST = ("truncated", "no_decoder")
_STEPS = {
    "four_d": "Convert the series to NIfTI with dcm2niix and give one volume.",
    "missing_slices": "Export the series again, or leave the case out.",
    "irregular_spacing": "Export one regular series, or resample it and give NIfTI.",
}


@dataclass(frozen=True)
class Plan:
    """The files of one volume in slice order, and its matrix; None for an image without a position."""

    headers: tuple[DicomHeader, ...]
    affine: Affine | None
    note: str = ""


def plan_volumes(headers: Iterable[DicomHeader]) -> tuple[list[Plan], list[Rejection]]:
    """Groups the headers of a folder into volumes.

    A SeriesInstanceUID does not define a volume: a series may hold several matrix sizes, echoes, b-values and
    captures. The files of a group must have one orientation and evenly spaced positions.

    Returns:
        Volumes, and rejections (with raw paths) of files and of whole groups of files.
    """
    plans: list[Plan] = []
    rejections: list[Rejection] = []
    groups: dict[tuple[object, ...], list[DicomHeader]] = defaultdict(list)
    for header in headers:
        groups[_group_key(header)].append(header)
    for group in groups.values():
        good = [h for h in group if h.problem is None]
        rejections += [h.problem for h in group if h.problem is not None]
        whole = {h.sop_instance for h in good} - {None}
        broken = [
            h.file
            for h in group
            if h.problem is not None and h.problem.code in _LOST and h.sop_instance not in whole
        ]
        if not good:
            continue
        result = _plan(good)
        if isinstance(result, Irregular) or (broken and len(good) + len(broken) > 1 and _stacks(good[0])):
            code, detail = (
                (result.code, result.detail) if isinstance(result, Irregular) else ("incomplete_series", "")
            )
            if broken:
                lost = f"{len(broken)} of the {len(good) + len(broken)} files of this series cannot be read"
                detail = f"{lost}; {detail}" if detail else lost
            step = _STEPS.get(code, "Export the series again.")
            files = tuple(h.file for h in good)
            rejections.append(Rejection(files[0], code, detail, step, files))
        else:
            plans += result
    return plans, rejections


def _stacks(header: DicomHeader) -> bool:
    return (
        header.modality not in PROJECTION and header.orientation is not None and header.position is not None
    )


def _group_key(header: DicomHeader) -> tuple[object, ...]:
    if header.series is None or header.modality in PROJECTION:
        return (header.file,)
    spacing = tuple(round(s, 4) for s in header.spacing or ())
    shape = (header.rows, header.columns, header.samples)
    return (
        header.study,
        header.series,
        header.frame_of_reference,
        header.modality,
        shape,
        spacing,
        header.splits,
    )


def _plan(group: list[DicomHeader]) -> list[Plan] | Irregular:
    """One volume from a group, or several single images if they have no place in a patient."""
    first = group[0]
    if not all(_stacks(h) for h in group):
        placed = sum(_stacks(h) for h in group)
        if len(group) > 1 and (placed or first.modality in SLICED):
            return Irregular("no_geometry", f"{len(group) - placed} of {len(group)} slices have no position")
        return [Plan((h,), None, NO_POSITION) for h in group]
    assert first.orientation is not None
    assert first.position is not None
    different = [h for h in group if not same_orientation(h.orientation or (), first.orientation)]
    if different:
        detail = f"{len(different)} of {len(group)} slices have another orientation than the first"
        return Irregular("mixed_orientation", detail)
    if first.rows * first.columns * first.samples * len(group) * 4 > MAX_BYTES:
        return Irregular("too_large", f"{len(group)} slices of {first.rows} x {first.columns} pixels")
    note = "" if first.spacing else "no pixel spacing: 1 mm assumed"
    spacing = first.spacing or (1.0, 1.0)
    try:
        slice_normal(first.orientation)
    except ValueError as error:
        return Irregular("bad_affine", str(error))
    if len(group) == 1:
        if first.slice_step is None:
            note = "no slice thickness: 1 mm assumed"
        return [
            Plan(
                (first,),
                dicom_affine(first.orientation, spacing, first.position, first.slice_step or 1.0),
                note,
            )
        ]
    stack = stack_slices(first.orientation, [h.position or () for h in group])
    if isinstance(stack, Irregular):
        return stack
    ordered = tuple(group[i] for i in stack.order)
    return [Plan(ordered, dicom_affine(first.orientation, spacing, stack.first, stack.step), note)]
