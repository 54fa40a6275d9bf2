"""From scan folders to batches.

scan_folder    catalog.py      a folder to volumes and rejections, headers only
read_volume    volume.py       voxels, place in the patient, padding
scan_masks     masks.py        a folder to masks; read_mask: class indices on the scan's voxels
collect_cases  cases.py        labels or masks, patients, splits; all faults at once
Preprocess     preprocess.py   one grid and one range of values
VolumeCache    cache.py        preprocessed volumes on disk
CaseDataset    dataset.py      augmented samples and their order, from seeds alone
Cohort         cohort.py       cases and their cache, from which data sets are taken
Batch          batch.py        the fields that adapters see
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medtl.data.batch import Batch, collate
    from medtl.data.cache import VolumeCache
    from medtl.data.cases import Case, CaseTable, collect_cases
    from medtl.data.catalog import scan_folder
    from medtl.data.cohort import Cohort
    from medtl.data.dataset import CaseDataset
    from medtl.data.items import Catalog, MaskItem, Rejection, VolumeItem
    from medtl.data.masks import MaskVoxels, read_mask, scan_masks
    from medtl.data.preprocess import Preprocess, suggest_preprocess
    from medtl.data.volume import Volume, read_volume

_HOME = {
    "Batch": "batch",
    "Case": "cases",
    "CaseDataset": "dataset",
    "CaseTable": "cases",
    "Catalog": "items",
    "Cohort": "cohort",
    "MaskItem": "items",
    "MaskVoxels": "masks",
    "Preprocess": "preprocess",
    "Rejection": "items",
    "Volume": "volume",
    "VolumeCache": "cache",
    "VolumeItem": "items",
    "collate": "batch",
    "collect_cases": "cases",
    "read_mask": "masks",
    "read_volume": "volume",
    "scan_folder": "catalog",
    "scan_masks": "masks",
    "suggest_preprocess": "preprocess",
}

__all__ = [
    "Batch",
    "Case",
    "CaseDataset",
    "CaseTable",
    "Catalog",
    "Cohort",
    "MaskItem",
    "MaskVoxels",
    "Preprocess",
    "Rejection",
    "Volume",
    "VolumeCache",
    "VolumeItem",
    "collate",
    "collect_cases",
    "read_mask",
    "read_volume",
    "scan_folder",
    "scan_masks",
    "suggest_preprocess",
]


def __getattr__(name: str) -> Any:
    # Lazy: reading scans needs no torch, and neither does its import.
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
