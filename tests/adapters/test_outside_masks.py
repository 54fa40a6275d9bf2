"""Methods that a user would write, with masks, through the command line: one run, and a prediction from each."""

from __future__ import annotations

from pathlib import Path

import pytest

from medtl.adapters import adapter_class
from medtl.cli import main
from tests.adapters.test_outside import METHODS, OUTSIDE
from tests.helpers.masks import write_masked_site

WITH_MASKS = [m for m in METHODS if "segmentation" in adapter_class(str(OUTSIDE / f"{m}.py")).tasks]


@pytest.mark.slow
def test_one_run_of_all_and_a_prediction_from_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert WITH_MASKS == ["adda", "cotta", "mcd", "sites"]
    monkeypatch.chdir(tmp_path)
    a, b = (write_masked_site(tmp_path / n, 8, offset=o, shade=o // 4) for n, o in (("a", 0), ("b", 100)))
    files = [str(OUTSIDE / f"{m}.py") for m in WITH_MASKS]
    words = ["run", "adapt", "--source", str(a), "--masks", str(a / "masks"), "--target", str(b)]
    words += ["--method", *files, "--encoder", "test_resnet", "--weights", "random", "--image-size", "32"]
    assert (
        main([*words, "--epochs", "1", "--batch-size", "8", "--fit", "steps_per_epoch=2", "--out", "run"])
        == 0
    )
    for name, file in zip(WITH_MASKS, files, strict=True):
        named = ["--method", file] if name == "cotta" else []
        assert main(["predict", "run", "b", "--model", name, *named, "--out", f"new-{name}"]) == 0
        masks = sorted((tmp_path / f"new-{name}" / "masks").glob("*"))
        assert len(masks) == 8
        assert (tmp_path / "run/checkpoints" / f"{name}-seed0" / "model.safetensors").is_file()
    assert (tmp_path / "run/checkpoints/cotta-seed0/state.safetensors").is_file()
