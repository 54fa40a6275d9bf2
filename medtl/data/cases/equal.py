"""What the voxels tell once they have been read: scans with equal pixels, without numbers, or of one grey value."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from medtl.data.cases.table import Case, CaseTable
from medtl.errors import DataError
from medtl.scans.items import Rejection

MOST_SHARED = 0.1
"""Up to this share of the target's scans (and always one) may be the source's: they are left out."""
_ORDER = ("train", "validation", "test")


def settle_equal(table: CaseTable, pixels: Mapping[str, Sequence[str]]) -> CaseTable:
    """Keeps scans with equal pixels from being on both sides of a comparison.

    A few that are in the source and in the target are left out of the target; of those in several splits of one domain,
    the first split keeps them. Other scans of several patients are only told.

    Args:
        table: the cases.
        pixels: digests of the voxels of each case, by its name; scans that share one are equal.

    Raises:
        DataError: more than `MOST_SHARED` of the target's scans are the source's, or a class has none left.
    """
    groups = [sorted(group, key=_rank) for group in _groups(table.select(), pixels)]
    if not groups:
        return table
    across = [
        (case, group[0])
        for group in groups
        if group[0].domain == "source"
        for case in group
        if case.domain == "target"
    ]
    _refuse_many(across, len(table.select(domain="target")))
    within = []
    for group in groups:
        for domain in ("source", "target"):
            own = [case for case in group if case.domain == domain]
            within += [(case, own[0]) for case in own if case.split != own[0].split]
    gone = {case.case for case, _ in across + within}
    left = [[case for case in group if case.case not in gone] for group in groups]
    patients = [group for group in left if len({case.patient for case in group}) > 1]
    # Labels of the target are for evaluation alone.
    sources = [[case for case in group if case.domain == "source"] for group in groups]
    unlike = [group for group in sources if len({case.label for case in group}) > 1]
    warnings = [
        *_told(across, "target scans are also in the source (equal pixels): they are left out of the target"),
        *_told(
            within, "scans are also in another split (equal pixels): they are left out of the later split"
        ),
        *(
            f"{len(group)} cases of several patients are one scan (equal pixels): {_named(group)}. Give them one "
            "patient in the labels' column patient, or take all but one out of the folder."
            for group in patients[:3]
        ),
        *(
            f"The labels of equal scans differ: {_named(group)}. Check which is right."
            for group in unlike[:3]
        ),
    ]
    kept = {case.case: _rejection(case, other) for case, other in within + across}
    rejections = list(kept.values())
    table = table.exclude(rejections) if rejections else table
    return replace(table, warnings=(*table.warnings, *warnings))


def voxel_warnings(missing: Iterable[Case], constant: Iterable[Case]) -> tuple[str, ...]:
    """Says which scans hold voxels without a number, and which show one grey value only."""
    return (
        *_by_site(missing, "hold values that are no numbers (NaN): these count as background"),
        *_by_site(
            constant, "have one grey value everywhere after preprocessing: nothing can be seen in them"
        ),
    )


def _by_site(cases: Iterable[Case], what: str) -> list[str]:
    sites: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        sites[case.site].append(case)
    return [f"{len(own)} scans of {site!r} {what} ({_named(own)})." for site, own in sites.items()]


def _rank(case: Case) -> tuple[bool, int, str]:
    return case.domain == "target", _ORDER.index(case.split), case.case


def _groups(cases: Sequence[Case], pixels: Mapping[str, Sequence[str]]) -> list[list[Case]]:
    """Cases that share a digest, directly or through others; at least two each."""
    group_of: dict[str, list[Case]] = {}
    for case in cases:
        digests = pixels.get(case.case, ())
        merged = [case]
        for other in {id(g): g for d in digests if (g := group_of.get(d)) is not None}.values():
            merged += other
        known = {d for c in merged for d in pixels.get(c.case, ())}
        group_of.update(dict.fromkeys(known, merged))
    return [group for group in {id(g): g for g in group_of.values()}.values() if len(group) > 1]


def _refuse_many(across: Sequence[tuple[Case, Case]], total: int) -> None:
    if not across or (len(across) <= max(1, MOST_SHARED * total) and len(across) < total):
        return
    shown = ", ".join(
        f"{case.case!r} of {case.site!r} is {kept.case!r} of {kept.site!r}" for case, kept in across[:3]
    )
    more = ", ..." if len(across) > 3 else ""
    raise DataError(
        f"{len(across)} of the {total} target scans are scans of the source with equal pixels ({shown}{more}): a "
        "result on them would not be one at another site. Take them out of one of the folders."
    )


def _told(pairs: Sequence[tuple[Case, Case]], what: str) -> list[str]:
    return [f"{len(pairs)} {what} ({_named([c for c, _ in pairs])})."] if pairs else []


def _named(cases: Sequence[Case]) -> str:
    return ", ".join(repr(c.case) for c in cases[:3]) + (", ..." if len(cases) > 3 else "")


def _rejection(case: Case, kept: Case) -> Rejection:
    files = case.item.files if case.item is not None else ()
    detail = f"case {case.case!r} has the pixels of case {kept.case!r} of {kept.site!r}"
    step = "Nothing: the other one is used."
    return Rejection(case.path, "duplicate", detail, step, files, item=case.item)
