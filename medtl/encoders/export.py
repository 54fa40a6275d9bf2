"""Writes features for any tool: a table that identifies each row, and an array with the same rows."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medtl.cells import csv_text
from medtl.data.cases.table import Case
from medtl.data.cohort import Cohort
from medtl.encoders.features import FeatureDataset, feature_table
from medtl.models.encoder import Encoder
from medtl.report import Section, TableBuilder, write_page
from medtl.runs import Run
from medtl.scans.geometry import voxel_spacing


@dataclass(frozen=True)
class SavedFeatures:
    """A summary of what was written.

    Attributes:
        rows: number of cases times views.
        columns: the width of the features.
        page: path of the page.
    """

    rows: int
    columns: int
    page: Path


def save_features(run: Run, features: FeatureDataset, encoder: Encoder, cohort: Cohort) -> SavedFeatures:
    """Writes `features.csv`, `features.npy` and `report/` into a run.

    Args:
        run: the open run.
        features: features of the cohort's cases.
        encoder: the encoder that computed them.
        cohort: the cohort; if it has masks, the table also has a column for the size of each structure.
    """
    rows = feature_table(features)
    columns = [c for c in rows.columns if c[1:].isdigit()]
    about = rows.drop(columns=columns)
    for name, sizes in structure_sizes(cohort, features.cases).items():
        about[name] = np.repeat(sizes, len(about) // len(features))
    buffer = io.BytesIO()
    np.save(buffer, rows[columns].to_numpy(np.float32), allow_pickle=False)
    run.write("features.npy", buffer.getvalue())
    run.write("features.csv", csv_text(about, float_format="%.6g"))
    with_masks = cohort.table.labels is not None
    last = "cases with a mask" if with_masks else "labelled cases"
    labelled = np.array([bool(c.mask_item if with_masks else c.label) for c in features.cases])
    found = TableBuilder("What was encoded", ("site", "cases", "patients", last))
    for site, part in about[about["view"] == 0].reset_index(drop=True).groupby("site"):
        found.row(str(site), len(part), part.patient.nunique(), int(labelled[part.index].sum()))
    text = (f"Weights: {encoder.key_report.text()}",)
    page = write_page(
        f"Features of {len(features)} scans",
        [Section("data", "Data", text=text, tables=(found.build(),))],
        run.folder / "report",
    )
    return SavedFeatures(len(rows), len(columns), page)


def structure_sizes(cohort: Cohort, cases: tuple[Case, ...]) -> dict[str, list[float]]:
    """The size of each structure in the scan's own grid, by the name of a column.

    Returns:
        `ml_STRUCTURE`, or `pixels_STRUCTURE` if a scan has no voxel size; one number per case, NaN without a mask.
        Empty if the cohort has no masks.
    """
    if cohort.table.labels is None:
        return {}
    pixels = any(case.item is None or case.item.affine is None for case in cases)
    names = [f"{'pixels' if pixels else 'ml'}_{name}" for name in cohort.table.labels.structures]
    sizes: dict[str, list[float]] = {name: [] for name in names}
    for case in cases:
        voxels = None if case.mask_item is None else cohort.cache.counts(case).voxels
        voxel = 1.0
        if not pixels and case.item is not None and case.item.affine is not None:
            voxel = float(np.prod(voxel_spacing(case.item.affine))) / 1000
        for number, name in enumerate(names, start=1):
            sizes[name].append(float("nan") if voxels is None else voxels[number] * voxel)
    return sizes
