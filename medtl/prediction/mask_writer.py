"""Writes segmented cases: masks in the scans' own grids, and the table that evaluation reads.

<folder>/predictions.csv  labels.json  voxels.csv
<folder>/predictions/<model>-seed<N>/<case>.nii.gz
<folder>/references/<case>.nii.gz     the reference standard, in the same values; cases without one have none
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medtl.cells import csv_text
from medtl.evaluation.metrics.voxels import voxel_histogram
from medtl.evaluation.tables.segmentations import SegmentationTable
from medtl.files import atomic_write, file_name
from medtl.labelmap import FILE_NAME, VOID, LabelMap
from medtl.scans.geometry import voxel_spacing
from medtl.scans.masks import MaskError, read_mask, unknown_limit
from medtl.scans.write import write_mask

if TYPE_CHECKING:
    from medtl.data.cases.table import Case
    from medtl.prediction.segment import Segmentation

logger = logging.getLogger(__name__)

_CHUNK = 1 << 22


class MaskWriter:
    """Writes segmented cases one by one and collects their rows; no volume stays in memory.

    The reference standard is read here, at the end of everything, and reaches evaluation alone: `evidence`, from
    which a model is chosen, has figures of the sources' masks and none of the target's.

    Attributes:
        folder: of the run.
        labels: what the values of the masks mean.
    """

    def __init__(self, folder: Path, labels: LabelMap) -> None:
        self.folder = folder
        self.labels = labels
        self._evidence: list[dict[str, Any]] = []
        self._rows: list[dict[str, Any]] = []
        self._voxels: list[pd.DataFrame] = []
        self._references: dict[str, str] = {}
        self._unusable: dict[str, str] = {}

    def add(
        self, segmentations: Iterable[Segmentation], model: str, seed: int, *, candidate: bool = True
    ) -> None:
        """Writes each case's mask, and compares it with its reference standard where there is one.

        Args:
            segmentations: cases with their masks.
            model: name of the model.
            seed: its training seed.
            candidate: it may be chosen; a model that has seen masks of the target is evaluated alone.
        """
        for found in segmentations:
            case = found.case
            if case.item is None:
                raise ValueError(f"Case {case.case!r} has no scan.")
            base = self.folder / "predictions" / f"{file_name(model)}-seed{seed}" / case.case
            mask = write_mask(base, found.mask, case.item, self.labels)
            reference = self._reference(case)
            self._rows.append(
                {
                    "case": case.case,
                    "patient": case.patient,
                    "split": case.split,
                    "domain": case.domain,
                    "site": case.site,
                    "model": model,
                    "seed": seed,
                    "mask": mask.relative_to(self.folder).as_posix(),
                    "reference": self._references.get(case.case, ""),
                    **case.groups,
                }
            )
            if candidate:
                known = self._known(found, reference if case.domain == "source" else None)
                self._evidence.append({**known, "model": model, "seed": seed})
            if reference is not None:
                spacing = None if case.item.affine is None else voxel_spacing(case.item.affine)[::-1]
                counts = voxel_histogram(found.probability, reference, found.mask, self.labels, spacing)
                self._voxels.append(counts.assign(case=case.case, model=model, seed=seed))

    @property
    def evidence(self) -> pd.DataFrame:
        """One row per case, candidate model and seed, for `medtl.recommend_masks`."""
        return pd.DataFrame(self._evidence)

    def finish(self) -> SegmentationTable:
        """Writes `predictions.csv`, `voxels.csv` and `labels.json`, and reads the table back with all checks."""
        order = ["case", "model", "seed", "structure", "bin", "n", "k", "margin"]
        frame = pd.DataFrame(self._rows).fillna("")
        self._write("predictions.csv", csv_text(frame))
        if self._voxels:
            voxels = pd.concat(self._voxels, ignore_index=True)[order]
            self._write("voxels.csv", csv_text(voxels))
        self._write(FILE_NAME, json.dumps(self.labels.to_dict(), indent=2) + "\n")
        return SegmentationTable.from_csv(self.folder / "predictions.csv")

    def _write(self, name: str, text: str) -> None:
        atomic_write(self.folder / name, text)

    def _reference(self, case: Case) -> NDArray[np.uint8] | None:
        """The reference standard in the scan's grid; written once. None for a mask that cannot be used."""
        if case.mask_item is None or case.item is None:
            return None
        try:
            limit = unknown_limit(case.domain)
            reference = read_mask(case.mask_item, case.item, self.labels, limit=limit).array
        except MaskError as error:
            if case.case not in self._unusable:
                self._unusable[case.case] = str(error)
                logger.warning("%s It is not evaluated.", error)
            return None
        if case.case not in self._references:
            path = write_mask(self.folder / "references" / case.case, reference, case.item, self.labels)
            self._references[case.case] = path.relative_to(self.folder).as_posix()
        return reference

    def _known(self, found: Segmentation, reference: NDArray[np.uint8] | None) -> dict[str, Any]:
        case = found.case
        called = np.bincount(found.mask.reshape(-1), minlength=VOID + 1)[: len(self.labels.classes)]
        result: dict[str, Any] = {"case": case.case, "patient": case.patient, "domain": case.domain}
        result["split"] = case.split
        result["certainty"] = certainty(found.probabilities)
        for name, count in zip(self.labels.structures, called[1:], strict=True):
            result[f"share_{name}"] = float(count / max(called.sum(), 1))
        if reference is not None:
            given = np.bincount(reference.reshape(-1), minlength=VOID + 1)[: len(self.labels.classes)]
            for name, count in zip(self.labels.structures, given[1:], strict=True):
                result[f"expected_{name}"] = float(count / max(given.sum(), 1))
            result["dice"] = mean_dice(found.mask, reference, len(self.labels.classes))
        return result


def certainty(probabilities: NDArray[np.float16]) -> float:
    """The share of the uncertainty about a voxel's class that a prediction removes: 1 - mean H(p) / H(mean p).

    In [0, 1]; 0 for a case that is certainly all background: there was no uncertainty to remove.

    Args:
        probabilities: (K, ...) of one case.
    """
    flat = probabilities.reshape(len(probabilities), -1)
    total, entropy = np.zeros(len(flat)), 0.0
    for part in _chunks(flat):
        total += part.sum(axis=1)
        entropy -= float((part * np.log(part.clip(1e-12))).sum())
    mean = total / total.sum()
    most = float(-(mean * np.log(mean.clip(1e-12))).sum())
    return 1.0 - entropy / total.sum() / most if most > 1e-9 else 0.0


def _chunks(flat: NDArray[np.float16]) -> Iterator[NDArray[np.float64]]:
    for start in range(0, flat.shape[1], _CHUNK):
        yield flat[:, start : start + _CHUNK].astype(np.float64)


def mean_dice(mask: NDArray[np.uint8], reference: NDArray[np.uint8], num_classes: int) -> float:
    """Mean Dice over the structures that are predicted or present; NaN if there are none.

    Args:
        mask: class of each voxel, as predicted.
        reference: class of each voxel, `VOID` where nobody knows it.
        num_classes: K, the background included.
    """
    known = reference != VOID
    pairs = np.bincount(
        reference[known].astype(np.int64) * num_classes + mask[known], minlength=num_classes**2
    ).reshape(num_classes, num_classes)
    either = (pairs.sum(0) + pairs.sum(1))[1:]
    both = np.diag(pairs)[1:]
    return float((2 * both[either > 0] / either[either > 0]).mean()) if either.any() else float("nan")
