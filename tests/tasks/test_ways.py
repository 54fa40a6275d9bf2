"""One way of fine-tuning: what its flags mean, what it costs, what a resumed run remembers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from medtl.training.finetune import FineTuning

import medtl
from medtl.cli import main
from medtl.errors import ConfigError
from tests.sites import write_site

FLAGS: dict[str, Any] = {
    "encoder": "test_resnet",
    "weights": "random",
    "head": "linear",
    "imbalance": "none",
    "augment": "none",
}


def test_hyper_parameters_of_all_and_of_one() -> None:
    flags = {**FLAGS, "hparams": ("mixup=0.2", "lp_ft.penalty=3", "last.dropout=0.1")}
    config = SimpleNamespace(**flags, strategies="lp_ft,last:2,full")
    assert FineTuning.of_recipe(config, strategy="lp_ft").hparams == {"mixup": 0.2, "penalty": 3.0}
    assert FineTuning.of_recipe(config, strategy="last:2").hparams == {"mixup": 0.2, "dropout": 0.1}
    assert FineTuning.of_recipe(config, strategy="full").hparams == {"mixup": 0.2}
    with pytest.raises(ConfigError, match="strategy 'last', which is not among this run's"):
        FineTuning.of_recipe(SimpleNamespace(**flags), strategy="lp_ft")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"head": "deep"}, "no head 'deep'"),
        ({"head": "dense:0"}, "dense:N"),
        ({"imbalance": "focl"}, "no imbalance 'focl'"),
    ],
)
def test_names_that_do_not_exist(wrong: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FineTuning(**{**FLAGS, **wrong})


def test_dense_head_and_note(tmp_path: Path) -> None:
    way = FineTuning(**{**FLAGS, "head": "dense:16", "imbalance": "focal", "strategy": "head"})
    spec = medtl.Preprocess(image_size=32, channels=1)
    model: Any = way.build(3, spec, seed=0).model
    assert model.num_features == 16
    assert model.pool is None  # images have no slices
    assert "Strategy head on test_resnet" in way.note
    assert "proper scoring rule" in way.note


def test_a_run_says_how_training_went_and_what_it_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    site = write_site(tmp_path / "site", 30)
    words = ["run", "compare_methods", "--source", "site", "--labels", str(site / "labels.csv")]
    words += ["--encoders", "test_resnet", "--strategies", "probe,last:1", "--weights", "random"]
    words += ["--image-size", "32", "--epochs", "2", "--seeds", "2", "--imbalance", "balanced_sampling"]
    assert main([*words, "--out", "r"]) == 0
    results = json.loads((tmp_path / "r/report/results.json").read_text())
    context = results["context"]
    costs = {c["model"]: c for c in context["costs"]}
    assert set(costs) == {"probe", "last:1"}
    probe, last = costs["probe"], costs["last:1"]
    assert 0 < probe["trained_parameters"] < last["trained_parameters"] < last["parameters"]
    assert probe["train_seconds"] > 0
    assert len(context["learning"]) == 4
    assert all(0 <= c["train_accuracy"] <= 1 for c in context["learning"])
    assert "equally often" in context["methods"]["probe"]
    kept = json.loads((tmp_path / "r/checkpoints/probe-seed0/cost.json").read_text())
    (tmp_path / "r/DONE").unlink()  # stopped before the end: the costs are those that were measured
    assert main(["run", "compare_methods", "--resume", "r"]) == 0
    again = json.loads((tmp_path / "r/report/results.json").read_text())["context"]["costs"]
    assert [c["train_seconds"] for c in again] == [c["train_seconds"] for c in context["costs"]]
    assert kept["model"] == "probe"
