"""The label-free choice: what it keeps, what it vetoes, and that it cannot see a label of the target."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from medtl.selection.decide import recommend, recommend_masks

CLASSES = ("normal", "lesion")


def rows(model: str, domain: str, label: np.ndarray, confidence: np.ndarray, seed: int = 0) -> pd.DataFrame:
    """Predictions with logits 0 and `confidence`."""
    return pd.DataFrame(
        {
            "case": [f"{domain}{i}" for i in range(len(label))],
            "patient": [f"p{i:03d}" for i in range(len(label))],
            "domain": domain,
            "split": "validation" if domain == "source" else "test",
            "model": model,
            "seed": seed,
            "label": np.asarray(CLASSES)[label],
            "logit_normal": 0.0,
            "logit_lesion": confidence,
        }
    )


def study(adapted_source: np.ndarray, adapted_target: np.ndarray) -> pd.DataFrame:
    truth = np.arange(40) % 2
    right = np.where(truth == 1, 3.0, -3.0)
    timid = np.where(truth == 1, 0.3, -0.3)
    return pd.concat(
        [
            rows("source_only", "source", truth, right),
            rows("source_only", "target", truth, timid),
            rows("dann", "source", truth, adapted_source),
            rows("dann", "target", truth, adapted_target),
        ]
    )


TRUTH = np.arange(40) % 2
RIGHT = np.where(TRUTH == 1, 3.0, -3.0)


def test_keeps_what_informs_most() -> None:
    decision = recommend(study(RIGHT, RIGHT), CLASSES)
    assert decision.model == "dann"
    values = next(e.values for e in decision.evidence if "Information" in e.name)
    p = 1 / (1 + np.exp(-3))
    entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p))
    assert values["dann"] == pytest.approx(np.log(2) - entropy, rel=1e-9)


def test_vetoes_a_collapse_however_certain() -> None:
    decision = recommend(study(RIGHT, np.full(40, 9.0)), CLASSES)
    assert decision.model == "source_only"
    assert "normal" in decision.reason


def test_vetoes_a_model_that_forgot_the_source() -> None:
    decision = recommend(study(np.where(np.arange(40) < 20, RIGHT, -RIGHT), RIGHT), CLASSES)
    assert decision.model == "source_only"
    assert "source validation" in decision.reason


def test_a_class_that_both_lost_is_no_gain() -> None:
    table = study(RIGHT, np.full(40, 5.0))
    both = (table.model == "source_only") & (table.domain == "target")
    table.loc[both, "logit_lesion"] = 4.0
    assert recommend(table, CLASSES).model == "source_only"


def test_a_tie_changes_nothing() -> None:
    truth = np.where(TRUTH == 1, 0.3, -0.3)
    decision = recommend(study(RIGHT, truth * 1.01), CLASSES)
    assert decision.model == "source_only"
    assert "No adapted model" in decision.reason


def test_a_loss_that_may_be_chance_is_no_veto() -> None:
    table = study(RIGHT, RIGHT)
    few = table[(table.domain == "target") | table.case.isin([f"source{i}" for i in range(8)])].copy()
    worse = (few.model == "dann") & (few.case == "source1")
    few.loc[worse, "logit_lesion"] *= -1  # one of eight: balanced accuracy falls by .125
    decision = recommend(few, CLASSES)
    assert decision.model == "dann"
    assert "8 patients leave doubt" in decision.reason


def test_a_model_that_changed_nothing_is_not_kept() -> None:
    decision = recommend(study(RIGHT, np.where(TRUTH == 1, 0.3, -0.3)), CLASSES)
    assert decision.model == "source_only"
    assert "same" in decision.reason


def test_of_several_the_reason_names_the_refused_and_compares_the_rest() -> None:
    """A collapsed model is the most certain of all; its figure is not what the kept one is measured by."""
    more = [
        rows("collapsed", "source", TRUTH, RIGHT),
        rows("collapsed", "target", TRUTH, np.full(40, 9.0)),
        rows("bold", "source", TRUTH, RIGHT),
        rows("bold", "target", TRUTH, 2 * RIGHT),
    ]
    decision = recommend(pd.concat([study(RIGHT, RIGHT), *more]), CLASSES)
    assert decision.model == "bold"
    figures, rest = decision.reason.partition(")")[::2]
    assert "dann" in figures
    assert "source_only" in figures
    assert "collapsed" not in figures
    assert "collapsed is not kept: it hardly predicts normal" in rest
    kept = recommend(pd.concat([study(RIGHT, 0.1 * RIGHT), *more[:2]]), CLASSES)
    assert kept.model == "source_only"
    assert "collapsed is not kept" in kept.reason
    assert "no other adapted model's" in kept.reason


def test_target_labels_are_not_seen() -> None:
    table = study(RIGHT, RIGHT)
    flipped = table.copy()
    target = flipped.domain == "target"
    flipped.loc[target, "label"] = "nonsense"
    assert recommend(table, CLASSES) == recommend(flipped, CLASSES)


def test_seeds_are_averaged() -> None:
    good, bad = study(RIGHT, RIGHT), study(RIGHT, np.where(TRUTH == 1, 0.1, -0.1)).assign(seed=1)
    values = next(
        e.values for e in recommend(pd.concat([good, bad]), CLASSES).evidence if "Information" in e.name
    )
    single = next(e.values for e in recommend(good, CLASSES).evidence if "Information" in e.name)
    assert values["dann"] < single["dann"]


def cases(model: str, domain: str, certainty: float, share: float, dice: float = np.nan) -> pd.DataFrame:
    """What is known of ten segmented cases without their masks; of the source's, also their Dice."""
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "case": [f"{domain}{i}" for i in range(10)],
            "patient": [f"p{i:03d}" for i in range(10)],
            "domain": domain,
            "split": "validation" if domain == "source" else "test",
            "model": model,
            "seed": 0,
            "certainty": certainty + 0.01 * rng.normal(size=10),
            "share_nucleus": share,
            "expected_nucleus": 0.1 if domain == "source" else np.nan,
            "dice": dice + 0.01 * rng.normal(size=10),
        }
    )


def masks(certainty: float, share: float = 0.1, dice: float = 0.9) -> pd.DataFrame:
    return pd.concat(
        [
            cases("source_only", "source", 0.9, 0.1, 0.9),
            cases("source_only", "target", 0.6, 0.08),
            cases("adapted", "source", 0.9, 0.1, dice),
            cases("adapted", "target", certainty, share),
        ]
    )


class TestMasks:
    def test_keeps_the_more_certain(self) -> None:
        assert recommend_masks(masks(0.8), ("nucleus",)).model == "adapted"
        assert recommend_masks(masks(0.5), ("nucleus",)).model == "source_only"

    def test_vetoes_a_lost_structure(self) -> None:
        decision = recommend_masks(masks(0.99, share=0.001), ("nucleus",))
        assert decision.model == "source_only"
        assert "hardly predicts nucleus" in decision.reason

    def test_vetoes_a_model_that_forgot_the_source(self) -> None:
        decision = recommend_masks(masks(0.9, dice=0.5), ("nucleus",))
        assert decision.model == "source_only"
        assert "0.40 of Dice" in decision.reason

    def test_sees_no_dice_of_the_target(self) -> None:
        table = masks(0.8)
        other = table.assign(dice=table.dice.where(table.domain == "source", 0.123))
        assert recommend_masks(other, ("nucleus",)) == recommend_masks(table, ("nucleus",))
