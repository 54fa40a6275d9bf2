"""A new metric is one file in `medtl/evaluation/metrics/`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest

from tests.one_file.conftest import ROOT, Copy

OF_CALLS = '''"""The F1 score."""

from __future__ import annotations

from medtl.evaluation.metrics.calls import confusion
from medtl.evaluation.metrics.metric import ClassificationMetric, Values
from medtl.evaluation.metrics.sample import Draw
from medtl.evaluation.statistics.arrays import divide


def _f1(draw: Draw) -> Values:
    cells, positive = draw.shared(confusion), draw.sample.cases.positive
    if positive is None:
        return {}
    hits = 2 * cells[:, positive, positive]
    return divide(hits, cells[:, positive].sum(axis=1) + cells[:, :, positive].sum(axis=1))


METRICS = (
    ClassificationMetric(
        name="f1",
        title="F1 score",
        definition="Harmonic mean of sensitivity and positive predictive value in this sample.",
        section="calls",
        interval="percentile",
        better="higher",
        paired=True,
        headline=3,
        compute=_f1,
    ),
)
'''

OF_MASKS = '''"""How many voxels too many, and how far away the middle is."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from medtl.evaluation.metrics.metric import MaskMetric
from medtl.evaluation.metrics.pair import MaskPair
from medtl.evaluation.statistics.arrays import Floats


def _apart(pair: MaskPair) -> float:
    middles = [np.argwhere(mask).mean(axis=0) for mask in (pair.called, pair.reference)]
    return float(np.linalg.norm((middles[0] - middles[1]) * (pair.spacing or 1.0)))


def _ratio(columns: Mapping[str, Floats]) -> Floats:
    reference = columns["volume_reference"]
    return np.divide(columns["volume_predicted"], reference, out=np.full_like(reference, np.nan), where=reference > 0)


METRICS = (
    MaskMetric(
        name="apart",
        title="Distance of the middles",
        definition="Distance between the middle of the mask and that of the reference.",
        section="surfaces",
        interval="mean",
        better="lower",
        unit="distance",
        paired=True,
        empty="distance",
        from_masks=_apart,
    ),
    MaskMetric(
        name="ratio",
        title="Ratio of the volumes",
        definition="Segmented volume over the volume of the reference.",
        section="volumes",
        interval="mean",
        better="",
        from_columns=_ratio,
        over_structures=False,
    ),
)
'''


def measured(results: dict, name: str, **where: str) -> list[dict]:
    """The estimates of a metric on the external cases of the first block that fits."""
    block = next(b for b in results["blocks"] if all(b[k] == v for k, v in where.items()))
    return [m for m in block["measures"] if m["name"] == name]


def test_a_metric_of_classifications(copy: Copy) -> None:
    copy.add("medtl/evaluation/metrics/mine.py", OF_CALLS)
    copy.medtl("report", "sample_data/predictions.csv", "--out", "mine")
    results = json.loads((copy.root / "mine" / "results.json").read_text())
    table = pd.read_csv(ROOT / "sample_data" / "predictions.csv")
    rows = table[(table.model == "source_only") & (table.domain == "target")]
    point = next(s for s in results["settings"] if s["model"] == "source_only")["operating_point"]
    called = rows.logit_lesion - rows.logit_normal >= point["threshold"]
    sick = rows.label == "lesion"
    expected = 2 * (called & sick).sum() / (called.sum() + sick.sum())
    (found,) = measured(results, "f1", model="source_only", domain="target")
    assert found["estimate"]["value"] == pytest.approx(expected)
    assert found["estimate"]["lo"] < expected < found["estimate"]["hi"]
    assert {d["model"] for d in results["differences"] if d["name"] == "f1"} == {"adapted"}
    card = (copy.root / "mine" / "report.md").read_text()
    assert re.search(r"^\| Model \| .*Sensitivity \| .*F1 score \|$", card, flags=re.MULTILINE)
    assert "Harmonic mean of sensitivity and positive predictive value in this sample." in card
    assert "f1" in copy.medtl("list", "metrics")


def save_mask(path: Path, values: np.ndarray) -> str:
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(values.T), np.diag([2.0, 2.0, 4.0, 1.0])), path)
    return path.name


def test_metrics_of_masks(copy: Copy) -> None:
    copy.add("medtl/evaluation/metrics/mine.py", OF_MASKS)
    rows = []
    for case in range(12):
        reference = np.zeros((4, 12, 12), dtype=np.uint8)
        reference[1:3, 3:7, 3:7] = 1
        judged = save_mask(copy.root / f"reference{case}.nii.gz", reference)
        for model, shift in (("source_only", 2), ("dann", 1)):
            mask = np.roll(reference, shift + case % 2, axis=2)
            called = save_mask(copy.root / f"{model}{case}.nii.gz", mask)
            rows.append(
                {"case": f"c{case}", "patient": f"p{case}", "split": "test", "domain": "target", "site": "b"}
                | {"model": model, "mask": called, "reference": judged}
            )
    pd.DataFrame(rows).to_csv(copy.root / "masks.csv", index=False)
    copy.medtl("report", "masks.csv", "--out", "mine")
    results = json.loads((copy.root / "mine" / "results.json").read_text())
    (apart,) = measured(results, "apart", model="dann")
    assert apart["cls"] == "foreground"
    assert apart["estimate"]["value"] == pytest.approx(3.0)  # 1 or 2 voxels of 2 mm
    (ratio,) = measured(results, "ratio", model="dann")
    assert ratio["estimate"]["value"] == pytest.approx(1.0)
    (difference,) = [d for d in results["differences"] if d["name"] == "apart"]
    assert (difference["estimate"]["value"], difference["verdict"]) == (pytest.approx(-2.0), "gain")
    page = (copy.root / "mine" / "index.html").read_text()
    for words in (
        "Distance between the middle of the mask and that of the reference.",
        "Ratio of the volumes",
    ):
        assert words in page
