from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest

from medtl.errors import ConfigError
from medtl.evaluation.metrics import empty
from medtl.evaluation.metrics.metric import ClassificationMetric, Key, MaskMetric, VoxelMetric
from medtl.evaluation.metrics.operating import OperatingPoint
from medtl.evaluation.metrics.pair import MaskPair, Scene
from medtl.evaluation.metrics.registry import MEASURES, find_metrics, headlines
from medtl.evaluation.metrics.sample import Cases, Draw, Sample

WORDS = {"title": "T", "definition": "D.", "section": "calls", "interval": "mean", "better": ""}
TWO, THREE = ("normal", "lesion"), ("a", "b", "c")


def of_kind(kind: type) -> list:
    return [pytest.param(m, id=m.name) for m in MEASURES.values() if isinstance(m, kind)]


def sample(classes: tuple[str, ...]) -> Sample:
    rng = np.random.default_rng(0)
    label = np.arange(60) % len(classes)
    logits = rng.normal(size=(60, len(classes))) + np.eye(len(classes))[label]
    binary = len(classes) == 2
    cases = Cases(label, np.arange(60) // 2, 30, rng.uniform(0.5, 2, 60), classes, 1 if binary else None)
    point = OperatingPoint("youden", 0.3, 0.57, "lesion") if binary else None
    return Sample(cases, logits, point, 1.5, 0.2 if binary else None)


def test_every_file_that_holds_metrics_is_found() -> None:
    folder = Path(empty.__file__).parent
    names = [path.stem for path in folder.glob("*.py") if "\nMETRICS = (" in path.read_text()]
    assert len(names) >= 8
    held = [m for name in names for m in importlib.import_module(f"medtl.evaluation.metrics.{name}").METRICS]
    assert {m.name for m in held} == set(MEASURES)
    assert list(dict.fromkeys(m.task for m in MEASURES.values())) == ["classification", "segmentation"]
    assert headlines("classification") == ("balanced_accuracy", "auroc")
    assert headlines("segmentation") == ("dice",)


def test_two_metrics_of_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(empty, "METRICS", (MEASURES["auroc"],), raising=False)
    with pytest.raises(ConfigError, match=r"Two metrics are called 'auroc'; one of them is in .*\.empty"):
        find_metrics()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"section": "call"}, "'call'. Perhaps you meant 'calls'"),
        ({"interval": "bootstrap"}, "the interval 'bootstrap'"),
        ({"better": "more"}, "the better 'more'"),
        ({"empty": "none"}, "rule 'none' for empty masks"),
        ({"from_columns": dict}, "from masks or from columns"),
    ],
)
def test_entries_that_say_nothing(wrong: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MaskMetric(**({"name": "x", "from_masks": float} | WORDS | wrong))


@pytest.mark.parametrize("metric", of_kind(ClassificationMetric))
@pytest.mark.parametrize("classes", [TWO, THREE])
def test_metrics_of_classifications(metric: ClassificationMetric, classes: tuple[str, ...]) -> None:
    """Named after the metric, the same for every row order of resamples, with a support that counts patients."""
    model = sample(classes)
    counts = np.random.default_rng(1).multinomial(30, np.full(30, 1 / 30), size=4).astype(float)
    found = metric.compute(Draw(model, counts))
    values = found if isinstance(found, dict) else {Key(metric.name): found}
    turned = metric.compute(Draw(model, counts[::-1]))
    turned = turned if isinstance(turned, dict) else {Key(metric.name): turned}
    for key, own in values.items():
        assert key.name == metric.name
        assert np.isfinite(own).all()
        np.testing.assert_allclose(turned[key][::-1], own, rtol=1e-12)
        support = metric.support(model.cases, key)
        assert 0 < support.smaller <= support.num_patients <= 30
    absent = {"class_auroc", "recall"} if classes == TWO else {"sensitivity", "specificity", "ppv", "npv"}
    absent |= set() if classes == TWO else {"calibration_slope", "calibration_intercept"}
    assert (not values) is (metric.name in absent)


@pytest.mark.parametrize(
    "metric", [p for p in of_kind(MaskMetric) if p.values[0].from_masks and p.values[0].better]
)
def test_metrics_of_masks(metric: MaskMetric) -> None:
    """Perfect masks are best, and masks that are further off are worse."""
    reference = np.zeros((4, 20, 20), dtype=np.uint8)
    reference[1:3, 4:10, 4:10] = 1

    def of(shift: int) -> float:
        scenes = [Scene(np.roll(reference, by, axis=2), (3.0, 1.0, 1.0), 1) for by in (shift, 0)]
        assert metric.from_masks is not None
        return metric.from_masks(MaskPair((scenes[0], scenes[1]), 1, 1.0))

    assert of(0) == (1.0 if metric.better == "higher" else 0.0)
    sign = 1 if metric.better == "higher" else -1
    assert sign * of(0) > sign * of(2) > sign * of(5)


def test_every_metric_of_segmentations_is_of_masks_or_of_voxels() -> None:
    for metric in MEASURES.values():
        assert isinstance(metric, MaskMetric | VoxelMetric) is (metric.task == "segmentation")
