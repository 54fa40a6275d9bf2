"""Runs of every recipe that trains, of both tasks: what they hold, and that every model of theirs predicts."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
import pytest

from medtl.cli import main
from tests.helpers.figures import leave_out
from tests.helpers.masks import write_masked_site
from tests.helpers.sites import write_site

TINY = [
    "--weights",
    "random",
    "--image-size",
    "32",
    "--epochs",
    "1",
    "--batch-size",
    "8",
    "--augment",
    "none",
]
ENCODER = {
    "adapt": "--encoder",
    "finetune": "--encoder",
    "compare": "--encoders",
    "data_efficiency": "--encoder",
}
RUNS: dict[str, tuple[list[str], set[str]]] = {
    "labels/adapt": (
        ["--method", "dann", "adabn", "tent", "shot", "--target-trained"],
        {"source_only", "dann", "adabn", "tent", "shot"},
    ),
    "labels/finetune": (["--strategy", "last:1", "--target-trained"], {"finetune"}),
    "labels/compare": (
        ["--strategies", "probe,last:1", "--methods", "fda", "--seeds", "2", "--target-trained"],
        {"source_only+probe", "source_only+last:1", "fda+last:1"},  # a probe's features cannot be restyled
    ),
    "labels/data_efficiency": (
        ["--strategies", "full", "--methods", "adabn", "--patients", "6", "--seeds", "1"],
        {"source_only@6", "adabn@6", "source_only@24", "adabn@24"},
    ),
    "masks/adapt": (
        ["--method", "adabn", "histogram", "tent", "mean_teacher", "--target-trained"],
        {"source_only", "adabn", "histogram", "tent", "mean_teacher"},
    ),
    "masks/finetune": (["--strategy", "head", "--target-trained"], {"finetune"}),
    "masks/compare": (
        [
            "--encoders",
            "resnet10t",
            "test_resnet",
            "--strategies",
            "last:1",
            "--methods",
            "adabn",
            "--seeds",
            "1",
        ],
        {f"{e}/{w}" for e in ("resnet10t", "test_resnet") for w in ("source_only", "adabn")},
    ),
    "masks/data_efficiency": (
        ["--strategies", "full", "--patients", "4", "--seeds", "2"],
        {"full@4", "full@9"},
    ),
}


LONG = (
    *("labels/finetune", "labels/data_efficiency", "labels/compare"),
    *("masks/finetune", "masks/data_efficiency", "masks/compare"),
)
"""Runs for the long tests alone; `adapt` is the one that uses most of what the others use."""


@pytest.fixture(
    scope="module",
    params=[pytest.param(n, marks=pytest.mark.slow if n in LONG else ()) for n in sorted(RUNS)],
)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A finished run: its folder (in the working directory), its name, and the models that it should hold."""
    task, _, recipe = request.param.partition("/")
    root = tmp_path_factory.mktemp(recipe)
    flags, models = RUNS[request.param]
    if task == "labels":
        write_site(root / "a", 40)
        write_site(root / "b", 12, offset=100, shade=60)
        labels = root / "b" / "labels.csv"
        labels.write_text("\n".join(labels.read_text().splitlines()[:-1]) + "\n")  # one case has no label
        data = ["--labels", "a/labels.csv", "--target-labels", "b/labels.csv"]
    else:
        write_masked_site(root / "a", 15)
        write_masked_site(root / "b", 6, offset=100, shade=60)
        next((root / "b" / "masks").glob("*.png")).unlink()
        data = ["--masks", "a/masks", "--target-masks", "b/masks"]
    words = ["run", recipe, "--source", "a", "--target", "b", *data, *TINY, "--out", "run"]
    if "--encoders" not in flags:
        words += [ENCODER[recipe], "test_resnet"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        leave_out(patch)
        assert main([*words, *flags]) == 0
        yield root / "run", request.param, models


def test_the_report_holds_every_model(run: Any) -> None:
    folder, name, models = run
    results = json.loads((folder / "report" / "results.json").read_text())
    bound = "--target-trained" in RUNS[name][0]
    assert set(results["models"]) == models | ({"target_trained"} if bound else set())
    context = results["context"]
    assert context["target_trained"] == (["target_trained"] if bound else [])
    assert context["target_seen_unlabelled"] == any("source_only" in m for m in models)
    assert {c["model"] for c in context["costs"]} == models
    assert set(context["methods"]) == models
    assert all(context["methods"].values())
    trained = {c["model"] for c in context["learning"]}
    assert trained <= models
    assert trained  # methods that take no step have no curve


def test_target_labels_choose_nothing(run: Any) -> None:
    folder, name, models = run
    methods = {"--method", "--methods"} & set(RUNS[name][0])
    chooses = bool(methods) and not name.endswith("data_efficiency")
    assert (folder / "decision.json").exists() == chooses
    if not chooses:
        return
    decision = json.loads((folder / "decision.json").read_text())
    assert decision["model"] in models
    assert all(set(e["values"]) == models for e in decision["evidence"])


def test_every_case_of_the_bound_is_judged_once(run: Any) -> None:
    folder, name, _ = run
    if "--target-trained" not in RUNS[name][0]:
        return
    table = pd.read_csv(folder / "predictions.csv")
    bound = table[table.model == "target_trained"]
    assert set(bound.domain) == {"target"}
    assert not bound.duplicated(["case", "seed"]).any()
    assert set(bound.case) == set(table[table.domain == "target"].case)


def test_every_model_predicts_by_the_name_of_the_report(run: Any) -> None:
    folder, _, models = run
    for number, model in enumerate(sorted(models)):
        out = folder.parent / f"new{number}"
        assert main(["predict", str(folder), "b", "--out", str(out), "--model", model]) == 0, model
        assert (out / "predictions.csv").exists() or (out / "volumes.csv").exists()


def test_without_a_choice_a_name_is_asked_for(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _, models = run
    capsys.readouterr()
    code = main(["predict", str(folder), "b", "--out", str(folder.parent / "unnamed")])
    if len(models) > 1 and not (folder / "decision.json").exists():
        assert code == 2
        told = " ".join(capsys.readouterr().err.split())
        assert "--model" in told
        assert all(model in told for model in models)
    else:
        assert code == 0
