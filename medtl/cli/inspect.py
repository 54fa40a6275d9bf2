"""Shows what folders of scans hold, and what was left out and why: medtl inspect PATH... [--out DIR] [--json]."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from medtl.cells import csv_text
from medtl.cli.flags import parse
from medtl.cli.terminal import say, table
from medtl.errors import ConfigError
from medtl.files import atomic_write, output_folder

if TYPE_CHECKING:
    from medtl.scans.items import Rejection, VolumeItem


@dataclass(frozen=True)
class Options:
    """Options of `medtl inspect`."""

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of scans."""

    sites: tuple[str, ...] = ()
    """Names of the folders, in order; by default their own, but site_1, ... where that names a patient of them."""

    out: Path | None = None
    """Folder for volumes.csv and rejections.csv, one row per volume and per file."""

    json: bool = False
    """One JSON document on stdout and nothing else."""


def main(words: list[str]) -> None:
    """Prints what was found."""
    options = parse(Options, words)
    found = inspect_folders(options.paths, options.out, options.sites)
    say(json.dumps(found, indent=2) if options.json else _text(found))


def inspect_folders(
    paths: Sequence[Path], out: Path | None = None, sites: Sequence[str] = ()
) -> dict[str, Any]:
    """Scans folders and says what is in them.

    Args:
        paths: folders of scans.
        out: where `volumes.csv` and `rejections.csv` are written, if anywhere.
        sites: names of the folders, instead of their own.

    Raises:
        ConfigError: no folder, another number of names, or `out` is not empty.
        DataError: a folder is absent.
    """
    from medtl.scans.catalog import scan_folder
    from medtl.scans.privacy import Identifiers, site_names

    if not paths:
        raise ConfigError("medtl inspect needs one folder or more.")
    folders, volumes, rejections = [], [], []
    catalogs = [scan_folder(path) for path in paths]
    known = Identifiers()
    for catalog in catalogs:
        known.update(catalog.identifiers)
    for folder, catalog in zip(site_names(paths, known, sites), catalogs, strict=True):
        kinds = Counter(tuple(_kind(item).items()) for item in catalog.items)
        reasons = Counter((r.code, r.next_step) for r in catalog.rejections)
        volumes += [_volume(folder, item) for item in catalog.items]
        rejections += [_rejection(folder, r) for r in catalog.rejections]
        folders.append(
            {
                "folder": folder,
                "num_files": catalog.num_files,
                "num_volumes": len(catalog.items),
                "groups": [dict(kind) | {"number": n} for kind, n in kinds.most_common()],
                "doubts": [
                    {"doubt": doubt, "number": n}
                    for doubt, n in sorted(Counter(i.remark for i in catalog.items if i.remark).items())
                ],
                "rejected": [
                    {"reason": code, "number": n, "next step": step}
                    for (code, step), n in sorted(reasons.items())
                ],
            }
        )
    if out is not None:
        import pandas as pd

        with output_folder(out, *paths, shown=known.safe_path(out.name)):
            for name, rows in (("volumes.csv", volumes), ("rejections.csv", rejections)):
                atomic_write(out / name, csv_text(pd.DataFrame(rows)))
    return {"folders": folders}


def _kind(item: VolumeItem) -> dict[str, str]:
    return {
        "kind": item.kind,
        "modality": item.modality or "",
        "manufacturer": item.header.get("manufacturer", ""),
        "channels": f"{item.channels}",
        "size (k x j x i)": " x ".join(map(str, item.shape)),
    }


def _volume(folder: str, item: VolumeItem) -> dict[str, Any]:
    kind = _kind(item)
    return {
        "folder": folder,
        "name": item.name,
        "path": item.path,
        "kind": item.kind,
        "files": len(item.files),
        "modality": kind["modality"],
        "shape_kji": kind["size (k x j x i)"],
        "manufacturer": kind["manufacturer"],
        "remark": item.remark,
    }


def _rejection(folder: str, found: Rejection) -> dict[str, Any]:
    return {
        "folder": folder,
        "path": found.path,
        "reason": found.code,
        "detail": found.detail,
        "next step": found.next_step,
    }


def _text(found: Mapping[str, Any]) -> str:
    parts = []
    for folder in found["folders"]:
        parts.append(
            f"{folder['folder']}: {folder['num_files']} files, {folder['num_volumes']} volumes or images"
        )
        parts.append(table(folder["groups"]))
        if folder["doubts"]:
            parts += ["Doubts:", table(folder["doubts"])]
        if folder["rejected"]:
            parts += ["Left out:", table(folder["rejected"])]
        parts.append("")
    return "\n".join(parts).rstrip()
