"""Applies a finished run to new scans: medtl predict RUN SCANS --out DIR."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from medtl.cli.flags import parse
from medtl.cli.terminal import progress, say


@dataclass(frozen=True)
class Options:
    """Options of `medtl predict`; what it does is `medtl.prediction.apply.apply_run`."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a finished run."""

    scans: Annotated[Path, tyro.conf.Positional]
    """Folder of scans."""

    out: Path
    """Folder for predictions.csv or masks/, and cases.csv; never overwritten."""

    site: str | None = None
    """Name of the site in the tables; by default the folder's, or site_1 if that names a patient of it."""

    model: str | None = None
    """Model of the run to use; by default the one that the run decided to keep."""

    method: str | None = None
    """Your own file of the model's method, if it adapts while predicting: a run holds no code."""

    rules: tuple[str, ...] = ()
    """Rules that clean the masks, in this order: largest, remove_small, fill_holes, fill_holes_2d."""

    maps: bool = False
    """Also write a probability map of each structure, at the temperature of the source."""

    seg: bool = False
    """Also write a DICOM SEG of each DICOM series. It names the patient as the series does."""

    flips: bool = False
    """Average masks over left-right and up-down flips: slower, often a little better."""

    json: bool = False
    """One JSON document on stdout and nothing else."""


def main(words: list[str]) -> None:
    """Predicts, and prints what was written."""
    options = parse(Options, words)

    from medtl.prediction.apply import apply_run

    done = apply_run(
        options.run,
        options.scans,
        options.out,
        site=options.site,
        model=options.model,
        method=options.method,
        rules=options.rules,
        maps=options.maps,
        seg=options.seg,
        flips=options.flips,
        progress=progress("Preparing scans"),
    )
    say(json.dumps(done, indent=2) if options.json else "\n".join(f"{k}: {v}" for k, v in done.items()))
