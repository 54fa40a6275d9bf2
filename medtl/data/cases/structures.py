"""The structures in the masks: the label map, and checks of the voxels after reading."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from medtl.data.cases.table import Case
from medtl.errors import ConfigError
from medtl.labelmap import FILE_NAME, LabelMap, count_values
from medtl.scans.items import MaskItem, VolumeItem
from medtl.scans.masks import UNKNOWN_LIMIT, MaskCounts, MaskError, stored_values

MASKS_READ = 24
"""If nothing names the values, this many evenly spaced masks are read."""
MOST_VALUES = 64
"""More distinct values than this are grey values, not labels."""
ONE_OF = 10
"""If this many masks were read, a rare value found in only one of them is a slip of the pen, not a structure."""

_SIDES = {"left", "right", "lt", "rt", "links", "rechts", "gauche", "droite", "droit"}
"""Words that name a side, in whatever name they stand."""
_SHORT = {"l": "r", "r": "l", "lh": "rh", "rh": "lh"}
"""Abbreviations that may mean something else (L also stands for lumbar): both sides must be there."""
_WORD = re.compile(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*|\d+")
"""A part of a name: `kidney_L`, `kidney L` and `kidneyL` have two, and `L1` is one part, a vertebra."""

Pair = tuple[MaskItem, VolumeItem]


def resolve_labels(
    structures: Sequence[str],
    places: Sequence[Path],
    masks: Sequence[Pair],
    faults: list[str],
    warnings: list[str],
) -> LabelMap | None:
    """Names and values of the structures: flags, else `labels.json`, else the segments' labels, else the values.

    Args:
        structures: `NAME=VALUE` pairs, or names that select from what was found.
        places: folders of the sources that may hold `labels.json`.
        masks: the sources' masks with their scans.
        faults: receives maps that cannot be read, or that disagree.
        warnings: receives what was assumed.

    Returns:
        The map, or None after a fault.
    """
    named = [text for text in structures if "=" in text]
    if named and len(named) < len(structures):
        faults.append(f"--structures takes NAME=VALUE pairs or names, not both; got {' '.join(structures)}")
        return None
    try:
        if named:
            return LabelMap.parse(named)
        found = _from_files(places, faults)
        if found is None and not faults:
            segments = [mask for mask, _ in masks if mask.segments]
            found = _from_segments(segments, warnings) if segments else None
            if found is None and structures:
                faults.append(
                    f"--structures names {', '.join(structures)} without values, and there is no {FILE_NAME} with the "
                    "masks: give NAME=VALUE, for example lesion=1"
                )
            elif found is None and masks:
                found = _from_values(masks, faults, warnings)
        return found.select(structures) if found is not None and structures else found
    except ConfigError as error:
        faults.append(str(error).rstrip("."))
        return None


def label_file(folder: Path) -> LabelMap | None:
    """The map of a folder's `labels.json`, or of its `dataset.json` with labels; None if there is neither.

    Raises:
        ConfigError: it is there and cannot be read.
    """
    if (folder / FILE_NAME).is_file():
        return LabelMap.read(folder / FILE_NAME)
    # nnU-Net's and the Decathlon's file; others use the name for other things.
    other = folder / "dataset.json"
    return LabelMap.read(other) if other.is_file() and b'"labels"' in other.read_bytes() else None


def _from_files(places: Sequence[Path], faults: list[str]) -> LabelMap | None:
    maps: dict[Path, LabelMap] = {}
    for place in dict.fromkeys(p.resolve() for p in places):
        try:
            found = label_file(place)
        except ConfigError as error:
            faults.append(f"{str(error).rstrip('.')} (in the folder {place.name!r})")
            continue
        if found is not None:
            maps[place] = found
    first = next(iter(maps.items()), None)
    if first is None:
        return None
    for place, other in maps.items():
        if not other.agrees(first[1]):
            faults.append(
                f"the label files of {_show(first[0])} ({first[1].text()}) and {_show(place)} ({other.text()}) "
                "disagree: make them equal, or give --structures NAME=VALUE for all"
            )
            return None
    return first[1]


def _show(folder: Path) -> str:
    return repr(f"{folder.parent.name}/{folder.name}")


def _from_segments(masks: Sequence[MaskItem], warnings: list[str]) -> LabelMap:
    """Structures named by DICOM SEG; where files number them differently, the first number counts."""
    values: dict[str, int] = {}
    for mask in masks:
        for number, label in sorted(mask.segments.items()):
            key = next((name for name in values if name.casefold() == label.casefold()), label)
            taken = set(values.values())
            free = number if number not in taken and number > 0 else max(taken, default=0) + 1
            values.setdefault(key, free)
    labels = LabelMap.from_dict(dict(values))
    warnings.append(f"The structures are those that the DICOM segmentations name: {labels.text()}.")
    return labels


def _from_values(masks: Sequence[Pair], faults: list[str], warnings: list[str]) -> LabelMap | None:
    """One structure for each value found in some of the masks."""
    step = max(1, len(masks) / MASKS_READ)
    chosen = [masks[int(n * step)] for n in range(min(len(masks), MASKS_READ))]
    total: Counter[int] = Counter()
    holders: dict[int, list[float]] = defaultdict(list)
    read = 0
    for mask, item in chosen:
        try:
            counts = count_values(stored_values(mask, item))
        except MaskError:
            continue  # it is excluded, with the reason, once all masks are read
        read += 1
        inside = sum(count for value, count in counts.items() if value != 0)
        for value, count in counts.items():
            if value != 0:
                total[value] += count
                holders[value].append(count / inside)
    stray = {
        v for v in total if read >= ONE_OF and len(holders[v]) == 1 and holders[v][0] <= 2 * UNKNOWN_LIMIT
    }
    values = sorted(set(total) - stray)
    if not values:
        faults.append(
            f"all of the {read} masks that were read hold 0 alone, so there is no structure to segment: check "
            "that these are the masks"
            if read
            else "none of the masks can be read"
        )
        return None
    if len(values) > MOST_VALUES:
        faults.append(
            f"the masks hold {len(values)} different values from {values[0]} to {values[-1]}: these look like grey "
            "values, not labels. Name the structures with --structures NAME=VALUE, or give other masks"
        )
        return None
    names = {"foreground": values[0]} if len(values) == 1 else {f"label_{value}": value for value in values}
    labels = LabelMap.from_dict(names)
    text = f"Nothing names the values in the masks: {read} of {len(masks)} were read, and the structures are "
    text += f"taken to be {labels.text()}. Name them in {FILE_NAME} or with --structures NAME=VALUE"
    text += ", and say void=255 if 255 means 'not judged'" if len(values) > 1 and values[-1] == 255 else ""
    if stray:
        text += f"; the values {', '.join(map(str, sorted(stray)))}, each in a few voxels of one mask, are left out"
    warnings.append(text + ".")
    return labels


def sided(names: Sequence[str]) -> tuple[str, ...]:
    """The structures that are named by their side: left and right must then not be swapped in augmentation.

    A name does that with a word (`left kidney`, `kidney_rt`), or with a letter if the other side is there too
    (`hippocampus L` beside `hippocampus R`). The vertebrae L1 to L5, L5-S1 and a spine's part L have no side.
    """
    parts = {name: _parts(name) for name in names}
    there = set(parts.values())
    found = []
    for name, words in parts.items():
        swapped = (
            (*words[:n], _SHORT[word], *words[n + 1 :]) for n, word in enumerate(words) if word in _SHORT
        )
        if any(word.rstrip("0123456789") in _SIDES for word in words) or not there.isdisjoint(swapped):
            found.append(name)
    return tuple(found)


def _parts(name: str) -> tuple[str, ...]:
    return tuple(part.lower() for part in _WORD.findall(name))


def mask_warnings(
    cases: Sequence[Case], counts: Sequence[MaskCounts], labels: LabelMap
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Checks the voxels of the masks once they have been read.

    Masks of the target only give warnings: they decide nothing.

    Args:
        cases: used cases with masks.
        counts: what each of their masks holds, in the same order.
        labels: the label map.

    Returns:
        Warnings, and faults that make training impossible: a structure that no source mask holds, or none of those
        trained on.
    """
    warnings: list[str] = []
    faults: list[str] = []
    pairs = list(zip(cases, counts, strict=True))
    sources = [(case, count) for case, count in pairs if case.domain == "source"]
    absent: set[str] = set()
    for index, name in enumerate(labels.structures, start=1):
        holding = [case for case, count in sources if count.voxels[index]]
        if sources and not holding:
            absent.add(name)
            faults.append(
                f"no source mask holds the structure {name!r} (value {_values(labels, name)}): leave it out, or "
                "correct its value in labels.json or --structures"
            )
            continue
        missing = {case.split for case, _ in sources} - {case.split for case in holding}
        where = (
            f"the structure {name!r} is in {_number(len(holding), 'source case')}, and in none of the split"
        )
        if "train" in missing:
            faults.append(
                f"{where} 'train': add cases that have it, or choose another seed or share for the split"
            )
        elif "validation" in missing:
            warnings.append(
                f"{where[0].upper()}{where[1:]} 'validation': nothing there says how well it is found. Choose another "
                "seed or share for the split, or add cases that have it."
            )
    for site, found in _by_site(pairs).items():
        used = f"{len(found)} masks of {site!r}"
        empty = [case for case, count in found if not any(count.voxels[1:])]
        if empty:
            warnings.append(
                f"{len(empty)} of the {used} hold no structure (for example case {empty[0].case!r}): they count as "
                "cases without any."
            )
        for index, name in enumerate(labels.structures, start=1):
            if name not in absent and not any(count.voxels[index] for _, count in found):
                warnings.append(f"None of the {used} holds the structure {name!r}.")
        unknown: Counter[int] = Counter()
        for _, count in found:
            unknown.update(count.unknown)
        strange = [case for case, count in found if count.unknown]
        if strange:
            shown = ", ".join(map(str, sorted(unknown)[:8])) + (", ..." if len(unknown) > 8 else "")
            warnings.append(
                f"{len(strange)} of the {used} hold values that the label map does not name ({shown}; "
                f"{sum(unknown.values())} voxels, for example in case {strange[0].case!r}): these voxels are neither "
                "trained on nor judged."
            )
        overlapping = [case for case, count in found if count.overlap]
        if overlapping:
            warnings.append(
                f"Segments overlap in {len(overlapping)} of the {used} ({sum(c.overlap for _, c in found)} voxels, for "
                f"example in case {overlapping[0].case!r}): the segment of the higher number counts there."
            )
    return tuple(warnings), tuple(faults)


def _by_site(pairs: Sequence[tuple[Case, MaskCounts]]) -> Mapping[str, list[tuple[Case, MaskCounts]]]:
    sites: dict[str, list[tuple[Case, MaskCounts]]] = defaultdict(list)
    for case, count in pairs:
        sites[case.site].append((case, count))
    return sites


def _values(labels: LabelMap, name: str) -> str:
    return "/".join(map(str, labels.structures[name]))


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
