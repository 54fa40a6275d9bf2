from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medtl.errors import DataError
from medtl.runs import MetricsLog
from medtl.training.learning import Kept, balanced_accuracy, learning_curves


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    path = tmp_path / "metrics.csv"
    full, probe = MetricsLog(path, "resnet50/full", 1), MetricsLog(path, "probe", 0)
    for epoch, (own, held) in enumerate([(1.0, 1.1), (0.5, 0.8), (0.1, 1.2)]):
        values = {"loss": own + 9, "source_loss": own, "validation_loss": held}
        full.append(epoch, 10 * epoch, values | {"validation_balanced_accuracy": 0.5 + epoch / 10})
        if epoch < 2:
            probe.append(epoch, 10 * epoch, {"loss": 2 * own})
    return path


def test_curves_by_model_and_seed(metrics: Path) -> None:
    full, probe = learning_curves(metrics, [Kept("resnet50/full", 1, 1, 0.97, 0.8, 24), Kept("probe", 0, 1)])
    assert (full.model, full.seed, full.epochs, full.kept_epoch) == ("resnet50/full", "1", (1, 2, 3), 2)
    assert full.train_loss == (1.0, 0.5, 0.1)  # the supervised part, not the sum
    assert full.validation_loss == (1.1, 0.8, 1.2)
    assert full.validation_accuracies == (0.5, 0.6, 0.7)
    assert (full.train_accuracy, full.validation_accuracy, full.validation_patients) == (0.97, 0.8, 24)
    assert (probe.train_loss, probe.validation_loss) == ((2.0, 1.0), ())


def test_what_was_not_trained_is_left_out(metrics: Path, tmp_path: Path) -> None:
    assert learning_curves(metrics, [Kept("nobody", 0, 0)]) == ()
    assert learning_curves(tmp_path / "none.csv", [Kept("probe", 0, 0)]) == ()


def test_gaps_and_repeats(metrics: Path) -> None:
    log = MetricsLog(metrics, "probe", 0)
    log.append(1, 10, {"loss": 7.0})  # a resumed run writes an epoch again
    log.append(2, 20, {"loss": float("nan"), "validation_loss": 0.3})
    (curve,) = learning_curves(metrics, [Kept("probe", 0, 2)])
    assert curve.train_loss == (2.0, 7.0, None)
    assert curve.validation_loss == (None, None, 0.3)


def test_foreign_tables_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("model,seed,epoch,step,metric,value\nprobe,0,0,0,loss,high\n")
    with pytest.raises(DataError, match=r"'metrics.csv' are not readable at line 2"):
        learning_curves(path, [])


def test_balanced_accuracy() -> None:
    logits = np.array([[2, 0, 0], [2, 0, 0], [0, 2, 0], [0, 2, 0.0], [0, 0, 2]])
    # class 0: one of two right, class 1: one of one, class 2 does not occur, one case is not labelled.
    assert balanced_accuracy([0, 0, 1, -1, 0], logits) == pytest.approx((2 / 3 + 1) / 2)
    assert balanced_accuracy([-1] * 5, logits) is None
    labels = np.array([[1, 0], [0, 0], [np.nan, 1]])
    scores = np.array([[1.0, -1], [2, -1], [0, -1]])
    assert balanced_accuracy(labels, scores) == pytest.approx((0.5 + 0.5) / 2)


def test_agrees_with_scikit_learn() -> None:
    from sklearn.metrics import balanced_accuracy_score

    rng = np.random.default_rng(0)
    labels, logits = rng.integers(0, 4, 200), rng.normal(size=(200, 4))
    assert balanced_accuracy(labels, logits) == pytest.approx(
        balanced_accuracy_score(labels, logits.argmax(1))
    )
