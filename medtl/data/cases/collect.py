"""Builds cases from scans, labels, patients, sites and splits; reports all faults at once."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medtl.data.cases.labels import LabelRow, line_numbers, match_rows, of_sites, read_labels
from medtl.data.cases.masks import Joined, join_masks
from medtl.data.cases.splits import confounding, split_patients
from medtl.data.cases.table import COLUMNS, Case, CaseTable
from medtl.errors import ConfigError, DataError, near_matches
from medtl.pseudonyms import pseudonyms
from medtl.scans.catalog import scan_folder
from medtl.scans.items import NO_POSITION, Catalog, MaskItem, Rejection, VolumeItem
from medtl.scans.privacy import Identifiers, site_names
from medtl.scans.reader import without_suffix

__all__ = ["COLUMNS", "Case", "CaseTable", "collect_cases"]

ONE_PATIENT = 5
"""If a source has this many cases and one patient id, an anonymiser has set the id to a constant."""


@dataclass
class _Draft:
    """A case under construction; `key` identifies the patient and is never shown."""

    item: VolumeItem
    site: str
    domain: str
    rows: list[LabelRow]
    key: str = field(default="", repr=False)
    label: str | None = None
    mask: MaskItem | None = None
    reason: str = ""
    split: str = ""


def collect_cases(
    *,
    source: Sequence[Path],
    labels: Path | None = None,
    target: Path | None = None,
    target_labels: Path | None = None,
    classes: Sequence[str] | None = None,
    masks: Sequence[Path] = (),
    target_masks: Path | None = None,
    structures: Sequence[str] = (),
    few_labels: Path | None = None,
    sites: Sequence[str] = (),
    val_fraction: float = 0.25,
    test_fraction: float = 0.0,
    seed: int = 0,
) -> CaseTable:
    """Scans the folders, joins labels or masks and patients, and splits the sources by patient.

    Source cases without a label or a usable mask, or with a label that is not in `classes`, are excluded.
    Target cases are all used, in the split `test`: their labels and masks reach evaluation alone and decide
    nothing here, so a target label that is not in `classes` is dropped with a warning. The cases of `few_labels` are in
    the split `train`, and no other case of their patients is used.

    With `masks` or `structures` the task is segmentation: the classes are the background and the structures.

    Args:
        source: One folder a site.
        labels: Labels of the sources. Segmentation only takes patients and groups from it, also for the target unless
            cases of both have the same names.
        target: Folder of the target site.
        target_labels: Labels of the target, for evaluation.
        classes: The classes to use, in this order; by default those of the labels, sorted.
        masks: Folders of the sources' masks: inside a site's folder for that site alone, else one for each
            site in order, or any number for all. See `pairing.pair_masks`.
        target_masks: Folder of the target's masks, for evaluation.
        structures: `NAME=VALUE` pairs, or names to select from `labels.json` in the masks' folder, its
            parent or the site's folder. By default everything named there, else every value found.
        few_labels: The few cases of the target that training may use, with their labels; in segmentation their names,
            and `target_masks` holds their masks.
        sites: Names of the sites, of each source in order and then of the target. By default a site is named like its
            folder, or `site_1` where the folder's name holds an identifier of a patient in one of the folders.
        val_fraction: Share of each source's patients for validation.
        test_fraction: Share of each source's patients kept for test.
        seed: Seed of the split.

    Raises:
        DataError: One error that lists every fault.
        ConfigError: Fractions that leave nothing to train on, or arguments that exclude each other.
    """
    segmentation = bool(masks or structures or target_masks)
    _check_arguments(source, target, val_fraction, test_fraction)
    if segmentation and classes:
        raise ConfigError("Masks have structures, not classes: give --structures instead of --classes.")
    faults: list[str] = []
    warnings: list[str] = []
    given = [*masks, *([target_masks] if target_masks is not None else [])]
    found = _scan(source, target, given, sites, faults)
    sources, targets, roots = found.sources, found.targets, found.roots
    catalogs = {**sources, **targets}
    drafts = [
        _Draft(item, site, "source" if site in sources else "target", [])
        for site, catalog in catalogs.items()
        for item in catalog.items
    ]
    named = sources
    if segmentation and target_labels is None and not (_names(sources) & _names(targets)):
        named = catalogs  # no label is in it, only who is who
    flags = [""] * 2
    if labels is not None and target_labels is not None and Path(labels).name == Path(target_labels).name:
        flags = [" (--labels)", " (--target-labels)"]  # a file of every site's is often called the same
    for there, path, flag in zip((named, targets), (labels, target_labels), flags, strict=True):
        _attach(drafts, there, roots, path, faults, warnings, flag=flag, with_label=not segmentation)
    few = _few(drafts, targets, roots, few_labels, faults, warnings, with_label=not segmentation)
    _set_patients(drafts, roots, faults, warnings)
    joined = Joined()
    if segmentation:
        files = {"masks": masks, "target_masks": target_masks, "structures": structures}
        joined = join_masks(sources, targets, roots, **files, faults=faults, warnings=warnings)  # type: ignore[arg-type]
        _set_masks(drafts, catalogs, joined)
        names = joined.labels.classes if joined.labels is not None else ()
    else:
        names = _set_classes(drafts, classes, faults, warnings)
        if sources and labels is None:
            faults.append("the sources have no labels: give --labels CSV with the columns case and label")
    _set_few(few, drafts, names, segmentation, faults, warnings)
    used = [d for d in drafts if d.domain == "source" and not d.reason]
    if sources and not faults:
        check = _check_patients if segmentation else _check_classes
        check(used, 2 + (test_fraction > 0), faults)
    for catalog in catalogs.values():
        found.identifiers.update(catalog.identifiers)
    others = [Path(path) for path in (target, labels, target_labels, few_labels) if path is not None]
    hide = found.identifiers.in_text([*map(Path, source), *map(Path, given), *others])
    if faults:
        raise DataError(hide(_joined(faults)))
    if used:
        keys, strata, sites = [d.key for d in used], [d.label or "" for d in used], [d.site for d in used]
        shares = {"val_fraction": val_fraction, "test_fraction": test_fraction}
        for draft, split in zip(used, split_patients(keys, strata, sites, seed=seed, **shares), strict=True):
            draft.split = split
    warnings += (
        _doubtful_geometry(drafts)
        + _doubtful_slices(drafts)
        + confounding([d.label or "" for d in used], [d.site for d in used])
    )
    refused = [(site, r) for (site, _), r in sorted(joined.refused.items(), key=_place) if site in sources]
    return CaseTable(
        cases=_finish(drafts),
        classes=names,
        rejections={
            s: (*c.rejections, *(r for site, r in refused if site == s)) for s, c in catalogs.items()
        },
        warnings=tuple(map(hide, warnings)),
        files={site: catalog.num_files for site, catalog in catalogs.items()},
        labels=joined.labels,
        identifiers=found.identifiers,
    )


def _check_arguments(
    source: Sequence[Path], target: Path | None, val_fraction: float, test_fraction: float
) -> None:
    if not (0 < val_fraction < 1 and 0 <= test_fraction < 1 and val_fraction + test_fraction < 1):
        raise ConfigError(
            "The shares of validation and test must be positive and leave cases to train on; got "
            f"{val_fraction} and {test_fraction}."
        )
    if not source and target is None:
        raise ConfigError("There is no folder to read: give --source DIR or --target DIR.")
    for path in map(Path, (*source, *([target] if target is not None else []))):
        try:
            path.resolve()
        except (OSError, RuntimeError):
            raise DataError(f"{path.name!r} is a link that leads back to itself.") from None


def _place(entry: tuple[tuple[str, int], Rejection]) -> tuple[str, int]:
    return entry[0]


def _names(catalogs: Mapping[str, Catalog]) -> set[str]:
    return {item.name for catalog in catalogs.values() for item in catalog.items}


def _joined(faults: Sequence[str]) -> str:
    if len(faults) == 1:
        return f"The data cannot be used: {faults[0]}."
    listed = "; ".join(f"({number}) {fault}" for number, fault in enumerate(faults, start=1))
    return f"The data cannot be used for {len(faults)} reasons: {listed}."


@dataclass
class _Folders:
    """Catalogues of the sources and of the target, and the folder of each site."""

    sources: dict[str, Catalog] = field(default_factory=dict)
    targets: dict[str, Catalog] = field(default_factory=dict)
    roots: dict[str, Path] = field(default_factory=dict)
    identifiers: Identifiers = field(default_factory=Identifiers)


def _scan(
    source: Sequence[Path],
    target: Path | None,
    masks: Sequence[Path],
    names: Sequence[str],
    faults: list[str],
) -> _Folders:
    """Reads the folders; sites get their names once all headers are known."""
    found = _Folders()
    places = [*map(Path, source), *([Path(target)] if target is not None else [])]
    catalogs: list[Catalog | None] = []
    for path in places:
        try:
            catalogs.append(scan_folder(path, masks=masks))
        except DataError as error:
            catalogs.append(None)
            faults.append(str(error).rstrip("."))
    for read in filter(None, catalogs):
        found.identifiers.update(read.identifiers)
    sites = site_names(places, found.identifiers, names)
    for number, (path, site, catalog) in enumerate(zip(places, sites, catalogs, strict=True)):
        if path.resolve() in [place.resolve() for place in places[:number]]:
            faults.append(f"the folder {site!r} is given twice")
            continue
        if site in found.roots:
            faults.append(
                f"two folders are called {site!r}, and sites are named like their folders: rename one, or name the "
                "sites with --sites"
            )
            continue
        if catalog is None:
            continue
        found.roots[site] = path
        (found.sources if number < len(source) else found.targets)[site] = catalog
        if not catalog.items:
            codes = ", ".join(f"{count} {code}" for code, count in catalog.rejected_by_code().items())
            faults.append(f"the folder {site!r} holds no scan that can be used ({codes or 'it is empty'})")
    return found


def _attach(
    drafts: Sequence[_Draft],
    catalogs: Mapping[str, Catalog],
    roots: Mapping[str, Path],
    path: Path | None,
    faults: list[str],
    warnings: list[str],
    *,
    flag: str,
    with_label: bool,
) -> None:
    """Gives every draft of these sites its rows of the labels CSV, and its label; `flag` follows its name."""
    if path is None or not any(catalog.items for catalog in catalogs.values()):
        return
    name = f"{Path(path).name}{flag}"
    rows = of_sites(read_labels(Path(path), faults, name=name, with_label=with_label), roots)
    matches = match_rows(name, rows, catalogs, faults)
    place = {(d.site, d.item.files): d for d in drafts}
    for (site, index), found in matches.rows.items():
        place[site, catalogs[site].items[index].files].rows += found
    by_file = {(d.site, file): d for d in drafts for file in d.item.files}
    lost: Counter[str] = Counter()
    for (site, index), found in matches.rejected.items():
        rejection = catalogs[site].rejections[index]
        lost[rejection.code] += 1
        kept = by_file.get((site, rejection.same_as or ""))
        if kept is None:
            continue
        # A label given to one of two equal files holds for both; two labels must agree.
        if not kept.rows:
            kept.rows += found
        elif {row.label for row in found} != {row.label for row in kept.rows}:
            numbers = [row.line for row in (*found, *kept.rows)]
            faults.append(
                f"{name} gives two equal files different labels ({line_numbers(numbers)}, case {kept.item.name!r})"
            )
    if lost:
        what = ", ".join(f"{count} {code}" for code, count in sorted(lost.items()))
        warnings.append(f"{name} labels {sum(lost.values())} scans that were left out ({what}).")
    doubled = [d for d in drafts if d.site in catalogs and len(d.rows) > 1]
    if doubled:
        first = doubled[0]
        conflict = "different labels" if len({row.label for row in first.rows}) > 1 else "one label twice"
        numbers = sorted({row.line for d in doubled for row in d.rows})
        faults.append(
            f"{name} labels {len(doubled)} cases more than once ({line_numbers(numbers)}); case "
            f"{first.item.name!r} has {conflict}"
        )
    for draft in drafts:
        if draft.site in catalogs and draft.rows:
            draft.label = draft.rows[0].label


def _few(
    drafts: Sequence[_Draft],
    targets: Mapping[str, Catalog],
    roots: Mapping[str, Path],
    path: Path | None,
    faults: list[str],
    warnings: list[str],
    *,
    with_label: bool,
) -> list[_Draft]:
    """The target's cases whose labels training may use, with those labels."""
    if path is None:
        return []
    if not targets:
        faults.append(f"{Path(path).name} names cases of the target, and there is none: give --target DIR")
        return []
    own = [_Draft(d.item, d.site, d.domain, []) for d in drafts if d.domain == "target"]
    _attach(own, targets, roots, path, faults, warnings, flag=" (--few-labels)", with_label=with_label)
    place = {(d.site, d.item.files): d for d in drafts}
    found = []
    for one in own:
        if not one.rows:
            continue
        draft = place[one.site, one.item.files]
        if draft.label and one.label and draft.label != one.label:
            faults.append(
                f"{Path(path).name} and the target's labels differ for case {draft.item.name!r}: {one.label!r} and "
                f"{draft.label!r}"
            )
        draft.label = one.label or draft.label
        draft.rows = draft.rows or one.rows
        found.append(draft)
    return found


def _set_few(
    few: Sequence[_Draft],
    drafts: Sequence[_Draft],
    names: Sequence[str],
    segmentation: bool,
    faults: list[str],
    warnings: list[str],
) -> None:
    """Puts the few labelled cases into training, and leaves out all others of their patients."""
    if segmentation:
        lacking, what = [d for d in few if d.mask is None], "a mask (--target-masks)"
    else:
        lacking, what = [d for d in few if d.label not in names], "a label that is among the classes"
    if lacking:
        faults.append(
            f"{len(lacking)} of the {len(few)} cases of --few-labels have no {what.removeprefix('a ')}, such as "
            f"{lacking[0].item.name!r}"
        )
    for draft in few:
        draft.split = "train"
    keys = {d.key for d in few}
    others = [d for d in drafts if d.domain == "target" and d.key in keys and d.split != "train"]
    for draft in others:
        draft.reason = draft.reason or "patient_in_few_labels"
    if others:
        warnings.append(
            f"{len(others)} further cases of the patients of --few-labels are left out: a patient that training has "
            "seen is not tested."
        )
    if few and not any(d.domain == "target" and not d.split and not d.reason for d in drafts):
        faults.append("--few-labels names every patient of the target, so none is left to test on")


def _set_patients(
    drafts: Sequence[_Draft], roots: Mapping[str, Path], faults: list[str], warnings: list[str]
) -> None:
    """Assigns patients: by the labels' column, else by PatientID; without either, a case is its own patient."""
    without: Counter[str] = Counter()
    places: dict[str, dict[str, str]] = defaultdict(dict)
    for draft in drafts:
        given = next((row.patient for row in draft.rows if row.patient), None) or draft.item.patient_id
        if given is None:
            without[draft.site] += 1
            draft.key = f"case:{roots[draft.site].resolve().name}/{without_suffix(draft.item.files[0])}"
        else:
            draft.key = f"id:{given}"
            places[draft.key].setdefault(draft.site, draft.item.name)
    shared = [sites for sites in places.values() if len(sites) > 1]
    if shared:
        example = " and ".join(f"case {case!r} of {site!r}" for site, case in list(shared[0].items())[:2])
        count = f"{len(shared)} patient{'s are' if len(shared) > 1 else ' is'}"
        faults.append(
            f"{count} in more than one site ({example} have one patient id): take each out of one folder, "
            "or, if sites number their patients on their own, give different ids in the labels' column "
            "patient"
        )
    for site in {d.site: None for d in drafts if d.domain == "source"}:
        cases = [d for d in drafts if d.site == site]
        if len(cases) >= ONE_PATIENT and len({d.key for d in cases}) == 1:
            faults.append(
                f"all {len(cases)} cases of {site!r} have the same patient id, so no split by patient is "
                "possible: give the patients in a column patient of the labels CSV"
            )
    splits = any(d.domain == "source" for d in drafts)  # else nothing is trained, split or tested
    for site, number in without.items() if splits else ():
        warnings.append(
            f"{number} cases of {site!r} have no patient id: each counts as a patient of its own. If a "
            "patient has several, give a column patient in the labels CSV; intervals and splits are too "
            "optimistic otherwise."
        )


def _set_classes(
    drafts: Sequence[_Draft], classes: Sequence[str] | None, faults: list[str], warnings: list[str]
) -> tuple[str, ...]:
    """Sets the classes in order and excludes source cases that belong to none of them."""
    sources = [d for d in drafts if d.domain == "source"]
    found = sorted({d.label for d in sources if d.label})
    names = tuple(dict.fromkeys(classes)) if classes else tuple(found)
    for name in names:
        if found and name not in found:
            faults.append(
                f"no source case has the label {name!r} of --classes. {near_matches(name, found)[:-1]}"
            )
    for draft in sources:
        draft.reason = (
            "no_label" if not draft.label else "" if draft.label in names else "label_not_in_classes"
        )
    unlabelled = sum(d.reason == "no_label" for d in sources)
    if unlabelled and found:
        warnings.append(f"{unlabelled} of {len(sources)} source cases have no label and are left out.")
    foreign = [d for d in drafts if d.domain == "target" and d.label and names and d.label not in names]
    for draft in foreign:
        draft.label = None
    if foreign:
        warnings.append(
            f"{len(foreign)} target cases have a label that is not among the classes: they are used like "
            "any other for adaptation, and evaluation leaves them out."
        )
    return names


def _set_masks(drafts: Sequence[_Draft], catalogs: Mapping[str, Catalog], joined: Joined) -> None:
    """Gives every draft its mask; a source case without a usable one is left out."""
    place = {(site, item.files): (site, n) for site, c in catalogs.items() for n, item in enumerate(c.items)}
    for draft in drafts:
        key = place[draft.site, draft.item.files]
        draft.mask = joined.masks.get(key)
        if draft.domain == "source" and draft.mask is None:
            draft.reason = joined.refused[key].code if key in joined.refused else "no_mask"


def _check_patients(used: Sequence[_Draft], needed: int, faults: list[str]) -> None:
    """Every split needs a patient."""
    patients = len({draft.key for draft in used})
    if patients < needed:
        faults.append(
            f"the source cases with masks are of {patients} patient{'' if patients == 1 else 's'}, {needed} or more "
            "are needed, one for each split"
        )


def _check_classes(used: Sequence[_Draft], needed: int, faults: list[str]) -> None:
    """Every class needs a patient for each split."""
    if not used:
        faults.append("no source case has a label")
        return
    patients: dict[str, set[str]] = defaultdict(set)
    for draft in used:
        patients[draft.label or ""].add(draft.key)
    if len(patients) == 1:
        faults.append(
            f"all {len(used)} labelled source cases have the label {used[0].label!r}, two classes or more "
            f"are needed"
        )
        return
    small = {name: len(keys) for name, keys in sorted(patients.items()) if len(keys) < needed}
    if small:
        listed = ", ".join(f"{name!r} {count}" for name, count in list(small.items())[:5])
        listed += f" and {len(small) - 5} more" if len(small) > 5 else ""
        rest = [name for name in sorted(patients) if name not in small]
        step = f"leave it out with --classes {' '.join(rest)}, or " if len(rest) > 1 else ""
        faults.append(
            f"a class needs {needed} patients or more, one for each split; too few have {listed}: "
            f"{step}add cases"
        )


def _doubtful_geometry(drafts: Sequence[_Draft]) -> list[str]:
    """Reports assumed geometry; plain images have no geometry and need none."""
    counts = Counter((d.site, d.item.header.get("geometry", "")) for d in drafts)
    return [
        f"{count} scans of {site!r}: {note}."
        for (site, note), count in sorted(counts.items())
        if note not in ("", NO_POSITION)
    ]


def _doubtful_slices(drafts: Sequence[_Draft]) -> list[str]:
    """Names the scans beside which lie files that cannot be opened."""
    doubted: dict[str, list[_Draft]] = defaultdict(list)
    for draft in drafts:
        if "doubt" in draft.item.header:
            doubted[draft.site].append(draft)
    return [
        f"{len(found)} scans of {site!r} may lack slices (case {found[0].item.name!r}: "
        f"{found[0].item.header['doubt']}): `medtl inspect` lists the files."
        for site, found in doubted.items()
    ]


def _finish(drafts: Sequence[_Draft]) -> tuple[Case, ...]:
    """Cases with pseudonyms; if two sites share a name, it is prefixed with the site throughout the table."""
    keys = sorted({d.key for d in drafts})
    known = pseudonyms(keys)
    width = max(4, len(str(len(keys))))
    draws = {key: f"p{number:0{width}d}" for number, key in enumerate(keys, start=1)}
    clash = len({d.item.name for d in drafts}) < len(drafts)
    cases = [
        Case(
            case=f"{d.site}/{d.item.name}" if clash else d.item.name,
            patient=known[d.key],
            site=d.site,
            domain=d.domain,
            path=d.item.path,
            label=d.label,
            mask=d.mask.path if d.mask else None,
            split="" if d.reason else d.split or "test",
            status="excluded" if d.reason else "used",
            reason=d.reason,
            groups=d.rows[0].groups if d.rows else {},
            item=d.item,
            mask_item=d.mask,
            remark=d.item.remark,
            draw=draws[d.key],
        )
        for d in sorted(drafts, key=lambda d: (d.domain, d.site, d.item.order))
    ]
    return tuple(cases)
