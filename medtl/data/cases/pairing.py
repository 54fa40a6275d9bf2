"""Pairs masks with scans by series, path, name or folder, and lists those that cannot be paired."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from medtl.errors import DataError
from medtl.scans.alignment import Mismatch, Reorder, reorder
from medtl.scans.catalog import MASK_FOLDER
from medtl.scans.items import MASK_CODES, Catalog, MaskItem, Rejection, VolumeItem
from medtl.scans.masks import safe_mask, scan_masks
from medtl.scans.privacy import Identifiers, Owner
from medtl.scans.reader import without_suffix

_WORD = r"(?:masks?|segs?|segmentations?|labels?|labelmap|annotations?|ground_?truth|gt|rois?)"
_MASK_ENDS = re.compile(rf"^{_WORD}[._-]+|[._-]+{_WORD}$", re.I)
_MASK_WORD = re.compile(_WORD, re.I)
_SCAN_ENDS = re.compile(r"^(?:image|img|scan)[._-]+|[._-]+(?:image|img|scan|volume)$|_0000$", re.I)
_SCAN_FOLDER = re.compile(r"(images?|imgs?|scans?|volumes?|dicom|nifti)(tr|ts|val|train|test)?", re.I)

Place = tuple[str, int]
"""Site, and index among the items of its catalogue."""


@dataclass
class Pairs:
    """The result of pairing.

    Attributes:
        masks: the mask of each scan that has one on its own voxel grid.
        refused: scans whose mask cannot be used, and why.
        folders: the mask folders that each site's masks may lie in.
    """

    masks: dict[Place, MaskItem] = field(default_factory=dict)
    refused: dict[Place, Rejection] = field(default_factory=dict)
    folders: dict[str, list[Path]] = field(default_factory=dict)


def pair_masks(
    folders: Sequence[Path],
    roots: Mapping[str, Path],
    catalogs: Mapping[str, Catalog],
    faults: list[str],
    warnings: list[str],
    *,
    flag: str = "",
) -> Pairs:
    """Finds the mask of each scan of these sites.

    A folder inside a site's folder belongs to that site. If there are as many other folders as remaining sites,
    they belong to these sites in order; otherwise all of them are searched for every site. Within a folder, a
    mask belongs to the scan of the same series (DICOM SEG), else of the same relative path, else of the same
    name, else of the same folder. If the full names match nothing, words such as `_seg`, `mask_` and `_0000` are
    ignored.

    Args:
        folders: folders of masks, or single files.
        roots: each site's folder.
        catalogs: the catalogue of each folder.
        faults: receives the reasons why the masks cannot be used as given.
        warnings: receives what is left out, with counts and an example.
        flag: follows the name of a folder in messages.
    """
    pairs = Pairs()
    claims: dict[Place, list[MaskItem]] = defaultdict(list)
    assumed: list[str] = []
    for folder, sites in _bind(folders, roots, faults):
        for site in sites:
            pairs.folders.setdefault(site, []).append(folder)
        own = {site: catalogs[site] for site in sites if site in catalogs}
        identifiers = Identifiers()
        for catalog in own.values():
            identifiers.update(catalog.identifiers)
        skip = {path for site in own for path in _scans(folder, roots[site], own[site])}
        try:
            items, rejections = scan_masks(folder, skip=skip, identifiers=identifiers)
        except DataError as error:
            faults.append(str(error).rstrip("."))
            continue
        for catalog in own.values():  # a DICOM SEG names its patient too
            catalog.identifiers.update(identifiers)
        inside = len(sites) == 1 and folder.resolve().is_relative_to(roots[sites[0]].resolve())
        name = f"{sites[0]}/{folder.resolve().name}" if inside else f"{folder.resolve().name}{flag}"
        _claim(name, items, rejections, own, roots, claims, pairs, faults, warnings)
    several = {place: found for place, found in claims.items() if len(found) > 1}
    if several:
        (site, index), found = min(several.items())
        listed = " and ".join(repr(mask.path) for mask in found[:2])
        faults.append(
            f"{_count(len(several), 'scan has', 'scans have')} more than one mask (case "
            f"{catalogs[site].items[index].name!r} of {site!r}: {listed}): leave one for each scan, with all structures"
        )
    for (site, index), found in claims.items():
        item = catalogs[site].items[index]
        way = reorder(found[0], item)
        if isinstance(way, Mismatch):
            detail = f"mask {found[0].path!r}: {way.detail}"
            pairs.refused[site, index] = Rejection(
                item.path, "mask_geometry", detail, way.next_step, item.files, item=item
            )
            continue
        if way.assumed:
            assumed.append(item.name)
        pairs.masks[site, index] = found[0]
        pairs.refused.pop((site, index), None)
    if assumed:
        warnings.append(
            f"{_count(len(assumed), 'mask lies', 'masks lie')} on scans by shape alone, since one of the two files has "
            f"no place in the patient (for example case {assumed[0]!r}): look at them before trusting the result."
        )
    return pairs


def _bind(
    folders: Sequence[Path], roots: Mapping[str, Path], faults: list[str]
) -> list[tuple[Path, tuple[str, ...]]]:
    """Decides which sites each folder of masks is for."""
    resolved: dict[Path, Path] = {}
    for folder in map(Path, folders):
        if folder.resolve() in resolved:
            faults.append(f"the masks folder {folder.resolve().name!r} is given twice")
        resolved[folder.resolve()] = folder
    inside = {
        place: site
        for place in resolved
        for site, root in roots.items()
        if place != root.resolve() and place.is_relative_to(root.resolve())
    }
    taken = set(inside.values())
    left = [site for site in roots if site not in taken]
    outside = [place for place in resolved if place not in inside]
    in_order = dict(zip(outside, left, strict=True)) if len(outside) == len(left) else {}
    return [
        (
            folder,
            (inside[place],)
            if place in inside
            else (in_order[place],)
            if place in in_order
            else tuple(left or roots),
        )
        for place, folder in resolved.items()
    ]


def _scans(folder: Path, root: Path, catalog: Catalog) -> Iterable[Path]:
    """The files of a site that are not masks, for a masks folder that contains the site itself."""
    root = root.resolve()
    if not root.is_relative_to(folder.resolve()):
        return ()
    others = [r.files for r in catalog.rejections if r.code != "mask"]
    files = [file for item in catalog.items for file in item.files] + [f for r in others for f in r]
    return [(root / file).resolve() for file in files]


def _claim(
    folder: str,
    items: Sequence[MaskItem],
    rejections: Sequence[Rejection],
    catalogs: Mapping[str, Catalog],
    roots: Mapping[str, Path],
    claims: dict[Place, list[MaskItem]],
    pairs: Pairs,
    faults: list[str],
    warnings: list[str],
) -> None:
    """Pairs the masks of one folder with scans and reports those that were not paired."""
    scans = _index({site: catalog.items for site, catalog in catalogs.items()}, roots)
    left_out = _index({site: catalog.rejections for site, catalog in catalogs.items()}, roots)
    unpaired: list[str] = []
    unclear: list[str] = []
    lost: Counter[str] = Counter()
    joined = 0
    for mask in items:
        found = _find(mask, scans)
        if len(found) > 1 and mask.affine is not None:
            # Several volumes of one series, or names that clash: the place in the patient tells them apart.
            found = [
                p for p in found if isinstance(reorder(mask, catalogs[p[0]].items[p[1]]), Reorder)
            ] or found
        if len(found) == 1:
            site, index = found[0]
            item = catalogs[site].items[index]
            # Now that the scan is known, its patient's id is searched for in every part of the mask's path.
            own = safe_mask(mask, catalogs[site].identifiers, Owner(item.patient_id))
            claims[found[0]].append(own)
            joined += 1
        elif found:
            unclear.append(mask.path)
        elif behind := _find(mask, left_out):
            lost[catalogs[behind[0][0]].rejections[behind[0][1]].code] += 1
        else:
            unpaired.append(mask.path)
    alone = _refuse(rejections, scans, catalogs, pairs)
    names = [item.name for catalog in catalogs.values() for item in catalog.items]
    if not items and not rejections:
        faults.append(f"the masks folder {folder!r} holds no mask (NIfTI, PNG, TIFF, BMP or DICOM SEG)")
    elif items and not joined and not lost and not unclear and names:
        faults.append(
            f"none of the {len(items)} masks of {folder!r} belongs to a scan: a mask is named like its scan; the masks "
            f"are {_examples([m.path for m in items])}, the scans {_examples(names)}"
        )
        return
    if unclear:
        faults.append(
            f"{_count(len(unclear), 'mask', 'masks')} of {folder!r} could belong to several scans, for example "
            f"{unclear[0]!r}: give masks the scans' paths, or one masks folder for each site"
        )
    if unpaired:
        warnings.append(
            f"{len(unpaired)} of {len(items)} masks of {folder!r} belong to no scan and are left out, for example "
            f"{unpaired[0]!r}."
        )
    if lost:
        what = ", ".join(f"{count} {code}" for code, count in sorted(lost.items()))
        warnings.append(
            f"{sum(lost.values())} masks of {folder!r} belong to scans that were left out ({what})."
        )
    if alone:
        first = alone[0]
        warnings.append(
            f"{_count(len(alone), 'file', 'files')} of {folder!r} cannot be used as a mask, for example "
            f"{first.path!r}: {first.detail}. {first.next_step}"
        )


def _refuse(
    rejections: Sequence[Rejection],
    scans: Index,
    catalogs: Mapping[str, Catalog],
    pairs: Pairs,
) -> list[Rejection]:
    """Refuses the scans whose masks cannot be used, and returns the files that belong to no scan or to several."""
    alone: list[Rejection] = []
    for rejection in rejections:
        stand_in = MaskItem(Path(), rejection.files, "image", "", rejection.path)
        found = _find(stand_in, scans)
        if len(found) != 1:
            alone.append(rejection)
            continue
        site, index = found[0]
        item = catalogs[site].items[index]
        code = rejection.code if rejection.code in MASK_CODES else "mask_unreadable"
        path = catalogs[site].identifiers.safe_path(rejection.path, Owner(item.patient_id))
        detail = f"mask {path!r}: {rejection.detail}"
        pairs.refused[site, index] = Rejection(
            item.path, code, detail, rejection.next_step, item.files, item=item
        )
    return alone


_LEVELS = ("series", "path", "plain path", "stem", "plain stem", "folder")
Index = dict[str, dict[str, set[Place]]]


def _index(things: Mapping[str, Sequence[VolumeItem | Rejection]], roots: Mapping[str, Path]) -> Index:
    """Indexes scans by everything that a mask's name can match, from the most to the least specific."""
    index: Index = {level: defaultdict(set) for level in _LEVELS}
    for site, found in things.items():
        folders: dict[str, set[Place]] = defaultdict(set)
        root = roots[site].resolve().name
        for number, thing in enumerate(found):
            if isinstance(thing, Rejection) and thing.code in ("mask", "not_a_scan", "unsupported_format"):
                continue
            place = (site, number)
            path = _scan_path(thing)
            for uid in [thing.series_uid] if isinstance(thing, VolumeItem) else thing.owners:
                index["series"][uid or ""].add(place)
            for text in (path, f"{root}/{path}"):
                index["path"][text].add(place)
                index["plain path"][_plain_path(text, _SCAN_ENDS)].add(place)
            stem = PurePosixPath(path).name
            index["stem"][stem].add(place)
            if isinstance(thing, VolumeItem) and len(thing.files) > 1:
                index["stem"][thing.name].add(place)
            index["plain stem"][_plain(stem, _SCAN_ENDS)].add(place)
            folders[_folders(path)].add(place)
            if len(thing.files) > 1:
                folders[_folders(f"{path}/")].add(place)
        for folder, places in folders.items():
            for text in (folder, f"{root.casefold()}/{folder}"):
                index["folder"][text] |= places
    return index


def _find(mask: MaskItem, index: Index) -> list[Place]:
    """The scans that match a mask's series, path or name, by the most specific of these that matches any."""
    path = without_suffix(mask.files[0])
    stem, folder = PurePosixPath(path).name, _folders(path)
    keys = {
        "series": mask.series_uid or "",
        "path": path,
        "plain path": _plain_path(path, _MASK_ENDS),
        "stem": stem,
        "plain stem": _plain(stem, _MASK_ENDS),
        # `case1/mask.nii.gz`, `case1/case1_seg.nii.gz`: the folder names the case.
        "folder": folder
        if _MASK_WORD.fullmatch(stem) or _plain(stem, _MASK_ENDS) == folder.split("/")[-1]
        else "",
    }
    candidates: set[Place] = set()
    for level in _LEVELS:
        found = index[level].get(keys[level], set()) if keys[level] else set()
        # A later level may resolve what an earlier one leaves ambiguous.
        candidates = (candidates & found or candidates) if candidates else set(found)
        if len(candidates) == 1:
            break
    return sorted(candidates)


def _scan_path(thing: VolumeItem | Rejection) -> str:
    """Raw relative path without suffix: of the file, or of the folder of a series."""
    if len(thing.files) == 1:
        return without_suffix(thing.files[0])
    return str(PurePosixPath(min(thing.files)).parent)


def _plain(stem: str, ends: re.Pattern[str]) -> str:
    """The stem without words for the kind of file, such as "mask"."""
    return (ends.sub("", stem) or stem).casefold()


def _plain_path(path: str, ends: re.Pattern[str]) -> str:
    """The path without words and folders for the kind of file."""
    folders = _folders(path)
    stem = _plain(PurePosixPath(path).name, ends)
    return f"{folders}/{stem}" if folders else stem


def _folders(path: str) -> str:
    """Folders of a file, without those that only say what kind of files they hold; of `a/b/` all parts."""
    parts = [part for part in path.split("/")[:-1] if part not in ("", ".")]
    return "/".join(
        part.casefold() for part in parts if not (_SCAN_FOLDER.fullmatch(part) or MASK_FOLDER.fullmatch(part))
    )


def _examples(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
