"""Ways to a model: what their flags mean, what they cost, what a resumed run remembers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import medtl
from medtl.adapters import available
from medtl.cli import load_recipe, main
from medtl.errors import ConfigError
from medtl.tasks.task import task_of
from medtl.tasks.ways import ways_of
from tests.helpers.sites import write_site


def config(**flags: Any) -> Any:
    """A classifier's configuration."""
    kind = load_recipe("finetune").Config
    return kind(source=(Path("s"),), labels=Path("l"), weights="random", **flags).ready()


class TestWays:
    def test_hyper_parameters_of_all_and_of_one(self) -> None:
        hparams = ("mixup=0.2", "lp_ft.penalty=3", "last.dropout=0.1")
        ways = ways_of(("test_resnet",), strategies=("lp_ft", "last:2", "full"), hparams=hparams)
        assert [dict(way.strategy_hparams) for way in ways] == [
            {"mixup": 0.2, "penalty": 3.0},
            {"mixup": 0.2, "dropout": 0.1},
            {"mixup": 0.2},
        ]
        with pytest.raises(ConfigError, match="'last', which is not among this run's"):
            ways_of(("test_resnet",), strategies=("lp_ft",), hparams=hparams)

    def test_a_method_and_a_strategy_have_their_own(self) -> None:
        hparams = ("dann.weight=0.5", "mixup=0.1", "norm=joint", "source_only.label_smoothing=0.1")
        found = ways_of(("r",), strategies=("full",), methods=("dann",), hparams=hparams)
        assert {w.name: (dict(w.hparams), dict(w.strategy_hparams)) for w in found} == {
            "source_only": ({"label_smoothing": 0.1}, {"mixup": 0.1}),
            "dann": ({"weight": 0.5, "norm": "joint"}, {"mixup": 0.1}),
        }
        with pytest.raises(ConfigError, match="Both a method and a strategy"):
            ways_of(("r",), strategies=("delta",), methods=("dann",), hparams=("weight=0.5",))
        with pytest.raises(
            ConfigError, match="None of dann, full, source_only has a hyper-parameter 'wieght'"
        ):
            ways_of(("r",), strategies=("full",), methods=("dann",), hparams=("wieght=0.5",))

    def test_names_are_crossed_with_encoders(self) -> None:
        found = ways_of(("a", "b"), methods=("adabn", "dann"))
        own = ["source_only", "adabn", "dann"]
        assert [w.name for w in found] == [f"{e}/{n}" for e in "ab" for n in own]
        starts = {w.name: w.start for w in found}
        assert starts["b/adabn"] == "b/source_only"  # its weights are source-only's
        assert starts["b/dann"] == ""
        assert [w.is_source_only for w in found] == [w.name.endswith("source_only") for w in found]

    @pytest.mark.parametrize("name", available())
    def test_methods_without_a_source_start_from_source_only(self, name: str) -> None:
        way = (
            ways_of(("r",), methods=(name,))[-1]
            if name != "finetune"
            else ways_of(("r",), methods=("fda",))[0]
        )
        assert (way.start == "source_only") == (way.kind.starts_from == "source_only")
        assert way.name in way.note or way.is_source_only

    def test_methods_are_crossed_with_strategies(self) -> None:
        found = {
            w.name: w
            for w in ways_of(("r",), strategies=("full", "probe", "lora"), methods=("dann", "adabn"))
        }
        assert list(found) == [
            *("source_only+full", "dann+full", "adabn+full"),
            *(
                "source_only+probe",
                "adabn+probe",
            ),  # the features of a probe are fixed: nothing for DANN to move
            *("source_only+lora", "dann+lora", "adabn+lora"),
        ]
        assert "dann (its features are computed once" in found["source_only+probe"].note
        assert found["adabn+lora"].start == "source_only+lora"
        assert (found["adabn+lora"].strategy, found["dann+lora"].strategy) == ("full", "lora")
        assert found["dann+lora"].note == "Method dann on r with the strategy lora."

    def test_two_of_one_name_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="would be called dann"):
            ways_of(("r",), methods=("dann", "dann"))


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
        task_of(config(**wrong))


def test_dense_head_and_note() -> None:
    task = task_of(config(head="dense:16", imbalance="focal"))
    spec = medtl.Preprocess(image_size=32, channels=1)
    model: Any = task.build("test_resnet", 3, spec, seed=0)
    assert model.num_features == 16
    assert model.pool is None  # images have no slices
    assert "proper scoring rule" in task.note
    assert ways_of(("test_resnet",), strategies=("head",))[0].note == "Strategy head on test_resnet."


def test_a_remedy_that_would_do_nothing_is_refused() -> None:
    task = task_of(config(imbalance="focal"))
    way = ways_of(("test_resnet",), strategies=("knn",))[0]
    spec = medtl.Preprocess(image_size=32, channels=1)
    with pytest.raises(ConfigError, match="trains nothing"):
        task.check_adapter(way.around(task.build("test_resnet", 2, spec, 0), 0))


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_a_run_says_how_training_went_and_what_it_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    site = write_site(tmp_path / "site", 30)
    words = ["run", "compare", "--source", "site", "--labels", str(site / "labels.csv")]
    words += ["--encoders", "test_resnet", "--strategies", "probe,last:1", "--weights", "random"]
    words += ["--image-size", "32", "--epochs", "1", "--seeds", "2", "--imbalance", "balanced_sampling"]
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
    assert main(["run", "compare", "--resume", "r"]) == 0
    again = json.loads((tmp_path / "r/report/results.json").read_text())["context"]["costs"]
    assert [c["train_seconds"] for c in again] == [c["train_seconds"] for c in context["costs"]]
    assert kept["model"] == "probe"


def test_few_labels_that_nobody_learns_from_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    write_site(tmp_path / "a", 12)
    write_site(tmp_path / "b", 12, offset=100)
    (tmp_path / "few.csv").write_text("case,label\nc100,class0\nc101,class1\n")
    words = ["--source", "a", "--labels", "a/labels.csv", "--target", "b", "--weights", "random"]
    words += ["--encoder", "test_resnet", "--image-size", "32"]
    for recipe, more, message in (
        ("adapt", ["--method", "dann", "--few-labels", "few.csv"], "no model of this run learns from labels"),
        ("finetune", ["--few-labels", "few.csv"], "no model of this run learns from labels"),
        ("adapt", ["--method", "few_labels"], "give --few-labels CSV"),
    ):
        assert main(["run", recipe, *words, *more]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    (tmp_path / "few.csv").write_text("case,label\nc100,other\nc999,class0\n")
    assert main(["run", "adapt", *words, "--method", "few_labels", "--few-labels", "few.csv"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "a label that is among the classes, such as 'c100'" in said.replace(
        "have no label", "have a label"
    )
    assert "few.csv (--few-labels) labels 1 cases for which there is no scan" in said
    assert not (tmp_path / "runs").exists()
