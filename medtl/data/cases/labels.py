"""The labels CSV: read as text, checked in full, matched to scans without showing an identifier."""

from __future__ import annotations

import csv
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Protocol

from medtl.cells import unguarded
from medtl.errors import near_matches
from medtl.scans.items import Catalog, Rejection, VolumeItem
from medtl.scans.reader import without_suffix

_NO_SCAN = frozenset({"not_a_scan", "mask", "localizer", "secondary_capture", "no_pixels", "derived_map"})
_PLACES, _OWNERS, _SLICES = range(3)
MOST_COLUMNS, MOST_BYTES = 1000, 1 << 28
"""Limits of a table of labels: beyond them it is something else, and messages would list it all."""
_SUFFIX = re.compile(r"\.[A-Za-z]{2,5}$")


class _Lines(Protocol):
    """What `csv.reader` returns."""

    line_num: int

    def __iter__(self) -> Iterator[list[str]]: ...

    def __next__(self) -> list[str]: ...


@dataclass(frozen=True)
class LabelRow:
    """One line of a labels CSV; `key` and `patient` can be identifiers and are not shown."""

    line: int
    key: str = field(repr=False)
    label: str | None
    patient: str | None = field(default=None, repr=False)
    site: str | None = None
    groups: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Matches:
    """The matched rows: those of each item by (site, index), and those of scans that were left out."""

    rows: dict[tuple[str, int], list[LabelRow]]
    rejected: dict[tuple[str, int], list[LabelRow]]


def read_labels(path: Path, faults: list[str], *, name: str = "", with_label: bool = True) -> list[LabelRow]:
    """Reads a labels CSV: a header with `case` and `label`; comma, semicolon or tab; UTF-8.

    If masks are the labels (`with_label` is False), the column `label` is neither required nor read.

    Every value stays text, so that `001` is not 1. Faults are appended to `faults`, which the caller
    raises at once; they call the file `name`.
    """
    name = name or path.name
    if os.path.exists(path) and not os.path.isfile(
        path
    ):  # reading a pipe would wait for somebody to write into it
        faults.append(f"{name} is not a file")
        return []
    try:
        if path.stat().st_size > MOST_BYTES:
            faults.append(
                f"{name} has more than {MOST_BYTES >> 20} MiB: a table of labels has one line a case"
            )
            return []
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        faults.append(f"{name} cannot be opened ({error.strerror})")
        return []
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        faults.append(f"{name} is not UTF-8 (line {line}): save it as 'CSV UTF-8'")
        return []
    first = text.split("\n", 1)[0]
    separator = max(",;\t", key=first.count)
    reader = csv.reader(text.splitlines(), delimiter=separator)
    try:
        return _rows(reader, faults, name, with_label)
    except csv.Error:
        longest = f"{csv.field_size_limit():,} characters"
        faults.append(
            f"{name} is no CSV in line {reader.line_num}: a cell has more than {longest}, or a quotation mark has no "
            "end"
        )
        return []


def _rows(reader: _Lines, faults: list[str], name: str, with_label: bool) -> list[LabelRow]:
    header = [column.strip().lower() for column in next(reader, [])]
    if len(header) > MOST_COLUMNS:
        faults.append(
            f"{name} has {len(header):,} columns, at most {MOST_COLUMNS:,} are read: give the columns case and label"
        )
        return []
    needed = ("case", "label") if with_label else ("case",)
    missing = [column for column in needed if column not in header]
    if missing:
        hint = near_matches(missing[0], header) if any(header) else "The file is empty."
        faults.append(f"{name} has no column {' and no column '.join(missing)} in its first line. {hint}")
        return []
    if len(set(header)) < len(header):
        faults.append(
            f"{name} has two columns of one name: "
            f"{', '.join(sorted(c for c in header if header.count(c) > 1))}"
        )
        return []
    rows: list[LabelRow] = []
    ragged: list[int] = []
    for values in reader:
        if not any(value.strip() for value in values):
            continue
        if len(values) != len(header):
            ragged.append(reader.line_num)
            continue
        cells = {column: unguarded(value.strip()) for column, value in zip(header, values, strict=True)}
        groups = {column: cells[column] for column in header if column.startswith("group_")}
        patient, site = cells.get("patient") or None, cells.get("site") or None
        label = cells["label"] or None if with_label else None
        rows.append(LabelRow(reader.line_num, cells["case"], label, patient, site, groups))
    if ragged:
        faults.append(f"{name} has another number of columns than its header in {line_numbers(ragged)}")
    if not rows and not ragged:
        faults.append(f"{name} has a header and no rows")
    return rows


def of_sites(rows: Sequence[LabelRow], roots: Mapping[str, Path]) -> list[LabelRow]:
    """The rows with the names of sites where they say the folder's name.

    Args:
        rows: of a labels CSV.
        roots: folder of each site.
    """
    sites = {root.resolve().name: site for site, root in roots.items() if site != root.resolve().name}
    found = []
    for row in rows:
        folder, slash, rest = row.key.replace("\\", "/").removeprefix("./").partition("/")
        key = f"{sites[folder]}/{rest}" if slash and folder in sites else row.key
        found.append(replace(row, key=key, site=sites.get(row.site or "", row.site)))
    return found


def match_rows(
    name: str, rows: Sequence[LabelRow], catalogs: Mapping[str, Catalog], faults: list[str]
) -> Matches:
    """Finds the scans that each row names: by case name, file or path, then patient id, then series.

    Args:
        name: The CSV's name, for messages.
        rows: Its rows.
        catalogs: What was found, by site.
        faults: Receives rows without a scan, and rows that could mean several.
    """
    known = {site: _keys(catalog.items, site) for site, catalog in catalogs.items()}
    left_out = {site: _keys(catalog.rejections, site) for site, catalog in catalogs.items()}
    matches = Matches(defaultdict(list), defaultdict(list))
    absent: list[LabelRow] = []
    unclear: list[int] = []
    slices: list[int] = []
    for row in _of_known_sites(name, rows, catalogs, faults):
        sites = [row.site] if row.site is not None else list(catalogs)
        found = _find(row.key, sites, known)
        lost = _find(row.key, sites, left_out)
        by_patient = bool(found) and found[0][2]
        if len({(site, index) for site, index, _ in found}) > 1 and not by_patient:
            unclear.append(row.line)
        elif found:
            for site, index, _ in found:
                matches.rows[site, index].append(row)
        elif lost:
            for site, index, _ in lost:
                matches.rejected[site, index].append(row)
        elif any(row.key in known[site][_SLICES] for site in sites):
            slices.append(row.line)
        else:
            absent.append(row)
    if slices:
        faults.append(
            f"{name} labels single files of a series ({line_numbers(slices)}): a series is one case, named like its "
            "folder"
        )
    if unclear:
        faults.append(
            f"{name} names cases that are in several places ({line_numbers(unclear)}): give the path inside the "
            "folder as case, or add a column 'site' with the folder's name"
        )
    if absent:
        faults.append(_absent_text(name, absent, catalogs))
    return matches


def _of_known_sites(
    name: str, rows: Sequence[LabelRow], catalogs: Mapping[str, Catalog], faults: list[str]
) -> list[LabelRow]:
    """The rows whose site, if they name one, is among the folders."""
    strange = [row for row in rows if row.site is not None and row.site not in catalogs]
    if strange:
        named = list(dict.fromkeys(row.site for row in strange))
        shown = ", ".join(map(repr, named[:3])) + (", ..." if len(named) > 3 else "")
        faults.append(
            f"{name} names the site {shown} ({line_numbers([row.line for row in strange])}), "
            f"the folders are {', '.join(map(repr, catalogs))}"
        )
    return [row for row in rows if row.site is None or row.site in catalogs]


def _absent_text(name: str, absent: Sequence[LabelRow], catalogs: Mapping[str, Catalog]) -> str:
    names = [item.name for catalog in catalogs.values() for item in catalog.items]
    where = line_numbers([row.line for row in absent])
    text = f"{name} labels {len(absent)} cases for which there is no scan ({where})"
    if names:
        text += f"; the cases found are {', '.join(map(repr, names[:3]))}{', ...' if len(names) > 3 else ''}"
    bare = {n.lstrip("0") for n in names if n.startswith("0")}
    if any(row.key in bare for row in absent):
        text += "; leading zeros were lost, as spreadsheets do: save the column as text"
    return text


Found = tuple[str, int, bool]


def _find(
    key: str, sites: Sequence[str], known: Mapping[str, tuple[dict[str, set[int]], ...]]
) -> list[Found]:
    """(site, index, by patient or series) of the scan that a key names; names and paths take precedence."""
    plain = key.replace("\\", "/").removeprefix("./")
    for level in (_PLACES, _OWNERS):
        found = [
            (site, index, level == _OWNERS)
            for site in sites
            for index in sorted(known[site][level].get(plain, ()))
        ]
        if found:
            return found
    return []


def _keys(things: Sequence[VolumeItem | Rejection], site: str) -> tuple[dict[str, set[int]], ...]:
    """Maps everything that a row may contain to indices, in three dictionaries.

    Names and paths; patient ids and series; single files of a series, which cannot have labels of their own.
    """
    places: dict[str, set[int]] = defaultdict(set)
    owners: dict[str, set[int]] = defaultdict(set)
    slices: dict[str, set[int]] = defaultdict(set)
    for index, thing in enumerate(things):
        if isinstance(thing, Rejection) and thing.code in _NO_SCAN:
            continue
        names = {thing.path} | ({thing.name} if isinstance(thing, VolumeItem) else set())
        whole = thing.files if len(thing.files) == 1 else (str(PurePosixPath(min(thing.files)).parent),)
        for text in _spellings(whole, site) | names | {f"{site}/{text}" for text in names}:
            places[text].add(index)
        for text in _spellings(thing.files, site) if len(thing.files) > 1 else ():
            slices[text].add(index)
        given = (thing.patient_id, thing.series_uid) if isinstance(thing, VolumeItem) else thing.owners
        for owner in filter(None, given):
            owners[owner].add(index)
    # A file stem may stand in several folders; the name that was made unique still names one of them.
    for index, thing in enumerate(things):
        if isinstance(thing, VolumeItem):
            places[thing.name] = places[f"{site}/{thing.name}"] = {index}
    return places, owners, slices


def _spellings(paths: Sequence[str], site: str) -> set[str]:
    """Path, path without suffix, file and stem, each with and without the site's folder in front."""
    texts: set[str] = set()
    for path in paths:
        file = PurePosixPath(path).name
        texts |= {path, file, _short(path), _short(file)}
    return texts | {f"{site}/{text}" for text in texts}


def _short(path: str) -> str:
    """Without the suffix, a reader's or any other."""
    stem = without_suffix(path)
    return stem if stem != path else _SUFFIX.sub("", path)


def line_numbers(numbers: Sequence[int], most: int = 5) -> str:
    """`line 3`, or `lines 3, 5, 8 and 12 more`."""
    shown = ", ".join(map(str, sorted(numbers)[:most]))
    more = f" and {len(numbers) - most} more" if len(numbers) > most else ""
    return f"line{'s' if len(numbers) > 1 else ''} {shown}{more}"
