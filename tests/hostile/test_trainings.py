"""Trainings on unlucky scans: right, or one clear error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.helpers.processes import run
from tests.scans.make_scans import write_image, write_nifti

TRIAL = """
import signal, sys
from medtl.cli.entry import main
signal.alarm(240)
raise SystemExit(main(sys.argv[1:]))
"""


@dataclass(frozen=True)
class Trial:
    """Two sites and what a run says about them.

    Attributes:
        spoil: changes the scans of the sites, after they were written.
        labels: of each target case; those of the source are `x` and `y` in turns.
        code: exit code.
        says: parts of the output, or of the error.
        left_out: reasons of the cases that are left out.
        volumes: whether the scans are volumes, and of how many slices.
    """

    spoil: Callable[[Path], object] = lambda root: None
    labels: str = "xyxyxyxy"
    code: int = 0
    says: tuple[str, ...] = ()
    left_out: dict[str, str] = field(default_factory=dict)
    slices: int = 0


def write(path: Path, values: object, slices: int) -> None:
    if slices:
        write_nifti(path.with_suffix(".nii"), values)  # type: ignore[arg-type]
    else:
        write_image(path.with_suffix(".tif"), values)  # type: ignore[arg-type]


def sites(root: Path, trial: Trial) -> None:
    for site, labels, first in (("a", "xy" * 12, 0), ("b", trial.labels, 100)):
        rows = ["case,label"]
        for number, label in enumerate(labels):
            shape = (trial.slices, 32, 32) if trial.slices else (32, 32)
            values = np.random.default_rng(first + number).normal(100, 20, shape).astype(np.float32)
            values[..., ::2] += 60 * (label == "y")
            write(root / site / f"{site}{number:02d}", values, trial.slices)
            rows.append(f"{site}{number:02d},{label}")
        (root / f"{site}.csv").write_text("\n".join(rows))
    trial.spoil(root)


def fill(value: float, *names: str) -> Callable[[Path], object]:
    """Gives some scans one value, in files of which no two are equal."""

    def spoil(root: Path) -> None:
        for name in names:
            path = write_image(root / name[0] / f"{name}.tif", np.full((32, 32), value, np.float32))
            path.write_bytes(path.read_bytes() + name.encode())

    return spoil


def all_constant(root: Path) -> None:
    for number, path in enumerate(sorted(root.rglob("*.tif"))):
        write_image(path, np.full((32, 32), number, np.float32))


TRIALS = {
    "some images of one grey value": Trial(
        fill(7, "a00", "a01", "b00"),
        says=("2 scans of 'a' have one grey value", "1 scans of 'b' have one grey value"),
    ),
    "images of one grey value alone": Trial(all_constant, says=("24 scans of 'a' have one grey value",)),
    "some images of NaN alone": Trial(
        fill(np.nan, "a00", "a01", "b00"), left_out=dict.fromkeys(("a00", "a01", "b00"), "not_finite")
    ),
    "images of NaN alone": Trial(
        fill(np.nan, *(f"a{n:02d}" for n in range(24))),
        code=1,
        says=("24 scans could not be decoded, and nothing is left of", "are no numbers (NaN)"),
    ),
    "a class of one patient at the target": Trial(labels="xxxxxxxy"),
    "a target of one class": Trial(labels="xxxxxxxx"),
    "a target of one case": Trial(labels="x"),
    "volumes of one slice": Trial(slices=1),
    "volumes of two slices": Trial(slices=2),
}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["finetune", "adapt"])
@pytest.mark.parametrize("name", list(TRIALS))
def test_an_unlucky_training_is_right_or_one_clear_error(tmp_path, name, recipe):
    trial = TRIALS[name]
    sites(tmp_path, trial)
    words = ["run", recipe, "--smoke", "--out", "out", "--source", "a", "--labels", "a.csv"]
    words += ["--target", "b", "--target-labels", "b.csv"]
    done = run(["-c", TRIAL, *words], cwd=tmp_path)
    text = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == trial.code, text[-3000:]
    assert "fault of medtl" not in text
    for part in trial.says:
        assert part in text
    if trial.code:
        return
    cases = pd.read_csv(tmp_path / "out" / "cases.csv", dtype=str, keep_default_na=False)
    found = cases[cases.status == "excluded"].set_index("case").reason.to_dict()
    assert found == trial.left_out
    predictions = pd.read_csv(tmp_path / "out" / "predictions.csv")
    scores = predictions[[c for c in predictions.columns if c.startswith("prob")]]
    assert np.isfinite(scores.to_numpy(dtype=float)).all()
    page = (tmp_path / "out" / "report" / "report.md").read_text()
    for part in trial.says:
        assert part in " ".join(page.split())
