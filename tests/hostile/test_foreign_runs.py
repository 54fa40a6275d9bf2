"""Run folders from anywhere: each altered one is refused in plain words, or does no harm; none runs code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from medtl.checkpoints import load_weights, save_weights
from medtl.cli import main
from medtl.models import Classifier, Output, Segmenter
from medtl.record import RECORD
from tests.helpers.figures import leave_out
from tests.helpers.masks import write_masked_site
from tests.helpers.sites import TINY, write_site

MODEL = "checkpoints/dann-seed0/model.safetensors"
Change = Callable[[Path], None]


@pytest.fixture(scope="module", params=["labels", pytest.param("masks", marks=pytest.mark.slow)])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of dann and tent, and the site that they have not seen."""
    root = tmp_path_factory.mktemp(request.param)
    if request.param == "labels":
        write_site(root / "a", 24)
        write_site(root / "b", 6, offset=100, shade=60)
        data = ["--labels", "a/labels.csv"]
    else:
        write_masked_site(root / "a", 8)
        write_masked_site(root / "b", 3, offset=100, shade=60)
        data = ["--masks", "a/masks"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        leave_out(patch)
        words = ["--source", "a", "--target", "b", *data, *TINY, "--method", "dann", "tent", "--out", "run"]
        assert main(["run", "adapt", *words]) == 0
    return root


@pytest.fixture
def run(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in the working directory."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


def text(name: str, write: Callable[[str], str]) -> Change:
    def change(run: Path) -> None:
        path = run / name
        path.write_text(write(path.read_text()))

    return change


def values(name: str, write: Callable[[Any], Any]) -> Change:
    return text(name, lambda old: json.dumps(write(json.loads(old))))


def header(**changes: Any) -> Change:
    def change(run: Path) -> None:
        found, weights = load_weights(run / MODEL)
        save_weights(run / MODEL, weights, {**found, **changes})

    return change


def described(**changes: Any) -> Change:
    def change(run: Path) -> None:
        found, weights = load_weights(run / MODEL)
        save_weights(run / MODEL, weights, {**found, "model": {**found["model"], **changes}})

    return change


def prepared(**changes: Any) -> Change:
    def change(run: Path) -> None:
        found, weights = load_weights(run / MODEL)
        save_weights(run / MODEL, weights, {**found, "preprocess": {**found["preprocess"], **changes}})

    return change


def weights(write: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    def change(run: Path) -> None:
        found, tensors = load_weights(run / MODEL)
        save_weights(
            run / MODEL, {k: write(v) if v.is_floating_point() else v for k, v in tensors.items()}, found
        )

    return change


def cut(name: str, share: float) -> Change:
    def change(run: Path) -> None:
        content = (run / name).read_bytes()
        (run / name).write_bytes(content[: int(len(content) * share)])

    return change


def exchanged(run: Path) -> None:
    one, other = (run / f"checkpoints/{name}-seed0/model.safetensors" for name in ("dann", "source_only"))
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def frozen(**changes: Any) -> Change:
    def write(old: Any) -> Any:
        for one in old["models"]["dann"].values():
            for place in [one] if "temperature" in one else one.values():
                place |= changes
        return old

    return values("calibration.json", write)


def as_text(run: Path) -> None:
    (run / MODEL).write_text("hello")


def absent(name: str) -> Change:
    return lambda run: (run / name).unlink()


NAN = float("nan")
ALTERED: dict[str, Change] = {
    "weights are NaN": weights(lambda w: w * NAN),
    "weights are zero": weights(torch.zeros_like),
    "weights are 1e30": weights(lambda w: torch.full_like(w, 1e30)),
    "one weight is NaN": weights(lambda w: w.index_fill(0, torch.tensor([0]), NAN) if w.ndim else w),
    "one weight is another": weights(lambda w: w + 1e-3),
    "weights are exchanged": exchanged,
    "weights are cut": cut(MODEL, 0.7),
    "weights are empty": cut(MODEL, 0),
    "weights are text": as_text,
    "weights are a pickle": lambda run: torch.save({"x": torch.zeros(1)}, run / MODEL),
    "another number of classes": described(num_classes=7),
    "a billion classes": described(num_classes=10**9),
    "an encoder that does not exist": described(encoder="resnet_of_nobody"),
    "an encoder from the network": described(encoder="hf-hub:someone/something"),
    "an encoder of a folder": described(encoder="local-dir:/etc"),
    "an encoder that is a number": described(encoder=7),
    "an unknown key of the network": described(code="import os"),
    "a huge head": described(head={"Linear": {"in_features": 1 << 20, "out_features": 1 << 20}}),
    "an unknown layer": described(head={"os.system": {"command": "true"}}),
    "no description": header(model=None),
    "a description that is a list": header(model=[1, 2]),
    "a kind that does not exist": header(kind="oracle"),
    "classes are a number": header(classes=3),
    "classes are equal": header(classes=["a", "a"]),
    "no classes": header(classes=[]),
    "no preprocessing": header(preprocess=None),
    "huge images": prepared(image_size=1_000_000),
    "images of size NaN": prepared(image_size=NAN),
    "an unknown window": prepared(intensity="window:a,b"),
    "a method from a file": header(method="theirs/evil.py", test_time=True),
    "a method of one's own": header(method="evil", own_file=True, test_time=True),
    "a method that is a list": header(method=["evil.py"], test_time=True),
    "hyper-parameters are text": header(hparams="lr=3", test_time=True, method="tent"),
    "a temperature below zero": frozen(temperature=-1.0),
    "a temperature of zero": frozen(temperature=0.0),
    "a temperature that is NaN": frozen(temperature=NAN),
    "a temperature that is text": frozen(temperature="warm"),
    "a point beyond one": frozen(operating_point={"positive": "dark", "probability": 7.0}),
    "a point of another class": frozen(operating_point={"positive": "nobody", "probability": 0.5}),
    "a point that is a list": frozen(operating_point=[1, 2]),
    "the frozen settings are cut": cut("calibration.json", 0.5),
    "the frozen settings are a list": text("calibration.json", lambda _: "[]"),
    "the frozen settings are deep": text("calibration.json", lambda _: "[" * 100_000),
    "no frozen settings": absent("calibration.json"),
    "the decision is cut": cut("decision.json", 0.5),
    "the decision is a list": text("decision.json", lambda _: "[1]"),
    "the decision names another model": values("decision.json", lambda old: {**old, "model": "../../x"}),
    "it is not finished": absent("DONE"),
    "the record is cut": cut(RECORD, 0.5),
    "the record is a list": text(RECORD, lambda _: "[]"),
}


def evil(root: Path) -> None:
    """Files that leave a trace if anything runs them."""
    (root / "theirs").mkdir()
    for place in (root / "evil.py", root / "theirs" / "evil.py", root / "run" / "evil.py"):
        place.write_text(f"open({str(root / 'ran')!r}, 'w').close()\n")


@pytest.mark.parametrize("record", [pytest.param("kept", marks=pytest.mark.slow), "gone"])
@pytest.mark.parametrize("change", ALTERED)
def test_no_altered_run_predicts(
    run: Path, change: str, record: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the record each is noticed; without it, what can be told from the file itself."""
    evil(run.parent)
    ALTERED[change](run)
    if record == "gone" and "record" not in change:
        (run / RECORD).unlink()
    capsys.readouterr()
    named = [] if "decision" in change else ["--model", "dann"]
    code = main(["predict", "run", "b", "--out", "new", *named])
    said = capsys.readouterr()
    assert not (run.parent / "ran").exists()
    assert "fault of medtl" not in said.err
    assert str(run.parent) not in said.err
    if code:
        assert code in (1, 2)
        assert not (run.parent / "new" / "DONE").exists()
        assert len(said.err) < 700
    else:  # what nobody can tell without a record
        assert record == "gone"
        assert "one weight is another" in change or "exchanged" in change or "point" in change
        assert "record.json" in said.out


def test_an_unaltered_copy_predicts(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil(run.parent)
    for model in ("dann", "tent", "source_only"):
        assert main(["predict", "run", "b", "--out", f"new_{model}", "--model", model]) == 0
        assert (run.parent / f"new_{model}" / "DONE").exists()
    assert "record.json" not in capsys.readouterr().out
    assert not (run.parent / "ran").exists()


def test_two_predictions_do_not_share_their_copies(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first to end deletes its own."""
    made: list[str] = []

    def private_cache(name: str) -> Path:
        made.append(name)
        return run.parent / name

    monkeypatch.setattr("medtl.prediction.apply.private_cache", private_cache)
    for out in ("one", "two"):
        assert main(["predict", "run", "b", "--out", out, "--model", "dann"]) == 0
    assert made[0] != made[1]
    assert not any((run.parent / name).exists() for name in made)


@pytest.mark.parametrize("bad", ["one", "all"])
def test_a_case_without_a_number_is_named_and_left_out(
    run: Path, bad: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was called the first class."""
    files = sorted(p for p in (run.parent / "b").rglob("*.png") if p.parent.name != "masks")
    for file in files if bad == "all" else files[:1]:
        noise = np.random.default_rng(int(file.stem[1:])).integers(0, 2, (32, 32), dtype=np.uint8)
        Image.fromarray(255 * noise).save(file)

    for kind in (Classifier, Segmenter):

        def forward(self: Any, image: torch.Tensor, own: Any = kind.forward) -> Output:
            logits, features = own(self, image)
            extreme = ((image < 0.02) | (image > 0.98)).flatten(1).float().mean(1) > 0.9
            lost = extreme.view(-1, *[1] * (logits.ndim - 1))
            return Output(torch.where(lost, torch.nan, logits), features)

        monkeypatch.setattr(kind, "forward", forward)
    capsys.readouterr()
    code = main(["predict", "run", "b", "--out", "new", "--model", "dann"])
    said = capsys.readouterr()
    if bad == "all":
        assert code == 1
        assert "gives no number for any of the" in " ".join(said.err.split())
        return
    assert code == 0
    assert f"1 cases have no prediction: the model gives no number for {files[0].stem}" in said.out
    new = run.parent / "new"
    table = pd.read_csv(next(new / n for n in ("predictions.csv", "volumes.csv") if (new / n).is_file()))
    assert set(table["case"]) == {file.stem for file in files[1:]}
    assert table.filter(regex="^prob_|^voxels").notna().all().all()
    assert not (new / "masks" / files[0].name).exists()
